"""Timers of calls: one heap and one background task for all, so that a call with nothing wrong starts none.

Nearly all are cancelled before their time; what is left of them is swept out when it is more than half of the heap.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

import anyio

_SWEPT_FROM = 64


class Alarm:
    """One timer. ``at``: when, on the client's clock."""

    __slots__ = ("_alarms", "at", "ring")

    def __init__(self, alarms: Alarms, at: float, ring: Callable[[], object]) -> None:
        self._alarms = alarms
        self.at = at
        self.ring: Callable[[], object] | None = ring

    def cancel(self) -> None:
        """It will not ring. Idempotent."""
        if self.ring is not None:
            self.ring = None
            self._alarms.cancelled()


class Alarms:
    """All timers of one client. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = count()
        self._dead = 0
        self._wakes_at = inf
        self._woken: anyio.Event | None = None

    def __len__(self) -> int:
        return len(self._heap) - self._dead

    def set(self, at: float, ring: Callable[[], object]) -> Alarm:
        """Call ``ring``, which must neither block nor raise, at ``at``."""
        alarm = Alarm(self, at, ring)
        heappush(self._heap, (at, next(self._numbers), alarm))
        if at < self._wakes_at and self._woken is not None:
            self._woken.set()
        return alarm

    def cancelled(self) -> None:
        """One more will not ring."""
        self._dead += 1
        if self._dead > _SWEPT_FROM and 2 * self._dead > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].ring is not None]
            heapify(self._heap)
            self._dead = 0

    async def tend(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._woken = anyio.Event()
                self._wakes_at = self._ring_due()
                with anyio.move_on_after(self._wakes_at - self.clock()):
                    await self._woken.wait()
        finally:
            self._woken = None

    def _ring_due(self) -> float:
        """Ring what is due; when the next one is."""
        while self._heap:
            at, _, alarm = self._heap[0]
            ring = alarm.ring
            if ring is not None and at > self.clock():
                return at
            heappop(self._heap)
            if ring is None:
                self._dead -= 1
            else:
                alarm.ring = None
                ring()
        return inf
