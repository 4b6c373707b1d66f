"""Lets calls wait until a replica has room: the queue of one client, live.

Whoever frees room (a call that ends, a first content, a report, a change of the fleet) gives it to the next in line
in the same breath, charged; a waiting call only finds out. One loop keeps the time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from math import inf

import anyio

from .calls import CallOptions
from .core.admission import Admission, AdmissionSettings, Waiting
from .core.fleet import Fleet, Pick
from .core.model import Demand, ReplicaId, Verdict
from .core.report import CallReport
from .errors import ClientClosed, NoCapacity
from .telling import Telling


class Queueing:
    """``clock``: seconds, monotonic."""

    def __init__(
        self, settings: AdmissionSettings, fleet: Fleet, tell: Telling, clock: Callable[[], float]
    ) -> None:
        self._fleet = fleet
        self._queue = Admission(settings, fleet)
        self._tell = tell
        self._clock = clock
        self._woken: dict[Waiting, anyio.Event] = {}
        self._stirred = anyio.Event()

    def __len__(self) -> int:
        return len(self._queue)

    def start(self) -> None:
        """In the event loop that will run it."""
        self._stirred = anyio.Event()

    async def pick(
        self,
        call: str,
        demand: Demand,
        options: CallOptions,
        report: CallReport,
        *,
        began: float,
        excluded: Collection[ReplicaId] = (),
        number: int = 0,
    ) -> Pick:
        """A replica with room, charged; at once if there is any. ``began``: when the call did.

        Raises NoReplicas, NoCapacity, QueueTimeout, ClientClosed.
        """
        if not self._queue and (pick := self._fleet.try_pick(demand, self._clock(), excluded, number=number)):
            return pick
        now = self._clock()
        waiting = self._queue.waiting(
            demand,
            now,
            deadline=inf if options.deadline_s is None else began + options.deadline_s,
            priority=options.priority,
            tenant=options.tenant,
            again=bool(excluded),
            excluded=excluded,
            number=number,
        )
        woken = self._woken[waiting] = anyio.Event()
        self._fleet.on_stir = self._pull
        self._wake(self._queue.enter(waiting, now))
        try:
            if not woken.is_set():
                self._tell.queued(call, report, now, len(self._queue))
                self._stirred.set()  # the loop may have to look sooner
                await woken.wait()
        except BaseException:
            self._abandon(waiting)
            raise
        now = self._clock()
        report.queued_s += now - waiting.since
        if waiting.error is not None:
            retry_after_s = waiting.error.retry_after_s if isinstance(waiting.error, NoCapacity) else None
            self._tell.shed(call, report, now, waiting.since, waiting.error, retry_after_s)
            raise waiting.error
        assert waiting.pick is not None
        self._tell.pulled(call, report, now, waiting.since, waiting.pick)
        return waiting.pick

    def members_changed(self) -> None:
        """The fleet is another one."""
        if self._queue:
            now = self._clock()
            self._wake(self._queue.forsaken())
            self._wake(self._queue.pull(now))

    def close(self) -> None:
        """Nobody waits any more: all hear that the client is closed."""
        self._wake(self._queue.close(ClientClosed, "this client was closed during the call"))

    def tick(self) -> tuple[float, anyio.Event]:
        """Do what is due; how long there is nothing to do, in seconds, and what tells that there is sooner."""
        now = self._clock()
        if self._queue:
            self._wake(self._queue.tick(now))
        self._stirred = anyio.Event()
        return self._queue.next_at(now) - now, self._stirred

    def _pull(self, place: int) -> None:
        self._wake(self._queue.pull(self._clock(), place))

    def _wake(self, ended: Iterable[Waiting]) -> None:
        for waiting in ended:
            self._woken.pop(waiting).set()
        if not self._queue:
            self._fleet.on_stir = None

    def _abandon(self, waiting: Waiting) -> None:
        """Its caller is gone: out of line, or what it got is given back, for nothing was sent."""
        self._woken.pop(waiting, None)
        self._queue.leave(waiting)
        if waiting.pick is not None:
            waiting.pick.settle(Verdict.FAILED, self._clock())
        if not self._queue:
            self._fleet.on_stir = None


async def keep_time(tick: Callable[[], tuple[float, anyio.Event] | None]) -> None:
    """Until cancelled, or ``tick`` gives None. For a loop of its own; refers to nothing while it waits."""
    while (wait := tick()) is not None:
        wait_s, stirred = wait
        with anyio.move_on_after(wait_s):
            await stirred.wait()
