"""Performs calls: asks the core what to do, does it on the wire, and tells the core what came of it.

One call: body -> dialect -> fingerprint and demand -> attempts machine -> pick and charge, with no await between ->
wire -> commit point -> the body flows to the caller -> settled once, whatever the way out.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakMethod

import anyio

from .answer import AnswerBody, Flow, HeldBody
from .calls import NO_WISHES, CallOptions
from .config import BalancerConfig
from .core.attempts import RETRIED_STATUSES, Attempts, Command, Deliver, GiveUp, Start
from .core.fingerprint import fingerprint, text_key
from .core.fleet import Fleet, Pick
from .core.model import Demand, Replica, Usage, Verdict
from .core.pushback import Pushback
from .core.report import CallReport, Explanation, FleetSnapshot, explain, snapshot
from .dialects import Dialect, Reading, Sign, find
from .errors import AttemptReport, AttemptsExhausted, ClientClosed, DeadlineExceeded, FailureKind, NoReplicas
from .events import EventStream, log_events
from .held_streams import HeldStreams
from .reporting import Reporting
from .roster import Roster
from .telling import Telling
from .tending import EventLoop, Loop
from .wire import Origin, Timeouts, Wire, WireAnswer, WireError, WireOptions, WireRequest, retry_after_s

Headers = list[tuple[bytes, bytes]]


@dataclass(slots=True)
class Request:
    """A call as the engine takes it. ``target``: path and query within the fleet; ``host``: None for the replica's."""

    method: str
    target: bytes
    headers: Headers
    body: bytes | AsyncIterable[bytes]
    options: CallOptions = NO_WISHES
    timeouts: Timeouts | None = None
    extensions: dict[str, Any] = field(default_factory=dict)
    host: bytes | None = None


@dataclass(slots=True)
class Answer:
    """An answer as the engine gives it. ``body`` yields raw bytes and must be closed or read to its end."""

    status: int
    headers: Headers
    body: AnswerBody | HeldBody
    extensions: dict[str, Any]
    report: CallReport
    streaming: bool


@dataclass(slots=True)
class _Call:
    """One call in progress."""

    id: str
    request: Request
    dialect: Dialect
    streaming: bool
    demand: Demand
    plan: Attempts
    began: float
    report: CallReport
    attempts: list[AttemptReport] = field(default_factory=list)
    flows: dict[int, Flow] = field(default_factory=dict)


def _unencoded(headers: Headers) -> Headers:
    """A stream must pass as it comes, so nobody may compress it on the way."""
    return [pair for pair in headers if pair[0].lower() != b"accept-encoding"] + [
        (b"Accept-Encoding", b"identity")
    ]


def _content_type(headers: Headers) -> str:
    for name, value in headers:
        if name.lower() == b"content-type":
            return value.decode("latin-1")
    return ""


def _call_weakly(method: WeakMethod[Callable[[], None]]) -> None:
    if (alive := method()) is not None:
        alive()


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
        self._rng = Random(config.seed)
        rests = config.outlier_detection
        self.fleet = Fleet(
            config.picking,
            self._rng,
            Pushback(rests.rest_base_s, rests.rest_max_s),
            expiry_s=config.load_reports.expiry_s,
            published=Reporting.shared().table,
        )
        self.clock = clock
        self._client_id = ""
        self._numbers = count(1)
        self._attempts = count(1)
        self._dialects = tuple(dialects)
        secret = config.picking.fingerprint_secret
        self._secret = None if secret is None else secret.get_secret_value().encode()
        options = wire or WireOptions(keepalive_expiry_s=config.http.keepalive_expiry_s)
        self.wire = Wire(options)
        self._origins: dict[tuple[str, str | None], tuple[Origin, bytes, bytes]] = {}
        self._timeouts = Timeouts(
            config.http.connect_timeout_s, config.http.read_timeout_s, config.http.write_timeout_s
        )
        self.reporting = Reporting(
            config.load_reports, self.fleet, self.wire, clock, keyed=self._secret is not None
        )
        self.tell = Telling(self.events, clock)
        self.held = HeldStreams(self.wire, clock, config.http.max_unread_s, config.http.keepalive_expiry_s)
        changed = partial(_call_weakly, WeakMethod(self._on_change))
        self._roster = Roster(config.discovery, self.fleet, self.events, Random(config.seed), clock, changed)
        self._loops: list[Loop] = []
        self._started = False
        self._closed = False

    # -- life ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the background loops; happens by itself at the first call."""
        if self._closed:
            raise ClientClosed("this client is closed")
        if not self._started:
            self._started = True
            if self.config.seed is None:
                self._rng.seed()  # anew: made before a fork, it would draw the same in every child
            self._client_id = f"{self._rng.getrandbits(40):010x}"
            self.reporting.start(self._client_id, int(self._client_id, 16))
            self.held.start(EventLoop())
            self._loops.append(Loop("streams", self.held.tend, owner=self))
            self._loops += self._roster.start(owner=self)
            if self.reporting.runs:
                self._loops.append(Loop("load reports", self.reporting.run, owner=self))

    async def aclose(self) -> None:
        """End the loops, the open streams and the connections. Idempotent; any task of the loop may call it."""
        self._closed = True
        self._roster.close()
        for loop in self._loops:
            loop.cancel()
        # A cancel of asyncio's own comes through any shield, but once: what it interrupts must not keep the rest.
        try:
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
        return snapshot(self.fleet, now, self.config.picking.policy)

    def explain(self, path: str, body: bytes, options: CallOptions) -> Explanation:
        """Which replica a call would go to now, and why; nothing is charged. Raises NoReplicas."""
        reading = self._dialect("POST", path).read(path, body)
        demand = self.demand(reading, options)
        return explain(demand, self.fleet.choose(demand, self.clock()))

    async def replicas_known(self) -> None:
        """Wait for the first usable list of replicas, at most ``discovery.start_timeout_s``. Raises ClientClosed."""
        if self._roster.waiting:
            await self._roster.ready()
            if self._closed:
                raise ClientClosed("this client was closed during the call")

    def _on_change(self) -> None:
        """Follow who is in the fleet now; let go of connections to who is not, or is to be verified by another name."""
        self.reporting.update(self.fleet.replicas)
        here = {(replica.url, replica.tls_name) for replica in self.fleet.replicas}
        gone = [self._origins.pop(place)[0] for place in list(self._origins) if place not in here]
        kept = {origin for origin, _, _ in self._origins.values()}
        for origin in gone:
            if origin not in kept:
                self.wire.forget(origin)
        self.held.wake()  # for those to be closed

    # -- one call -----------------------------------------------------------------------------------------------

    def demand(self, reading: Reading, options: CallOptions) -> Demand:
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
        )

    async def send(self, request: Request) -> Answer:
        """Perform one call.

        Raises NoReplicas, AttemptsExhausted, DeadlineExceeded; StreamInterrupted comes from the answer's body.
        """
        self.start()
        self.reporting.called()
        call = self._begin(request)
        deadline_s = request.options.deadline_s
        if deadline_s is None:
            return await self._perform(call)
        with anyio.move_on_after(deadline_s):
            return await self._perform(call)
        match call.plan.out_of_time():
            case Deliver(number, exhausted):
                return self._deliver(call, number, exhausted=exhausted)
            case _:
                raise DeadlineExceeded(f"no answer began within {deadline_s} s")

    def _begin(self, request: Request) -> _Call:
        path = request.target.partition(b"?")[0].decode("ascii", "replace")
        dialect = self._dialect(request.method, path)
        body = request.body
        repeatable = isinstance(body, bytes) and len(body) <= self.config.http.max_replay_body_bytes
        reading = dialect.read(path, body if isinstance(body, bytes) else b"")
        if reading.streaming:
            request.headers = _unencoded(request.headers)
        options = request.options
        wished = reading.replayable if options.replayable is None else options.replayable
        return _Call(
            id=self.new_id(),
            request=request,
            dialect=dialect,
            streaming=reading.streaming,
            demand=self.demand(reading, options),
            plan=Attempts(repeatable and wished, self.config.retries.max_attempts),
            began=self.clock(),
            report=CallReport(tenant=options.tenant, priority=options.priority),
        )

    def _dialect(self, method: str, path: str) -> Dialect:
        """The caller's own before ours."""
        for dialect in self._dialects:
            if dialect.matches(method, path):
                return dialect
        return find(method, path)

    def new_id(self) -> str:
        """A call's id: the client's, and a number."""
        return f"{self._client_id}.{next(self._numbers)}"

    async def _perform(self, call: _Call) -> Answer:
        if self._roster.waiting:
            await self.replicas_known()
        command = call.plan.begin()
        previous: AttemptReport | None = None
        while True:
            match command:
                case Start(avoid):
                    try:
                        if not call.attempts and self.reporting.freshens(call.demand):
                            await self.reporting.freshen(call.demand)
                        number = next(self._attempts)
                        pick = self.fleet.pick(call.demand, self.clock(), avoid, number=number)
                    except NoReplicas:
                        if not call.attempts:
                            raise
                        command = call.plan.nobody_left()
                        continue
                    command = await self._attempt(call, pick, number, previous)
                    previous = call.attempts[-1] if call.attempts else None
                case Deliver(number, exhausted):
                    return self._deliver(call, number, exhausted=exhausted)
                case GiveUp():
                    raise AttemptsExhausted(call.attempts)

    async def _attempt(
        self, call: _Call, pick: Pick, acked_by: int, previous: AttemptReport | None
    ) -> Command:
        number = len(call.attempts) + 1
        call.plan.started(pick.replica.id)
        call.report.picked(pick)
        began = self.clock()
        if previous is not None:
            self.tell.failed_over(call.id, pick, began, previous)
        self.tell.picked(call.id, pick, number, call.report, began)
        flow: Flow | None = None
        try:
            answer = await self._open_wire(call, pick, acked_by)
            self.reporting.overheard(pick.replica.id, answer.headers)
            flow = self._flow(call, number, pick, answer)
            self.held.add(flow)
            command = await self._until_commit(call, flow)
        except WireError as error:
            if flow is not None:
                await flow.aclose(Verdict.FAILED)
            else:
                self._settle_unanswered(call, pick, Verdict.FAILED)
            call.flows.pop(number, None)
            if self._closed:
                self._ended(call, pick, number, began, failure=FailureKind.CANCELLED)
                raise ClientClosed("this client was closed during the call") from error
            if error.kind is not FailureKind.REQUEST:
                pick.failed(self.clock())
            self._ended(call, pick, number, began, failure=error.kind, detail=str(error))
            return call.plan.failed(error.kind)
        except BaseException:
            if flow is not None:
                await flow.aclose(Verdict.CANCELLED)
                call.flows.pop(number, None)
            else:
                self._settle_unanswered(call, pick, Verdict.CANCELLED)
            self._ended(call, pick, number, began, failure=FailureKind.CANCELLED)
            raise
        self._ended(call, pick, number, began, status=flow.wire.status)
        return command

    def _open_wire(self, call: _Call, pick: Pick, acked_by: int) -> Awaitable[WireAnswer]:
        request = call.request
        origin, authority, prefix = self._origin(pick.replica)
        headers = [
            (b"Host", request.host or authority),
            *request.headers,
            *self.reporting.asks(pick, acked_by),
        ]
        return self.wire.open(
            origin,
            WireRequest(
                method=request.method.encode("ascii"),
                target=prefix + request.target,
                headers=headers,
                body=request.body,
                timeouts=request.timeouts or self._timeouts,
                extensions=request.extensions,
                on_resend=call.plan.sent_again if call.plan.may_send_again else None,
            ),
        )

    def _origin(self, replica: Replica) -> tuple[Origin, bytes, bytes]:
        place = replica.url, replica.tls_name
        known = self._origins.get(place)
        if known is None:
            parts = urlsplit(replica.url)
            origin = Origin.from_url(*place)
            known = (origin, parts.netloc.encode("ascii"), parts.path.rstrip("/").encode("ascii"))
            self._origins[place] = known
        return known

    def _flow(self, call: _Call, number: int, pick: Pick, answer: WireAnswer) -> Flow:
        watch = call.dialect.watch(answer.status, _content_type(answer.headers))
        return Flow(
            number,
            pick,
            answer,
            watch,
            call.report,
            self.clock,
            partial(self._on_end, call),
            blind=call.demand.blind,
        )

    async def _until_commit(self, call: _Call, flow: Flow) -> Command:
        call.flows[flow.number] = flow
        status = flow.wire.status
        if status >= 400:
            return await self._refused(call, flow, status)
        sign = await flow.until_commit()
        if sign is Sign.CONTENT:
            now = self.clock()
            call.report.ttft_s = now - call.began
            if not flow.blind:
                flow.pick.first_content(now)
            elif not flow.commits_at_head and await flow.hold():
                # Nothing of it was handed on yet: what breaks or is an error goes elsewhere like any other.
                flow.finish()
                sign = Sign.CONTENT if flow.in_band_error is None else Sign.ERROR
        if sign is Sign.CONTENT:
            return call.plan.content(flow.number)
        error = flow.in_band_error
        return await self._refused(call, flow, error.status if error is not None else 0)

    async def _refused(self, call: _Call, flow: Flow, status: int) -> Command:
        held = flow.whole or await flow.hold()
        if not held and not self.fleet.serves(call.demand, call.plan.tried):
            return call.plan.content(flow.number)
        if status in RETRIED_STATUSES:
            flow.pick.failed(self.clock(), retry_after_s(flow.wire.headers, time.time()))
        command = call.plan.refused(flow.number, status, held=held)
        if held or isinstance(command, Start):
            await flow.aclose(Verdict.FAILED)
        return command

    def _deliver(self, call: _Call, number: int, *, exhausted: bool) -> Answer:
        flow = call.flows[number]
        call.flows.clear()  # a flow knows its call: without the circle both go at once, not at the next collection
        call.report.attempts = tuple(call.attempts)
        headers = flow.wire.headers
        if exhausted:
            headers = [pair for pair in headers if pair[0].lower() != b"x-should-retry"]
            headers.append((b"x-should-retry", b"false"))
        body: AnswerBody | HeldBody
        if flow.settled:
            body = HeldBody(flow.buffered)
            call.report.total_s = self.clock() - call.began
        else:
            body = self.held.hand_out(flow)
        extensions = {**flow.wire.extensions, "mlbalance": call.report}
        return Answer(flow.wire.status, headers, body, extensions, call.report, call.streaming)

    # -- what became of it --------------------------------------------------------------------------------------

    def _on_end(self, call: _Call, flow: Flow, verdict: Verdict, usage: Usage | None) -> None:
        self.held.remove(flow)
        self.tell.settled(call.id, flow.pick, call.report, call.began, verdict, usage)

    def _settle_unanswered(self, call: _Call, pick: Pick, verdict: Verdict) -> None:
        """Settle a pick whose replica gave no head of an answer."""
        pick.settle(verdict, self.clock())
        self.tell.settled(call.id, pick, call.report, call.began, verdict, None)

    def _ended(self, call: _Call, pick: Pick, number: int, began: float, **how: Any) -> None:
        told = self.tell.ended(call.id, pick, number, call_began=call.began, began=began, **how)
        call.attempts.append(told)
