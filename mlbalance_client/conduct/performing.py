"""Conducts one call: does what the attempts machine says, and tells it what came of it.

The first attempt runs in the caller's own task. A second one beside it has a task of its own, which the client owns;
whichever shows content first is delivered, and the other's cancel scope is cancelled. So all that an ordinary call pays
for hedging and timeouts is one cancel scope and one timer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from math import ceil, inf
from typing import Any

import anyio

from ..config import HttpConfig
from ..core.attempts import Attempts, Command, Deliver, GiveUp, Pause, Start, Wait
from ..core.fleet import Fleet, Pick
from ..core.health.outlier import Failure, failure_of
from ..core.hedging import Expected, Hedging
from ..core.model import Demand, ReplicaId, Usage, Verdict
from ..core.placement.picker import Decision
from ..core.report import CallReport
from ..dialects import Dialect, Lacks, Sign
from ..dialects.base import AnswerWatch
from ..dialects.watches import BlindWatch
from ..errors import (
    PASSED,
    AttemptReport,
    AttemptsExhausted,
    BalancerError,
    ClientClosed,
    DeadlineExceeded,
    FailureKind,
    NoCapacity,
    NoReplicas,
    QueueTimeout,
    retold,
)
from ..wire import WireAnswer, WireError, read_hints
from .alarms import Alarm, Alarms
from .answer import AnswerBody, Flow, HeldBody, Stopped
from .held_streams import HeldStreams
from .queueing import Queueing
from .reporting import Reporting
from .roster import Roster
from .sending import Headers, Request, Sender
from .standing import Standing
from .telling import Telling
from .tending import Loop

_RETRY_HEADERS = (b"x-should-retry",)
_TIME_HEADERS = (b"retry-after", b"retry-after-ms")
_DAY_S = 86_400.0


@dataclass(slots=True)
class Answer:
    """An answer as the engine gives it. ``body`` yields raw bytes and must be closed or read to its end."""

    status: int
    headers: Headers
    body: AnswerBody | HeldBody
    extensions: dict[str, Any]
    report: CallReport
    streaming: bool


@dataclass(slots=True, eq=False, kw_only=True)
class Attempt(Standing):
    """One sending of a call, under way. ``moved``: why it is given up for another replica, in words."""

    number: int
    expected: Expected
    acked_by: int
    hedge: bool
    overdue_at: float
    scope: anyio.CancelScope
    flow: Flow | None = None
    overdue: bool = False
    moved: str = ""
    told: bool = False


@dataclass(slots=True, eq=False)
class CallUnderWay:
    """One call in progress. ``scope``: what its caller's task waits in now; ``told``: what to do instead of waiting."""

    id: str
    request: Request
    dialect: Dialect
    streaming: bool
    demand: Demand
    plan: Attempts
    began: float
    report: CallReport
    deadline_at: float = inf
    look_at: float = inf
    attempts: tuple[AttemptReport, ...] = ()
    flows: dict[int, Flow] = field(default_factory=dict)
    running: dict[int, Attempt] = field(default_factory=dict)
    scope: anyio.CancelScope | None = None
    told: Command | None = None
    alarm: Alarm | None = None
    delivered: bool = False
    over: bool = False

    @property
    def main(self) -> Attempt | None:
        """The attempt in the caller's own task, if one is under way."""
        return next((attempt for attempt in self.running.values() if not attempt.hedge), None)

    @property
    def told_in_order(self) -> tuple[AttemptReport, ...]:
        """What there is to report of its attempts that are over, as they were started."""
        return tuple(sorted(self.attempts, key=lambda told: told.number))

    def interrupt(self, command: Command) -> None:
        """Let the caller's task do this instead of what it waits for."""
        self.told = command
        if self.scope is not None:
            self.scope.cancel()


def _content_type(headers: Headers) -> str:
    for name, value in headers:
        if name.lower() == b"content-type":
            return value.decode("latin-1")
    return ""


class Performer:
    """Performs the calls of one client."""

    def __init__(
        self,
        http: HttpConfig,
        fleet: Fleet,
        send: Sender,
        hedging: Hedging,
        queueing: Queueing,
        alarms: Alarms,
        reporting: Reporting,
        roster: Roster,
        held: HeldStreams,
        tell: Telling,
        clock: Callable[[], float],
    ) -> None:
        self._fleet = fleet
        self._send = send
        self._hedging = hedging
        self._queueing = queueing
        self._reporting = reporting
        self._roster = roster
        self._held = held
        self._tell = tell
        self._clock = clock
        self._first_content_s = http.first_content_timeout_s
        self._whole_s = http.call_timeout_s
        self._numbers = count(1)
        self._waiting: set[CallUnderWay] = set()
        self._seconds: dict[Attempt, Loop] = {}
        self._leaving = self._closed = False
        self._make_scope: Callable[[], anyio.CancelScope] = anyio.CancelScope
        self.under_way = 0
        self.alarms = alarms

    def start(self) -> None:
        """In the event loop that will run it, before anything else."""
        # The class of its backend, which anyio would look up for every call.
        self._make_scope = type(anyio.CancelScope())

    def leave(self) -> None:
        """Nobody is to wait for replicas any more; calls that have one go on."""
        self._leaving = True
        self._roster.close()

    async def aclose(self) -> None:
        """End the second attempts and whoever waits for anything but a replica. Idempotent."""
        self._closed = True
        self._queueing.close()
        for call in self._waiting:
            call.interrupt(GiveUp())
        for loop in list(self._seconds.values()):
            await loop.aclose()

    async def replicas_known(self) -> None:
        """Wait for the first usable list of replicas, at most ``discovery.start_timeout_s``. Raises ClientClosed."""
        if self._roster.waiting:
            await self._roster.ready()
            if self._leaving:
                raise ClientClosed("this client was closed during the call")

    async def perform(self, call: CallUnderWay) -> Answer:
        """Send a call until there is an answer.

        Raises NoReplicas, AttemptsExhausted, DeadlineExceeded, ClientClosed.
        """
        command = call.plan.begin() if call.began < call.deadline_at else call.plan.out_of_time()
        self.under_way += 1
        try:
            while True:
                match command:
                    case Deliver(number, exhausted):
                        return self._deliver(call, number, exhausted=exhausted)
                    case GiveUp():
                        raise self._given_up(call)
                    case Start(avoid):
                        command = await self._start(call, avoid)
                    case Pause(until):
                        await self._wait(call, until)
                        command = call.plan.resumed()
                    case Wait():
                        await self._wait(call, inf)
                if call.told is not None:
                    command, call.told = call.told, None
        finally:
            self.under_way -= 1
            call.over = True
            call.scope = None
            if call.alarm is not None:
                self.alarms.cancel(call.alarm)
            if call.running:
                self._leave_others(call, None)
            if call.report.hedged and not call.delivered:
                self._tell.hedge_in_vain(call.id)
            for number, flow in list(call.flows.items()):
                if number not in call.running:  # it was second in the same breath, or its caller has gone
                    await flow.aclose(Verdict.CANCELLED)
            call.flows.clear()  # a flow knows its call: without the circle both go at once, not at the next collection

    # -- attempts -----------------------------------------------------------------------------------------------

    async def _start(self, call: CallUnderWay, avoid: frozenset[ReplicaId]) -> Command:
        """Pick a replica and try it, in the caller's own task."""
        self._check_open()
        first = not call.attempts
        if first and (self._roster.waiting or self._reporting.freshens(call.demand)):
            self._set_alarm(call)
            with anyio.CancelScope() as call.scope:
                await self.replicas_known()
                if self._reporting.freshens(call.demand):
                    await self._reporting.freshen(call.demand)
            if call.told is not None:
                return call.told
            self._check_open()
        now = self._clock()
        acked_by = next(self._numbers)
        try:
            pick = self._queueing.queue.try_pick(
                call.demand, now, avoid, priority=call.request.options.priority, number=acked_by
            )
            if pick is None:
                pick = await self._queued(call, avoid, acked_by)
                if pick is None:
                    return call.told or call.plan.nobody_left()
                now = self._clock()
        except DeadlineExceeded:  # as if its own alarm had been first
            return call.plan.out_of_time()
        except (NoReplicas, NoCapacity, QueueTimeout):
            if first:
                raise
            return call.plan.nobody_left()
        attempt = self._begin(call, pick, acked_by, now, hedge=False)
        call.report.picked(pick)
        if not first:
            self._tell.failed_over(call.id, pick, now, call.attempts[-1])
        else:
            self._hedging.sent(pick)
        self._tell.picked(call.id, pick, attempt.number, call.report, now)
        call.look_at = now + attempt.slow_s
        self._set_alarm(call)
        call.scope = attempt.scope
        return await self._try(call, attempt)

    async def _queued(self, call: CallUnderWay, avoid: frozenset[ReplicaId], acked_by: int) -> Pick | None:
        """Wait for room; None if there is something else to do by then."""
        pick: Pick | None = None
        self._set_alarm(call)
        with anyio.CancelScope() as call.scope:
            pick = await self._queueing.wait(
                call.id,
                call.demand,
                call.request.options,
                call.report,
                deadline=call.deadline_at,
                excluded=avoid,
                number=acked_by,
            )
        if pick is not None and call.told is not None:
            pick.settle(Verdict.FAILED, self._clock())  # nothing was sent
            pick = None
        return pick

    def _begin(self, call: CallUnderWay, pick: Pick, acked_by: int, now: float, *, hedge: bool) -> Attempt:
        number = call.plan.started(pick.replica.id, hedge=hedge)
        overdue_at = inf if call.demand.blind else now + self._first_content_s
        expected = self._hedging.expect(pick)
        slow_s = self._hedging.slow_after_s(expected)
        attempt = Attempt(
            pick=pick,
            began=now,
            slow_s=slow_s,
            looked_at=now,
            number=number,
            expected=expected,
            acked_by=acked_by,
            hedge=hedge,
            overdue_at=overdue_at,
            scope=self._make_scope(),
        )
        call.running[number] = attempt
        return attempt

    async def _try(self, call: CallUnderWay, attempt: Attempt) -> Command:
        """One attempt to its end, up to the commit point; Wait if it was cancelled by us, or another was first."""
        command: Command = _WAIT
        try:
            with attempt.scope:
                command = await self._exchange(call, attempt)
        finally:
            call.running.pop(attempt.number, None)
        if attempt.moved and command is _WAIT:
            command = call.plan.moved(attempt.number)
        elif attempt.overdue and command is _WAIT:
            attempt.pick.failed(self._clock(), kind=Failure.SILENT)
            command = self._failed(call, attempt, FailureKind.FIRST_CONTENT_TIMEOUT)
        return command

    async def _exchange(self, call: CallUnderWay, attempt: Attempt) -> Command:
        try:
            resending = call.plan if call.plan.replayable else None
            answer = await self._send.open(call.request, attempt.pick, attempt.acked_by, resending)
            self._reporting.overheard(attempt.pick.replica.id, answer.headers)
            attempt.pick.answered(self._clock())
            attempt.flow = self._flow(call, attempt, answer)
            self._held.add(attempt.flow)
            call.flows[attempt.number] = attempt.flow
            command = await self._until_commit(call, attempt, attempt.flow)
        except WireError as error:
            await self._drop(call, attempt, Verdict.FAILED)
            if self._closed:
                self._ended(call, attempt, failure=FailureKind.CANCELLED)
                raise ClientClosed("this client was closed during the call") from error
            if (failure := failure_of(error.kind)) is not None:
                attempt.pick.failed(self._clock(), kind=failure)
            self._ended(call, attempt, failure=error.kind, detail=str(error))
            return self._failed(call, attempt, error.kind)
        except BaseException as error:
            if isinstance(error, anyio.get_cancelled_exc_class()):
                self._cut_short(attempt)
            overdue, winner = attempt.overdue, call.plan.winner
            await self._drop(call, attempt, Verdict.FAILED if overdue else Verdict.CANCELLED)
            kind, detail = FailureKind.CANCELLED, _beaten_by(winner)
            if attempt.moved:
                kind, detail = FailureKind.SILENT, attempt.moved
            elif overdue:
                kind, detail = (
                    FailureKind.FIRST_CONTENT_TIMEOUT,
                    f"no content within {self._first_content_s:g} s (http.first_content_timeout_s)",
                )
            self._ended(call, attempt, failure=kind, detail=detail)
            raise
        self._ended(call, attempt, status=attempt.flow.wire.status)
        return command

    def _failed(self, call: CallUnderWay, attempt: Attempt, kind: FailureKind) -> Command:
        now = self._clock()
        others = self._fleet.others(call.demand, call.plan.tried, now)
        return call.plan.failed(attempt.number, kind, now, others=others)

    async def _until_commit(self, call: CallUnderWay, attempt: Attempt, flow: Flow) -> Command:
        status = flow.wire.status
        if status >= 400:
            return await self._refused(call, attempt, flow, status)
        sign = await flow.until_commit()
        if sign is Sign.CONTENT and call.streaming and _says_nothing(flow):
            raise WireError(FailureKind.PROTOCOL, "the stream ended without content or the mark of an end")
        # Nothing of it was handed on yet: what breaks or is an error goes elsewhere like any other.
        held = sign is Sign.CONTENT and flow.blind and not flow.commits_at_head and await flow.hold()
        if held and flow.in_band_error is not None:
            sign = Sign.ERROR
        if sign is Sign.CONTENT:
            now = self._clock()
            if not flow.blind:
                flow.pick.first_content(now)
            tokens = flow.ending.usage.output_tokens if flow.ending and flow.ending.usage else None
            self._hedging.answered(attempt.expected, now - attempt.began, now, tokens)
            command = call.plan.content(attempt.number)
            if _delivers(command, attempt.number):
                call.report.ttft_s = now - call.began
            if held:
                flow.finish()
            return command
        error = flow.in_band_error
        return await self._refused(call, attempt, flow, error.status if error is not None else 0)

    async def _refused(self, call: CallUnderWay, attempt: Attempt, flow: Flow, status: int) -> Command:
        held = flow.whole
        if not held:
            with anyio.move_on_after(_TEXT_WITHIN_S) as text:
                held = await flow.hold()
            held = held or text.cancelled_caught  # what has come of it will do: the status tells what to do
        if held:
            await flow.aclose(Verdict.FAILED)
        now = self._clock()
        hints = read_hints(flow.wire.headers, time.time())
        error = flow.in_band_error
        lacks = None if error is None else error.lacks(status)
        if lacks is Lacks.MODEL:
            attempt.pick.lacks_model(now)
        else:
            flow.speaks_against_its_replica(status, hints.after_s)
        others = self._fleet.others(call.demand, call.plan.tried, now)
        command = call.plan.refused(
            *(attempt.number, status, now),
            held=held,
            hints=hints,
            others=others,
            lacks_model=lacks is not None,
        )
        # Before it is closed: a second attempt that fails meanwhile cuts that short with its command.
        self._ended(
            *(call, attempt),
            status=status or flow.wire.status,
            failure=FailureKind.IN_BAND if flow.wire.status < 400 else None,
            detail="" if error is None else error.message,
        )
        if not held and not _delivers(command, attempt.number):
            call.flows.pop(attempt.number, None)
            await flow.aclose(Verdict.FAILED)
        return command

    # -- second attempts ----------------------------------------------------------------------------------------

    def _set_alarm(self, call: CallUnderWay) -> None:
        at = min(call.deadline_at, call.look_at)
        for attempt in call.running.values():
            at = min(at, attempt.overdue_at)
        if call.alarm is not None:
            if call.alarm[0] <= at:
                return  # it will look again then
            self.alarms.cancel(call.alarm)
        call.alarm = self.alarms.set(at, partial(self._on_alarm, call)) if at < inf else None

    def _on_alarm(self, call: CallUnderWay) -> None:
        call.alarm = None
        if call.over:
            return
        now = self._clock()
        if now >= call.deadline_at:
            call.interrupt(call.plan.out_of_time())
            return
        for attempt in list(call.running.values()):
            if now >= attempt.overdue_at:
                attempt.overdue, attempt.overdue_at = True, inf
                attempt.scope.cancel()
        if now >= call.look_at:
            self._look(call, now)
        self._set_alarm(call)

    def _look(self, call: CallUnderWay, now: float) -> None:
        """A call is slow: that speaks against its replica. Hedge it or move it, if that is of use; else look again."""
        first = call.main or next(iter(call.running.values()), None)
        call.look_at = inf
        if first is None or self._closed:
            return
        if (seen_at := self.alarms.seen_at(first.began, first.slow_s, now)) > now:
            call.look_at = seen_at  # or it is a second one that is left alone
            return
        call.look_at = first.found_slow(now)
        may_hedge, may_move = call.plan.may_hedge, call.plan.may_move(now)
        decision: Decision | None = None
        if may_hedge or may_move:
            decision = self._fleet.alternative(call.demand, call.plan.tried, now)
        stood_s, left_s = now - first.began, call.deadline_at - now
        if not may_hedge:
            why_not = _NOT_TWICE  # or it has been hedged already
        elif decision is None:
            why_not = _NOBODY
        else:
            wish = call.request.options.hedge
            why_not = self._hedging.why_not(decision, call.demand, stood_s, left_s, wish)
        if not call.report.hedged:
            call.report.not_hedged = why_not
        if decision is None:
            return
        if not why_not:
            self._hedge(call, first, decision, now)
        elif call.plan.may_move(now) and (why := self._why_move(first, decision, now, left_s)):
            # Not a second attempt, whose size is bounded, but another instead.
            if first.pick.mute:
                self._fleet.fitness.outliers.silences.left(first.pick.place)
            call.plan.begin_move()
            first.overdue, first.moved = True, why
            first.scope.cancel()

    def _why_move(self, first: Attempt, decision: Decision, now: float, left_s: float) -> str:
        """Why a slow call is to go to the chosen replica instead, in words; nothing if it is to stay."""
        outliers, pick = self._fleet.fitness.outliers, first.pick
        if (ejection := outliers.ejection(pick.place)) is not None:
            return f"it was ejected meanwhile: {ejection.why}"
        stood_s = now - first.began
        stood_long = first.long(now) or outliers.silences.doubts(pick.place)
        if stood_long and pick.mute and self._hedging.sooner(decision, pick.demand, stood_s, left_s):
            return f"it began no answer for {stood_s:.1f} s, while others did"
        return ""

    def _hedge(self, call: CallUnderWay, first: Attempt, decision: Decision, now: float) -> None:
        """Start a second attempt."""
        self._hedging.begun(call.demand)
        acked_by = next(self._numbers)
        pick = self._fleet.take(decision, call.demand, now, number=acked_by)
        attempt = self._begin(call, pick, acked_by, now, hedge=True)
        call.report.hedged = True
        self._tell.hedged(call.id, pick, attempt.number, first.pick.replica.id, now - first.began, now)
        self._tell.picked(call.id, pick, attempt.number, call.report, now)
        self._seconds[attempt] = Loop("hedge", partial(self._second, call, attempt))

    async def _second(self, call: CallUnderWay, attempt: Attempt) -> None:
        """A second attempt, in a task of its own."""
        try:
            command = await self._try(call, attempt)
        except Exception as error:
            self._ended(call, attempt, failure=FailureKind.PROTOCOL, detail=str(error))
            command = self._failed(call, attempt, FailureKind.PROTOCOL)
        finally:
            self._seconds.pop(attempt, None)
        if call.over:  # its caller has gone in this very moment
            await self._drop(call, attempt, Verdict.CANCELLED)
        elif command != _WAIT:
            call.interrupt(command)
        elif call.plan.may_hedge:  # it failed, and the first goes on
            call.look_at = self._clock()
            self._set_alarm(call)

    def _leave_others(self, call: CallUnderWay, winner: int | None) -> None:
        """Cancel the attempts that have lost, and note their end now: theirs comes when the call has gone on."""
        for attempt in list(call.running.values()):
            if attempt.number != winner:
                self._ended(call, attempt, failure=FailureKind.CANCELLED, detail=_beaten_by(winner))
                attempt.scope.cancel()

    async def _wait(self, call: CallUnderWay, until: float) -> None:
        """Until then, or until there is something to do."""
        self._check_open()
        self._waiting.add(call)
        self._set_alarm(call)
        try:
            with anyio.CancelScope() as call.scope:
                await anyio.sleep(max(0.0, until - self._clock()))
        finally:
            self._waiting.discard(call)
        self._check_open()

    def _flow(self, call: CallUnderWay, attempt: Attempt, answer: WireAnswer) -> Flow:
        status = answer.status
        watch: AnswerWatch = BlindWatch()
        if status < 300 or status >= 400:  # a redirect's body is not the API's
            watch = call.dialect.watch(status, _content_type(answer.headers))
        return Flow(
            attempt.number,
            attempt.pick,
            answer,
            watch,
            call.report,
            self._clock,
            partial(self._on_end, call),
            blind=call.demand.blind,
            ends_by=call.began + self._whole_s,
        )

    # -- what became of it --------------------------------------------------------------------------------------

    def _deliver(self, call: CallUnderWay, number: int, *, exhausted: bool) -> Answer:
        flow = call.flows[number]
        if flow.stopped is not None:
            raise ClientClosed("this client was closed during the call")
        del call.flows[number]
        self._leave_others(call, number)
        report = call.report
        report.attempts = call.told_in_order
        if report.hedged:
            self._tell_of_hedge(call, number, flow.pick)
        elif len(report.attempts) > 1:
            report.picked(flow.pick, number)  # it may be an earlier answer, held while others were tried
        call.delivered = True
        headers = flow.wire.headers
        if exhausted:
            report.gave_up = call.plan.why_ended
            headers = self._final(headers, call)
        body: AnswerBody | HeldBody
        if flow.settled:
            body = HeldBody(flow.buffered)
            if not flow.whole:
                headers = [pair for pair in headers if pair[0].lower() != b"content-length"]
            report.total_s = self._clock() - call.began
        else:
            body = self._held.hand_out(flow)
            # All else that there is of the call may go: with many streams the collector would visit it often.
            flow.on_end = partial(self._on_delivered_end, call.id, call.began)
        extensions = {**flow.wire.extensions, "mlbalance": report}
        return Answer(flow.wire.status, headers, body, extensions, report, call.streaming)

    def _tell_of_hedge(self, call: CallUnderWay, winner: int, pick: Pick) -> None:
        won = call.plan.is_hedge(winner)
        call.report.picked(pick, winner)
        call.report.hedge_won = won
        self._tell.hedge_ended(call.id, pick, winner, won=won)

    def _final(self, headers: Headers, call: CallUnderWay) -> Headers:
        """The headers of a failure that was given up on: no SDK is to try it again, and when it may be."""
        kept = [
            pair for pair in headers if pair[0].lower() not in _RETRY_HEADERS and not _names_no_time(pair)
        ]
        kept.append((b"x-should-retry", b"false"))
        if not any(name.lower() == b"retry-after" for name, _ in kept):
            opens_in_s = self._fleet.opens_in_s(call.demand, self._clock())
            kept.append((b"retry-after", b"%d" % max(1, ceil(opens_in_s))))
        return kept

    def _given_up(self, call: CallUnderWay) -> BalancerError:
        self._check_open()
        now = self._clock()
        if now >= call.deadline_at:
            within_s = call.deadline_at - call.began
            if within_s <= 0:
                return DeadlineExceeded(PASSED)
            wished_s = call.request.options.deadline_s
            whose = (
                "deadline_s" if wished_s is not None and wished_s <= self._whole_s else "http.call_timeout_s"
            )
            return DeadlineExceeded(f"no answer began within {within_s:g} s ({whose}){self._so_far(call)}")
        rests_s = self._fleet.opens_in_s(call.demand, now)
        error = AttemptsExhausted(call.told_in_order, retry_after_s=rests_s or None, why=call.plan.why_ended)
        self._tell.given_up(call.id, error)
        return error

    def _so_far(self, call: CallUnderWay) -> str:
        """What a call has come to by now, in words."""
        self._leave_others(call, None)
        if call.attempts:
            return f": {retold(call.told_in_order)}"
        if self._roster.waiting:
            return f": no replica is known: {self._fleet.nobody}"
        if not (waited_for := call.report.queued_for):
            return ": it was not placed by then"
        kept = self._fleet.kept_from(call.demand, call.plan.tried, self._clock())
        return f": it waited for {waited_for}{kept}"

    def _cut_short(self, attempt: Attempt) -> None:
        flow = attempt.flow
        if flow is None or flow.wire.status < 400:
            now = self._clock()
            self._hedging.cut_short(attempt.expected, now - attempt.began, now)
            attempt.pick.cut_short(now)

    async def _drop(self, call: CallUnderWay, attempt: Attempt, verdict: Verdict) -> None:
        """Settle an attempt that is not delivered, and close its connection."""
        call.flows.pop(attempt.number, None)
        if attempt.flow is not None:
            await attempt.flow.aclose(verdict)
        elif call.running.pop(attempt.number, None) is not None:
            attempt.pick.settle(verdict, self._clock())
            self._settled(call, attempt.number, attempt.pick, verdict, None)

    def _on_end(self, call: CallUnderWay, flow: Flow, verdict: Verdict, usage: Usage | None) -> None:
        self._held.remove(flow)
        self._settled(call, flow.number, flow.pick, verdict, usage)

    def _on_delivered_end(
        self, call_id: str, began: float, flow: Flow, verdict: Verdict, usage: Usage | None
    ) -> None:
        self._held.remove(flow)
        failure: FailureKind | None = None
        if verdict is not Verdict.OK and (broken := _how_it_broke(flow, verdict)) is not None:
            failure, detail = broken
            error = flow.in_band_error
            self._tell.interrupted(
                *(call_id, flow.pick, flow.number, flow.report),
                delivered=flow.delivered,
                failure=failure,
                detail=detail,
                status=None if error is None or failure is not FailureKind.IN_BAND else error.status,
            )
        self._tell.settled(call_id, flow.pick, flow.report, began, verdict, usage, failure=failure)

    def _settled(
        self, call: CallUnderWay, number: int, pick: Pick, verdict: Verdict, usage: Usage | None
    ) -> None:
        # Of several attempts the winner has the last word, whichever is settled last.
        winner = call.plan.winner
        counts = verdict is Verdict.OK or not call.report.hedged if winner is None else number == winner
        self._tell.settled(call.id, pick, call.report, call.began, verdict, usage, counts=counts)

    def _ended(self, call: CallUnderWay, attempt: Attempt, **how: Any) -> None:
        if not attempt.told:
            attempt.told = True
            told = self._tell.ended(
                call.id, attempt.pick, attempt.number, call_began=call.began, began=attempt.began, **how
            )
            call.attempts += (told,)

    def _check_open(self) -> None:
        if self._closed:
            raise ClientClosed("this client was closed during the call")


_WAIT = Wait()
_NOT_TWICE = "it may not be sent twice"
_NOBODY = "no other replica that it had not been sent to took calls and had room"
# For the text of an error, which is short and there when its status is; one who cannot send it hangs.
_TEXT_WITHIN_S = 1.0


def _beaten_by(winner: int | None) -> str:
    return "" if winner is None else f"attempt {winner} answered first"


def _how_it_broke(flow: Flow, verdict: Verdict) -> Stopped | None:
    """What ended an answer that was being read, None if its reader did."""
    if flow.stopped is not None:
        return None if flow.closed else flow.stopped
    if verdict is not Verdict.FAILED:
        return None
    if (broke := flow.wire.broke) is not None:
        return Stopped(*broke)
    if (error := flow.in_band_error) is not None:
        # A failing answer that was too large to be held is one, and has not broken off.
        failing = flow.wire.status >= 400 or flow.blind or flow.first is Sign.ERROR
        return None if failing else Stopped(FailureKind.IN_BAND, error.message)
    return Stopped(FailureKind.READ, "the connection was closed before its end")


def _says_nothing(flow: Flow) -> bool:
    """Whether an answer is a stream of events that has ended in its preamble, and not as an empty answer does."""
    ending = flow.ending
    if ending is None or ending.complete or ending.error or not flow.buffered:
        return False  # of no event at all: Triton's models may have nothing to say
    return _content_type(flow.wire.headers).lower().startswith("text/event-stream")


def _names_no_time(header: tuple[bytes, bytes]) -> bool:
    """Whether a header is to name a time to come again, and nobody can read it or would wait so long."""
    if header[0].lower() not in _TIME_HEADERS:
        return False
    after_s = read_hints([header], time.time()).after_s
    return after_s is None or after_s > _DAY_S


def _delivers(command: Command, number: int) -> bool:
    """Whether it is this attempt's answer that is delivered."""
    return isinstance(command, Deliver) and command.number == number
