"""Everything of one client but its face: its life, its wiring, and what a call is before it is performed.

One call: body -> dialect -> fingerprint and demand -> attempts machine -> pick and charge, with no await between ->
wire -> commit point -> the body flows to the caller -> settled once, whatever the way out.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from random import Random
from weakref import WeakMethod

import anyio

from ..backoff import RetryStrategies
from ..calls import CallOptions
from ..config import BalancerConfig
from ..config.base import plain
from ..core.attempts import Attempts
from ..core.budget import Budget
from ..core.fingerprint import fingerprint, text_key
from ..core.fleet import Fleet
from ..core.health.outlier import Outliers
from ..core.health.pushback import Pushback
from ..core.health.slow_start import SlowStart
from ..core.hedging import Hedging
from ..core.model import Demand
from ..core.report import CallReport, Explanation, FleetSnapshot, preview, snapshot
from ..dialects import Dialect, Reading, find
from ..errors import ClientClosed
from ..events import Event, EventStream, log_events
from ..wire import Wire, WireOptions
from .alarms import Alarms
from .checkups import Checkups
from .held_streams import HeldStreams
from .performing import Answer, CallUnderWay, Performer
from .queueing import Queueing
from .reporting import Reporting
from .roster import Roster
from .sending import Headers, Request, Sender
from .telling import Telling
from .tending import EventLoop, Loop

__all__ = ["Answer", "Engine", "Headers", "Request"]

_DRAINED_YET_S = 0.02
_LOOP_ENDED = (
    "the event loop in which this client was used has ended, and its connections with it (each asyncio.run has a loop "
    "of its own): make a client in each, or make all calls in one; Client brings a loop that lasts"
)


def _unencoded(headers: Headers) -> Headers:
    """A stream must pass as it comes, so nobody may compress it on the way."""
    return [pair for pair in headers if pair[0].lower() != b"accept-encoding"] + [
        (b"Accept-Encoding", b"identity")
    ]


def _call_weakly(method: WeakMethod[Callable[[], None]]) -> None:
    if (alive := method()) is not None:
        alive()


async def _to_the_end(body: Callable[[], Awaitable[None]], ended: Callable[[], None]) -> None:
    try:
        await body()
    finally:
        ended()


def _tell_weakly(method: WeakMethod[Callable[[Event], None]], event: Event) -> None:
    if (alive := method()) is not None:
        alive(event)


class Engine:
    """Everything of one client but its face. Lives in one event loop; starts at the first call."""

    def __init__(
        self,
        config: BalancerConfig,
        *,
        wire: WireOptions | None = None,
        dialects: Sequence[Dialect] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.events = EventStream()
        log_events(self.events)
        # Background loops hold what tells of itself, and subscribers often know the client.
        tell = partial(_tell_weakly, WeakMethod(self._heard))
        self._rng = Random(config.seed)
        rests = config.outlier_detection
        self.fleet = Fleet(
            plain(config.picking),
            self._rng,
            Pushback(rests.rest_base_s, rests.rest_max_s),
            expiry_s=config.load_reports.expiry_s,
            published=Reporting.shared().table,
            windows=plain(config.admission),
            outliers=Outliers(plain(config.outlier_detection), self._rng),
            slow_start=SlowStart(config.slow_start),
            tell=tell,
        )
        self.clock = clock
        self._client_id = ""
        self._numbers = count(1)
        self._dialects = tuple(dialects)
        self._http = plain(config.http)
        self._max_hedges = config.hedging.max_hedges
        secret = config.picking.fingerprint_secret
        self._secret = None if secret is None else secret.get_secret_value().encode()
        options = wire or WireOptions(keepalive_expiry_s=config.http.keepalive_expiry_s)
        self.wire = Wire(options)
        self.reporting = Reporting(config.load_reports, self.fleet, self.wire, clock, secret=self._secret)
        self.checkups = Checkups(
            config.health_checks,
            self.fleet,
            self.wire,
            self.reporting,
            clock,
            tell,
        )
        self.tell = Telling(self.events, clock)
        self.held = HeldStreams(
            self.wire,
            clock,
            config.http.max_unread_s,
            config.http.keepalive_expiry_s,
            config.http.call_timeout_s,
        )
        self._sender = Sender(config.http, self.wire, self.reporting)
        self.alarms = Alarms(clock)
        self.fleet.late_s = self.alarms.late_s
        self.hedging = Hedging(plain(config.hedging))
        self.queueing = Queueing(config.admission, self.fleet, self.tell, self.alarms)
        changed = partial(_call_weakly, WeakMethod(self._on_change))
        self._roster = Roster(config.discovery, self.fleet, self.events, Random(config.seed), clock, changed)
        self._strategies = RetryStrategies(config.retries, self._rng)
        self._retry_budget = Budget(config.retries.budget_ratio, config.retries.reserve_calls)
        self._performer = Performer(
            config.http,
            self.fleet,
            self._sender,
            self.hedging,
            self.queueing,
            self.alarms,
            self.reporting,
            self._roster,
            self.held,
            self.tell,
            clock,
        )
        self._loops: list[Loop] = []
        self._started = False
        self._closed = ""
        self.drain_s = config.http.drain_s

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the background loops; happens by itself at the first call."""
        if self._closed:
            raise ClientClosed(self._closed)
        if not self._started:
            self._started = True
            if self.config.seed is None:
                self._rng.seed()  # anew: made before a fork, it would draw the same in every child
            self._client_id = f"{self._rng.getrandbits(40):010x}"
            self.reporting.start(self._client_id, int(self._client_id, 16))
            self.held.start(EventLoop())
            self._performer.start()
            ended = partial(_call_weakly, WeakMethod(self._on_end_of_loop))
            self._loops.append(Loop("streams", partial(_to_the_end, self.held.tend, ended), owner=self))
            self._loops.append(Loop("connections", self.wire.tend, owner=self))
            self._loops.append(Loop("alarms", self.alarms.tend, owner=self))
            self._loops += self._roster.start(owner=self)
            if self.reporting.runs:
                self._loops.append(Loop("load reports", self.reporting.run, owner=self))
            if self.checkups.runs:
                self.checkups.start(int(self._client_id, 16))
                self._loops.append(Loop("health checks", self.checkups.run, owner=self))

    async def aclose(self) -> None:
        """Take no more calls, let those under way end within ``drain_s``, then end the loops and the connections.

        Idempotent; any task of the loop may call it.
        """
        self._closed = "this client is closed"
        self._performer.leave()
        # A cancel of asyncio's own comes through any shield, but once: what it interrupts must not keep the rest.
        try:
            with anyio.move_on_after(self.drain_s):
                while self._performer.under_way or self.held.being_read():  # noqa: ASYNC110 - ends by time alone too
                    await anyio.sleep(_DRAINED_YET_S)
        finally:
            await self._end()

    def _on_end_of_loop(self) -> None:
        self._closed = self._closed or _LOOP_ENDED

    async def _end(self) -> None:
        self.held.condemn()
        for loop in self._loops:
            loop.cancel()
        try:
            await self._performer.aclose()
            for loop in self._loops:
                await loop.aclose()
        finally:
            try:
                await self.held.stop_all()
            finally:
                await self.wire.aclose()

    @property
    def open_streams(self) -> int:
        """Answers that callers hold and have not finished."""
        return len(self.held)

    def snapshot(self) -> FleetSnapshot:
        """What the client believes of its replicas now."""
        now = self.clock()
        self.fleet.ledger.sweep(now)
        queued = len(self.queueing.queue)
        return snapshot(self.fleet, now, self.config.picking.policy, queued, self.checkups.last)

    def explain(self, path: str, body: bytes, options: CallOptions) -> Explanation:
        """Which replica a call would go to now, and why; nothing is charged. Raises NoReplicas."""
        reading = self._dialect("POST", path).read(path, body)
        demand = self.demand(reading, options)
        return self.preview(demand, options)

    def preview(self, demand: Demand, options: CallOptions) -> Explanation:
        """``explain`` for a call of this demand."""
        queued = len(self.queueing.queue)
        return preview(self.fleet, demand, self.clock(), queued=queued, urgent=options.priority > 0)

    async def replicas_known(self) -> None:
        """Wait for the first usable list of replicas, at most ``discovery.start_timeout_s``. Raises ClientClosed."""
        await self._performer.replicas_known()

    def _heard(self, event: Event) -> None:
        self.events.emit(event)

    def _on_change(self) -> None:
        """Follow who is in the fleet now; let go of connections to who is not, or is to be verified by another name."""
        self.reporting.update(self.fleet.replicas)
        self.checkups.update(self.fleet.replicas)
        self._sender.keep(self.fleet.replicas)
        self.held.wake()  # for those to be closed
        self.queueing.members_changed()

    # -- one call -----------------------------------------------------------------------------------------------

    def demand(self, reading: Reading, options: CallOptions, *, replayable: bool = True) -> Demand:
        """What a call with this reading asks of a replica."""
        session = options.session or reading.session
        return self.fleet.demand(
            fingerprint(reading.prompt, self._secret),
            text_bytes=reading.prompt_bytes,
            extra_tokens=reading.extra_tokens,
            output_limit=reading.output_limit,
            model=reading.model,
            route=reading.dialect,
            session=None if session is None else text_key("session", session),
            prompt_tokens=options.cost,
            blind=not reading.streaming,
            replayable=replayable,
        )

    def send(self, request: Request) -> Awaitable[Answer]:
        """Perform one call, which is begun at once.

        Raises NoReplicas, NoCapacity, QueueTimeout, AttemptsExhausted, DeadlineExceeded; StreamInterrupted comes
        from the answer's body.
        """
        self.start()
        self.reporting.called()
        return self._performer.perform(self._begin(request))

    def _begin(self, request: Request) -> CallUnderWay:
        path = request.target.partition(b"?")[0].decode("ascii", "replace")
        dialect = self._dialect(request.method, path)
        body = request.body
        repeatable = isinstance(body, bytes) and len(body) <= self._http.max_replay_body_bytes
        reading = dialect.read(path, body if isinstance(body, bytes) else b"")
        if reading.streaming:
            request.headers = _unencoded(request.headers)
        options = request.options
        wished = reading.replayable if options.replayable is None else options.replayable
        replayable = repeatable and wished
        began = self.clock()
        self.checkups.called(reading.model, dialect, path, began)
        deadline_at = min(options.deadline_at(began), began + self._http.call_timeout_s)
        report = CallReport(tenant=options.tenant, priority=options.priority)
        return CallUnderWay(
            self.new_id(),
            request,
            dialect,
            reading.streaming,
            self.demand(reading, options, replayable=replayable),
            Attempts(replayable, self._strategies, self._retry_budget, began, deadline_at, self._max_hedges),
            began,
            report,
            deadline_at,
        )

    def _dialect(self, method: str, path: str) -> Dialect:
        """The caller's own before ours."""
        for dialect in self._dialects:
            if dialect.matches(method, path):
                return dialect
        return find(method, path)

    def new_id(self) -> str:
        """A call's id: the client's, and a number."""
        return f"{self._client_id}.{self.new_number()}"

    def new_number(self) -> int:
        """Greater than all before."""
        return next(self._numbers)
