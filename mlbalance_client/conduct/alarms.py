"""Timers of calls: one heap and one background task for all, so that a call with nothing wrong starts none.

Nearly all are cancelled before their time; what is left of them is swept out when it is more than half of the heap.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf

import anyio

logger = logging.getLogger("mlbalance_client")

_SWEPT_FROM = 64
# For how long it is remembered that timers rang late.
_REMEMBERED_S = 2.0
_ROUNDS = 4.0
_ROUND_S = 0.25

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
        self._late_s = self._late_before_s = 0.0
        self._late_since = -inf

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

    def late_s(self, now: float) -> float:
        """How much later than it came this client may see what comes, by how late its timers have rung lately.

        A busy loop goes round several times until a first content is known: its head, then itself, read and resumed.
        """
        if now - self._late_since >= _REMEMBERED_S:
            self._note_late(0.0, now)
        return _ROUNDS * max(self._late_s, self._late_before_s)

    def seen_at(self, began: float, slow_s: float, now: float) -> float:
        """When to look whether what began then is slow: after ``slow_s``, or a little later if that is not yet seen."""
        late_s = self.late_s(now)
        slow_at = began + slow_s
        if late_s > slow_s / 4 and now < slow_at + late_s:
            return max(slow_at, min(slow_at + late_s, now + _ROUND_S))
        return slow_at

    def _note_late(self, late_s: float, now: float) -> None:
        since_s = now - self._late_since
        if since_s >= _REMEMBERED_S:
            self._late_before_s = self._late_s if since_s < 2 * _REMEMBERED_S else 0.0
            self._late_s, self._late_since = 0.0, now
        self._late_s = max(self._late_s, late_s)

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
                if not self._woken.is_set():
                    now = self.clock()
                    self._note_late(now - self._wakes_at, now)
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
                try:
                    ring()
                except Exception:  # one call's trouble is not to stop the timers of all
                    logger.exception("a timer of a call has failed")
        return inf
