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

# When, on the client's clock, and a number: values that the garbage collector need not visit.
Alarm = tuple[float, int]


class Alarms:
    """All timers of one client. Belongs to one event loop."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._heap: list[Alarm] = []
        self._rings: dict[int, Callable[[], object]] = {}
        self._numbers = count()
        self._wakes_at = inf
        self._woken: anyio.Event | None = None

    def __len__(self) -> int:
        return len(self._rings)

    def set(self, at: float, ring: Callable[[], object]) -> Alarm:
        """Call ``ring``, which must neither block nor raise, at ``at``."""
        alarm = at, next(self._numbers)
        self._rings[alarm[1]] = ring
        heappush(self._heap, alarm)
        if at < self._wakes_at and self._woken is not None:
            self._woken.set()
        return alarm

    def cancel(self, alarm: Alarm) -> None:
        """It will not ring. Idempotent."""
        rings, heap = self._rings, self._heap
        if rings.pop(alarm[1], None) is not None and len(heap) > 2 * len(rings) + _SWEPT_FROM:
            self._heap = [alarm for alarm in heap if alarm[1] in rings]
            heapify(self._heap)

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
            at, number = self._heap[0]
            if number in self._rings and at > self.clock():
                return at
            heappop(self._heap)
            if (ring := self._rings.pop(number, None)) is not None:
                ring()
        return inf
