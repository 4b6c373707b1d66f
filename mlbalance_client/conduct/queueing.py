"""Lets calls wait until a replica has room: the queue of one client, live.

Whoever frees room (a call that ends, a first content, a report, a change of the fleet) gives it to the next in line
in the same breath, charged; the call that waits only finds out. While nobody waits, none of this is touched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf

import anyio

from ..calls import CallOptions
from ..core.admission import Admission, AdmissionSettings, Waiting
from ..core.fleet import Fleet, Pick
from ..core.model import Demand, ReplicaId, Verdict
from ..core.report import CallReport
from ..errors import ClientClosed, DeadlineExceeded
from .alarms import Alarm, Alarms
from .telling import Telling

_FULL = "a replica with room, since all that it may go to had enough to do"
_CROWDED = "earlier calls of this client to begin, since those stood long behind other clients' work"


class Queueing:
    """``alarms``: their clock is this one's too."""

    def __init__(self, settings: AdmissionSettings, fleet: Fleet, tell: Telling, alarms: Alarms) -> None:
        self.queue = Admission(settings, fleet)
        self._fleet = fleet
        self._tell = tell
        self._alarms = alarms
        self._clock = alarms.clock
        self._woken: dict[Waiting, anyio.Event] = {}
        self._alarm: Alarm | None = None

    async def wait(
        self,
        call: str,
        demand: Demand,
        options: CallOptions,
        report: CallReport,
        *,
        deadline: float = inf,
        excluded: Collection[ReplicaId] = (),
        number: int = 0,
    ) -> Pick:
        """Wait for a replica with room, until ``deadline`` at most; charged when this returns.

        ``excluded``: where the call has been; it goes before others of its class then. Raises NoReplicas, NoCapacity,
        QueueTimeout, DeadlineExceeded, ClientClosed.
        """
        now = self._clock()
        waiting = self.queue.waiting(
            demand,
            now,
            deadline=deadline,
            priority=options.priority,
            tenant=options.tenant,
            again=bool(excluded),
            excluded=excluded,
            number=number,
        )
        woken = self._woken[waiting] = anyio.Event()
        self._fleet.on_stir = self._pull
        self._wake(self.queue.enter(waiting, now))
        if waiting.pick is not None:  # it need not wait after all
            return waiting.pick
        report.queued_for = _CROWDED if waiting.crowded else _FULL
        try:
            if not woken.is_set():
                self._tell.queued(call, report, now, len(self.queue))
                await woken.wait()
        except BaseException:
            ended_at = self._clock()
            report.queued_s += ended_at - now
            self.abandon(waiting)
            error = waiting.error
            if error is None and ended_at >= deadline:  # his call's own alarm was first
                error = DeadlineExceeded()
            self._tell.shed(call, report, ended_at, ended_at - now, error)
            raise
        waited_s = self._clock() - now
        report.queued_s += waited_s
        if waiting.pick is None:
            assert waiting.error is not None
            self._tell.shed(call, report, now + waited_s, waited_s, waiting.error)
            raise waiting.error
        self._tell.pulled(call, report, now + waited_s, waited_s, waiting.pick)
        return waiting.pick

    def members_changed(self) -> None:
        """The fleet is another one."""
        if self.queue:
            self._wake(self.queue.forsaken())
            self._wake(self.queue.pull(self._clock()))

    def close(self) -> None:
        """Nobody waits any more: all hear that the client is closed."""
        self._wake(self.queue.close(ClientClosed("this client was closed during the call")))

    def abandon(self, waiting: Waiting) -> None:
        """Its caller is gone: out of line, or what it got is given back, for nothing was sent."""
        self._woken.pop(waiting, None)
        self.queue.leave(waiting)
        if waiting.pick is not None:
            waiting.pick.settle(Verdict.FAILED, self._clock())
        self._set_alarm()

    def _pull(self, place: int) -> None:
        self._wake(self.queue.pull(self._clock(), place))

    def _tick(self) -> None:
        self._alarm = None
        self._wake(self.queue.tick(self._clock()))

    def _wake(self, ended: Iterable[Waiting]) -> None:
        for waiting in ended:
            self._woken.pop(waiting).set()
        self._set_alarm()

    def _set_alarm(self) -> None:
        at = self.queue.next_at()
        if not self.queue:
            self._fleet.on_stir = None
        if self._alarm is not None:
            if self._alarm[0] <= at < inf:
                return  # it looks again then
            self._alarms.cancel(self._alarm)
            self._alarm = None
        if at < inf:
            self._alarm = self._alarms.set(at, self._tick)
