"""What happens, as one stream of frozen values: logs, metrics and traces are subscribers to it.

``at`` is in seconds of the client's monotonic clock; ``call`` is the id that a call has in this client.
Events hold plain text and numbers only, and no secrets: URLs are those of replicas, without a query.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from inspect import iscoroutinefunction
from threading import Lock

from .config.urls import scrubbed
from .errors import ConfigError, FailureKind

LOGGER = logging.getLogger("mlbalance_client")
LOGGER.addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Picked:
    """A replica was chosen and charged. ``candidates``: how many were compared; tokens are estimates."""

    at: float
    call: str
    attempt: int
    replica: str
    reason: str
    prompt_tokens: int
    predicted_hit_tokens: int
    candidates: int
    tenant: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """A call is on its way to ``url``; ``attempt`` counts from 1."""

    at: float
    call: str
    attempt: int
    replica: str
    url: str


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """An attempt is over: ``status``, or ``failure`` (a FailureKind) of which ``detail`` tells more.

    Of an error inside of a 200 ``failure`` is ``in_band``, and ``status`` the one that the error names.
    """

    at: float
    call: str
    attempt: int
    replica: str
    took_s: float
    status: int | None = None
    failure: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class FailedOver:
    """A call goes from one replica to another; ``attempt`` is the number of the one that failed.

    ``why``: a FailureKind, or the status of its answer; ``in_band 503``: of an error inside of a 200. ``detail``: what
    the replica or the network said of it.
    """

    at: float
    call: str
    attempt: int
    from_replica: str
    to_replica: str
    why: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HedgeStarted:
    """A call that had no content of one replica after ``after_s`` goes to another as well, as attempt ``attempt``."""

    at: float
    call: str
    attempt: int
    from_replica: str
    to_replica: str
    after_s: float


@dataclass(frozen=True, slots=True)
class HedgeEnded:
    """A hedged call is answered by ``replica``; ``won``: by an attempt that was started beside another.

    ``attempt`` is 0 and ``replica`` empty if the call ended without an answer.
    """

    at: float
    call: str
    attempt: int
    replica: str
    won: bool


@dataclass(frozen=True, slots=True)
class Queued:
    """All replicas have enough to do: a call waits in this client, as one of ``waiting``.

    ``Pulled`` or ``Shed`` follows, whichever way it ends.
    """

    at: float
    call: str
    waiting: int
    tenant: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Pulled:
    """A replica got room and took a call that had waited."""

    at: float
    call: str
    replica: str
    waited_s: float
    tenant: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Shed:
    """A call got no room. ``waited_s``: how long it had waited.

    ``error``: the kind that its caller gets; ``cancelled`` if he has gone.
    """

    at: float
    call: str
    error: str
    waited_s: float
    retry_after_s: float | None = None
    tenant: str | None = None
    priority: int = 0


@dataclass(frozen=True, slots=True)
class Interrupted:
    """An answer broke off after its first content: its caller has got ``bytes_delivered`` and no more.

    ``failure``: a FailureKind; ``detail``: what the replica or the network said of it, or why it was closed.
    """

    at: float
    call: str
    attempt: int
    replica: str
    bytes_delivered: int
    failure: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A call got no answer in ``attempts`` attempts. ``error``: what its caller gets, in words."""

    at: float
    call: str
    attempts: int
    failure: str
    error: str


@dataclass(frozen=True, slots=True)
class Settled:
    """A charge was closed. Tokens as the replica counted them, ``None`` where it did not say.

    ``ttft_s``: as in the call's report; ``None`` if its answer is not the one that the caller got. ``failure``: how
    that broke off, if it did.
    """

    at: float
    call: str
    replica: str
    verdict: str
    total_s: float
    ttft_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    tenant: str | None = None
    priority: int = 0
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class ReplicasChanged:
    """Discovery named other replicas than before, by id; ``total``: how many there are now."""

    at: float
    source: str
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]
    total: int


@dataclass(frozen=True, slots=True)
class DiscoveryTrouble:
    """The source of replicas fails, or what it says is not taken as it is; once for each cause, not each retry.

    ``kept``: how many replicas stay known.
    """

    at: float
    source: str
    cause: str
    kept: int


@dataclass(frozen=True, slots=True)
class DiscoveryRecovered:
    """The source's word counts again, and has for a while. ``after_s``: seconds since the first sign of trouble."""

    at: float
    source: str
    after_s: float


@dataclass(frozen=True, slots=True)
class ReplicaEjected:
    """A replica is not picked for ``for_s`` seconds; less, if a health check shows before that it is well.

    ``why``: the evidence, in words and figures. ``count``: it is the so many-th time lately. ``unreachable``: it
    refuses connections; else it is an outlier.
    """

    at: float
    replica: str
    why: str
    for_s: float
    count: int
    unreachable: bool


@dataclass(frozen=True, slots=True)
class ReplicaReturned:
    """An ejected replica may be picked again: one call at first, then more as it serves them."""

    at: float
    replica: str


@dataclass(frozen=True, slots=True)
class PanicChanged:
    """So many of all replicas are out that ejections are ignored from now on; or are no more."""

    at: float
    on: bool
    out: int
    total: int


@dataclass(frozen=True, slots=True)
class HealthCheckFailed:
    """A replica fails its health checks, once for each spell. ``check``: of its ``system`` or of the ``model``."""

    at: float
    replica: str
    check: str
    why: str


@dataclass(frozen=True, slots=True)
class HealthCheckPassed:
    """A replica that failed its health checks passes them again. ``after_s``: seconds since the first failure."""

    at: float
    replica: str
    check: str
    after_s: float


Event = (
    Picked
    | AttemptStarted
    | AttemptEnded
    | FailedOver
    | HedgeStarted
    | HedgeEnded
    | Queued
    | Pulled
    | Shed
    | Interrupted
    | GivenUp
    | Settled
    | ReplicasChanged
    | DiscoveryTrouble
    | DiscoveryRecovered
    | ReplicaEjected
    | ReplicaReturned
    | PanicChanged
    | HealthCheckFailed
    | HealthCheckPassed
)
Subscriber = Callable[[Event], None]


def _always() -> bool:
    return True


class _Subscription:
    __slots__ = ("call", "every_call", "failed")

    def __init__(self, call: Subscriber, every_call: Callable[[], bool]) -> None:
        self.call = call
        self.every_call = every_call
        self.failed = False


class EventStream:
    """Hands events to subscribers, in the thread and order in which they happen.

    It is false while nobody wants the events of every call, so that callers need not even make them::

        if events:
            events.emit(...)

    Failovers, hedges, broken streams, calls without an answer and changes of the fleet are rare: always emitted.
    """

    __slots__ = ("_lock", "_subscriptions")

    def __init__(self) -> None:
        self._lock = Lock()
        self._subscriptions: tuple[_Subscription, ...] = ()

    def __bool__(self) -> bool:
        for subscription in self._subscriptions:  # noqa: SIM110 - a generator costs more than the rest
            if subscription.every_call():
                return True
        return False

    def subscribe(
        self, subscriber: Subscriber, *, every_call: Callable[[], bool] = _always
    ) -> Callable[[], None]:
        """Call ``subscriber`` with every event from now on, until the returned function is called.

        It must be quick and not block. What it raises is logged once and harms nobody. ``every_call``: whether it
        has a use now for the events of every call, which cost something; false spares them if nobody else has.
        Raises ConfigError for what cannot be called so.
        """
        if not callable(subscriber) or iscoroutinefunction(subscriber):
            raise ConfigError(f"a subscriber must be a plain function of one event, not {subscriber!r:.80}")
        subscription = _Subscription(subscriber, every_call)
        with self._lock:
            self._subscriptions += (subscription,)

        def unsubscribe() -> None:
            with self._lock:
                self._subscriptions = tuple(s for s in self._subscriptions if s is not subscription)

        return unsubscribe

    def emit(self, event: Event) -> None:
        """Tell everybody."""
        for subscription in self._subscriptions:
            try:
                subscription.call(event)
            except Exception:
                if not subscription.failed:
                    subscription.failed = True
                    LOGGER.exception(
                        "event subscriber %r failed; its later errors are not logged", subscription.call
                    )


def log_events(events: EventStream, logger: logging.Logger = LOGGER) -> None:
    """Let the logger follow ``events``."""
    events.subscribe(logging_subscriber(logger), every_call=lambda: logger.isEnabledFor(logging.DEBUG))


def logging_subscriber(logger: logging.Logger = LOGGER) -> Subscriber:
    """A subscriber that logs. Warnings: failovers, answers that broke off, calls without one, discovery's trouble, an
    emptied fleet; info: other changes, and answers that the client itself cut off by closing.

    All else is debug. The fields are in the record's ``extra``, named ``mlbalance.<field>``.
    """

    def log(event: Event) -> None:
        level = _level(event)
        if logger.isEnabledFor(level):
            values = {field.name: _plain(getattr(event, field.name)) for field in fields(event)}
            text = " ".join(
                f"{name}={value}"
                for name, value in values.items()
                if name != "at" and value not in (None, "")
            )
            extra = {f"mlbalance.{name}": value for name, value in values.items()}
            logger.log(level, "%s %s", type(event).__name__, text, extra=extra)

    return log


def _level(event: Event) -> int:
    match event:
        case (
            FailedOver()
            | GivenUp()
            | DiscoveryTrouble()
            | HealthCheckFailed()
            | ReplicaEjected()
            | PanicChanged(on=True)
        ):
            return logging.WARNING
        case DiscoveryRecovered() | HealthCheckPassed() | ReplicaReturned() | PanicChanged():
            return logging.INFO
        case Interrupted():
            return logging.INFO if event.failure == FailureKind.CANCELLED else logging.WARNING
        case ReplicasChanged():
            return logging.INFO if event.total else logging.WARNING
        case _:
            return logging.DEBUG


def _plain(value: object) -> object:
    return scrubbed(value) if isinstance(value, str) else value
