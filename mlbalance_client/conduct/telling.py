"""Tells whoever listens what becomes of calls, and notes it in their reports."""

from __future__ import annotations

from collections.abc import Callable

from ..core.fleet import Pick
from ..core.model import Usage, Verdict
from ..core.report import CallReport, reason
from ..errors import AttemptReport, AttemptsExhausted, BalancerError, FailureKind, NoCapacity
from ..events import (
    AttemptEnded,
    AttemptStarted,
    EventStream,
    FailedOver,
    GivenUp,
    HedgeEnded,
    HedgeStarted,
    Interrupted,
    Picked,
    Pulled,
    Queued,
    Settled,
    Shed,
)


class Telling:
    """One client's. Events of every call are made only if somebody wants them."""

    def __init__(self, events: EventStream, clock: Callable[[], float]) -> None:
        self._events = events
        self._clock = clock

    def picked(self, call: str, pick: Pick, number: int, report: CallReport, now: float) -> None:
        """Attempt ``number`` of a call goes to the picked replica."""
        if not self._events:
            return
        replica, emit = pick.replica, self._events.emit
        emit(
            Picked(
                at=now,
                call=call,
                attempt=number,
                replica=replica.id,
                reason=reason(pick.decision),
                prompt_tokens=pick.demand.prompt_tokens,
                predicted_hit_tokens=pick.decision.chosen.hit_tokens,
                candidates=len(pick.decision.compared.hits),
                tenant=report.tenant,
                priority=report.priority,
            )
        )
        emit(AttemptStarted(now, call, number, replica.id, replica.url))

    def queued(self, call: str, report: CallReport, now: float, waiting: int) -> None:
        """A call waits for room, one of ``waiting``."""
        if self._events:
            self._events.emit(Queued(now, call, waiting, report.tenant, report.priority))

    def pulled(self, call: str, report: CallReport, now: float, waited_s: float, pick: Pick) -> None:
        """A replica with room took a call that waited."""
        if self._events:
            self._events.emit(Pulled(now, call, pick.replica.id, waited_s, report.tenant, report.priority))

    def shed(
        self, call: str, report: CallReport, now: float, waited_s: float, error: BalancerError | None
    ) -> None:
        """A call gets no room. ``error``: None if its caller has gone."""
        if self._events:
            retry_after_s = error.retry_after_s if isinstance(error, NoCapacity) else None
            kind = str(FailureKind.CANCELLED) if error is None else type(error).__name__
            self._events.emit(Shed(now, call, kind, waited_s, retry_after_s, report.tenant, report.priority))

    def failed_over(self, call: str, pick: Pick, now: float, previous: AttemptReport) -> None:
        """A call goes to the picked replica after another has failed it."""
        why = str(previous.failure or previous.status)
        if previous.failure is FailureKind.IN_BAND:
            why = f"{why} {previous.status}"
        left, taken, detail = previous.replica, pick.replica.id, previous.detail
        self._events.emit(FailedOver(now, call, previous.number, left, taken, why, detail))

    def hedged(self, call: str, pick: Pick, number: int, slow: str, after_s: float, now: float) -> None:
        """A call goes to the picked replica as well, since ``slow`` has not begun to answer for ``after_s``."""
        self._events.emit(HedgeStarted(now, call, number, slow, pick.replica.id, after_s))

    def hedge_ended(self, call: str, pick: Pick, number: int, *, won: bool) -> None:
        """A hedged call is answered by the picked replica."""
        self._events.emit(HedgeEnded(self._clock(), call, number, pick.replica.id, won))

    def hedge_in_vain(self, call: str) -> None:
        """A hedged call ends without an answer."""
        self._events.emit(HedgeEnded(self._clock(), call, 0, "", won=False))

    def ended(
        self,
        call: str,
        pick: Pick,
        number: int,
        *,
        call_began: float,
        began: float,
        status: int | None = None,
        failure: FailureKind | None = None,
        detail: str = "",
    ) -> AttemptReport:
        """An attempt is over; what there is to report of it."""
        now, replica = self._clock(), pick.replica
        if self._events:
            self._events.emit(
                AttemptEnded(now, call, number, replica.id, now - began, status, failure, detail)
            )
        return AttemptReport(
            number, replica.id, replica.url, began - call_began, now - call_began, status, failure, detail
        )

    def interrupted(
        self,
        call: str,
        pick: Pick,
        number: int,
        report: CallReport,
        *,
        delivered: int,
        failure: FailureKind,
        detail: str,
        status: int | None,
    ) -> None:
        """The answer of attempt ``number`` broke off. ``status``: the one that an error in it names, if it was one."""
        report.interrupted(number, delivered, failure, detail, status)
        self._events.emit(
            Interrupted(self._clock(), call, number, pick.replica.id, delivered, failure, detail)
        )

    def given_up(self, call: str, error: AttemptsExhausted) -> None:
        """A call gets no answer."""
        self._events.emit(GivenUp(self._clock(), call, len(error.attempts), error.kind, str(error)))

    def settled(
        self,
        call: str,
        pick: Pick,
        report: CallReport,
        began: float,
        verdict: Verdict,
        usage: Usage | None,
        *,
        counts: bool = True,
        failure: FailureKind | None = None,
    ) -> None:
        """A pick was settled; if it ``counts``, the report gets its end."""
        total_s = self._clock() - began
        if counts:
            report.total_s, report.usage = total_s, usage
        if self._events:
            usage = usage or Usage()
            self._events.emit(
                Settled(
                    at=began + total_s,
                    call=call,
                    replica=pick.replica.id,
                    verdict=verdict,
                    total_s=total_s,
                    ttft_s=report.ttft_s if counts else None,
                    prompt_tokens=usage.prompt_tokens,
                    cached_tokens=usage.cached_tokens,
                    output_tokens=usage.output_tokens,
                    tenant=report.tenant,
                    priority=report.priority,
                    failure=failure,
                )
            )
