"""The neutral exceptions. Each face (httpx, httpx2) raises a subclass that is also its library's class.

BalancerError
├── ConfigError            the caller's: a target, option or key is wrong; names it and the way out
├── DiscoveryError         the registry's: it cannot be read; never reaches a call, the last list is kept
├── NoReplicas             the fleet's: nobody is known who could serve this call
├── NoCapacity             the fleet's: somebody is known, nobody has room; carries ``retry_after_s``
├── QueueTimeout           the fleet's: waited for room as long as allowed
├── DeadlineExceeded       the caller's deadline passed first
├── AttemptsExhausted      the replicas': every attempt failed without an answer; carries ``attempts``
├── ClientClosed           the caller's: the client was closed before the call or during it
└── StreamInterrupted      one replica's: broke after the commit point; carries ``bytes_delivered``
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple


class FailureKind(StrEnum):
    """How an attempt ended without a usable answer."""

    CONNECT = "connect"
    CONNECT_TIMEOUT = "connect_timeout"
    WRITE = "write"
    WRITE_TIMEOUT = "write_timeout"
    FIRST_CONTENT_TIMEOUT = "first_content_timeout"
    SILENT = "silent"
    READ = "read"
    READ_TIMEOUT = "read_timeout"
    PROTOCOL = "protocol"
    REQUEST = "request"
    UNREAD = "unread"
    STATUS = "status"
    IN_BAND = "in_band"
    CANCELLED = "cancelled"

    @property
    def never_sent(self) -> bool:
        """True if no byte of the request can have reached the replica's application."""
        return self in (FailureKind.CONNECT, FailureKind.CONNECT_TIMEOUT)

    @property
    def by_caller(self) -> bool:
        """True if the caller's own limit passed or the caller's request cannot be sent: no use going elsewhere."""
        return self in (FailureKind.READ_TIMEOUT, FailureKind.WRITE_TIMEOUT, FailureKind.REQUEST)


_WORDS = {
    FailureKind.CONNECT: "could not be reached",
    FailureKind.CONNECT_TIMEOUT: "took no connection in time",
    FailureKind.WRITE: "broke the connection",
    FailureKind.WRITE_TIMEOUT: "did not take the request in time",
    FailureKind.FIRST_CONTENT_TIMEOUT: "did not begin to answer in time",
    FailureKind.SILENT: "was silent for too long",
    FailureKind.READ: "broke the connection",
    FailureKind.READ_TIMEOUT: "did not answer in time",
    FailureKind.PROTOCOL: "gave no proper answer",
    FailureKind.CANCELLED: "had not begun to answer",
}


class AttemptReport(NamedTuple):
    """What one attempt did. Times in seconds since the call began.

    ``status``: the answer's; of an error inside of a 200 (``in_band``) the one that the error names. ``failure``: how
    it ended if no answer came, or such a one, or one that broke off after its first content. ``detail``: what the
    replica or the network said of it.
    """

    number: int
    replica: str
    url: str
    started_s: float
    ended_s: float | None = None
    status: int | None = None
    failure: FailureKind | None = None
    detail: str = ""

    def __str__(self) -> str:
        what = self.failure or (self.status and f"HTTP {self.status}") or "open"
        if self.failure is FailureKind.IN_BAND:
            what = f"error {self.status} inside of a 200"
        return (
            f"#{self.number} {self.replica} ({self.url}): {what}{': ' + self.detail if self.detail else ''}"
        )

    @property
    def in_words(self) -> str:
        """What its replica did, to follow its name."""
        if self.failure is None:
            said = f"answered with status {self.status}"
        elif self.failure is FailureKind.IN_BAND:
            said = f"answered with an error {self.status} inside of a 200"
        else:
            said = _WORDS.get(self.failure, f"failed ({self.failure})")
        return f"{said} ({self.detail})" if self.detail else said


def retold(attempts: Sequence[AttemptReport], answered: int = 0) -> str:
    """Where a call was sent, in turn, and what came of it. ``answered``: the attempt whose answer its caller got."""
    told: list[str] = []
    busy_until = 0.0
    for attempt in attempts:
        lead = "meanwhile to" if attempt.started_s < busy_until else "then to"
        if not told:
            lead = "first sent to" if len(attempts) > 1 else "sent to"
        came = "whose answer this is" if attempt.number == answered else f"which {attempt.in_words}"
        told.append(f"{lead} {attempt.replica}, {came}")
        busy_until = max(busy_until, attempt.ended_s or 0.0)
    return "; ".join(told)


class BalancerError(Exception):
    """Base of all errors that this library raises of its own. They can be pickled; a face's become the neutral ones.

    A face's class is made at run time, and holds a request that cannot travel.
    """

    neutral: ClassVar[type[BalancerError] | None] = None

    def __reduce__(self) -> tuple[Any, ...]:
        own = {name: value for name, value in self.__dict__.items() if name != "_request"}
        return _revive, (self.neutral or type(self), self.args, own)


def _revive(kind: type[BalancerError], args: tuple[Any, ...], own: dict[str, Any]) -> BalancerError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(own)
    return error


class ConfigError(BalancerError, ValueError):
    """A target, option or configuration key cannot be used; the message names it and the allowed values."""


class DiscoveryError(BalancerError):
    """A source of replicas gave no usable answer. The cause is told as an event; calls go on with the last list."""


class NoReplicas(BalancerError):
    """No replica is known that serves this call."""


class NoCapacity(BalancerError):
    """Replicas are known, none has room. ``retry_after_s``: when to ask again, in seconds, if known."""

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueTimeout(BalancerError):
    """The call waited for room as long as it was allowed to."""


PASSED = "the deadline had passed before the call was made"


class DeadlineExceeded(BalancerError):
    """The call's deadline passed before an answer began."""


class ClientClosed(BalancerError, RuntimeError):
    """The client is closed, or was closed by another thread or task while the call was under way."""


class AttemptsExhausted(BalancerError):
    """Every attempt failed and none got an HTTP answer. ``attempts``: one report each, as they were started.

    ``retry_after_s``: in how many seconds a replica may be tried again, if all rest. ``why``: no more were made, in
    words; it is in the message.
    """

    def __init__(
        self, attempts: Sequence[AttemptReport], *, retry_after_s: float | None = None, why: str = ""
    ) -> None:
        self.attempts = tuple(attempts)
        self.retry_after_s = retry_after_s
        tries = "; ".join(map(str, self.attempts))
        ended = f"; no more, for {why}" if why else ""
        super().__init__(f"{len(self.attempts)} attempt(s) failed without an answer: {tries}{ended}")

    @property
    def kind(self) -> FailureKind:
        """How the attempt failed that ended last; a face chooses its library's class by it."""
        last = max(reversed(self.attempts), key=lambda told: told.ended_s or 0.0)
        return last.failure or FailureKind.PROTOCOL


class StreamInterrupted(BalancerError):
    """The answer broke off after its first content. ``bytes_delivered``: body bytes the caller has received."""

    def __init__(
        self, message: str, *, bytes_delivered: int, kind: FailureKind = FailureKind.PROTOCOL
    ) -> None:
        super().__init__(message)
        self.bytes_delivered = bytes_delivered
        self.kind = kind
