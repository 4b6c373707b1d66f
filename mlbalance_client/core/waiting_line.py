"""Calls that wait for room, in order: by priority, then tenants in turn, then by deadline, then by arrival.

A call gains one step of priority with every ``ageing_s`` that it waits. Tenants of the same priority take turns by
start-time fair queueing (Goyal, Vin, Cheng, 1996) over tokens; where nobody names a tenant there is one. When the line
is full, who comes displaces the last one of a lower priority, or of the tenant with the longest line for its weight.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace
from itertools import count
from math import inf

from .remembered import Remembered

_TENANTS = 1024

# Retries first, then by when it is due, then by arrival.
_Key = tuple[bool, float, int]


@dataclass(slots=True, eq=False, kw_only=True)
class Waiter:
    """A call in line. ``units``: its cost, as tenants share it; ``due``: when it leaves the line unserved, a time.

    ``again``: it is sent anew, and goes before
    those of its class that come for the first time. ``passed``: how often another was taken that suited better.
    """

    units: float
    since: float
    due: float
    priority: int = 0
    tenant: str | None = None
    again: bool = False
    passed: int = 0
    level: int = field(default=0, init=False)
    key: _Key = field(default=(False, 0.0, 0), init=False)

    @property
    def urgent(self) -> bool:
        """Whether its caller says that it is more important than usual."""
        return self.priority > 0


class _Line:
    """One tenant's calls of one level, in order."""

    __slots__ = ("_waiters", "units")

    def __init__(self) -> None:
        self._waiters: list[tuple[_Key, Waiter]] = []
        self.units = 0.0

    def __len__(self) -> int:
        return len(self._waiters)

    def __getitem__(self, at: int) -> Waiter:
        return self._waiters[at][1]

    def add(self, waiter: Waiter) -> None:
        insort(self._waiters, (waiter.key, waiter))
        self.units += waiter.units

    def remove(self, waiter: Waiter) -> None:
        del self._waiters[self.position(waiter)]
        self.units = self.units - waiter.units if self._waiters else 0.0

    def position(self, waiter: Waiter) -> int:
        return bisect_left(self._waiters, waiter.key, key=lambda pair: pair[0])


class WaitingLine:
    """At most ``most`` calls. ``weights``: tenants' shares where they are not 1. ``urgent``: how many of them are."""

    def __init__(self, most: int, ageing_s: float, weights: Mapping[str, float]) -> None:
        self._most = most
        self._ageing_s = ageing_s
        self._weights = weights
        self._levels: dict[int, dict[str | None, _Line]] = {}
        self._ageing: OrderedDict[Waiter, float] = OrderedDict()
        self._expiring: list[tuple[float, int, Waiter]] = []
        self._numbers = count()
        # Of each tenant, how much it has been served, in tokens over weight, as a time of their own.
        self._served: Remembered[str | None, float] = Remembered(_TENANTS)
        self._turn = 0.0
        self.urgent = 0

    def __len__(self) -> int:
        return len(self._ageing)

    @property
    def units(self) -> float:
        """Of all that wait."""
        return sum(line.units for lines in self._levels.values() for line in lines.values())

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._ageing

    def add(self, waiter: Waiter, now: float) -> Waiter | None:
        """Take its place in line; who has to go for it, which may be itself."""
        self._age(now)
        waiter.level = waiter.priority
        waiter.key = (not waiter.again, waiter.due, next(self._numbers))
        displaced = None
        if len(self) >= self._most:
            displaced = self._last(waiter)
            if displaced is waiter:
                return waiter
            self.remove(displaced)
        self._insert(waiter)
        self.urgent += waiter.urgent
        self._ageing[waiter] = now + self._ageing_s
        insort(self._expiring, (waiter.due, waiter.key[2], waiter))
        return displaced

    def remove(self, waiter: Waiter) -> None:
        """It is in line no more."""
        del self._ageing[waiter]
        self.urgent -= waiter.urgent
        del self._expiring[bisect_left(self._expiring, (waiter.due, waiter.key[2]))]
        self._take_out(waiter)

    def serve(self, waiter: Waiter) -> None:
        """It gets room: its tenant's turn is over for as long as that costs."""
        self.remove(waiter)
        self._turn = self._tag(waiter.tenant)
        self._served[waiter.tenant] = self._turn + waiter.units / self._weight(waiter.tenant)

    def in_order(self, now: float) -> Iterator[Waiter]:
        """From the first on; the line must not change meanwhile."""
        self._age(now)
        for level in sorted(self._levels, reverse=True):
            yield from self._merged(self._levels[level])

    def expired(self, now: float) -> list[Waiter]:
        """Who must leave the line."""
        found = []
        for due, _, waiter in self._expiring:
            if due > now:
                break
            found.append(waiter)
        return found

    def next_expiry(self) -> float:
        """When the next one must."""
        return self._expiring[0][0] if self._expiring else inf

    def units_before(self, waiter: Waiter) -> float:
        """About how much is to be served before it."""
        before = sum(
            line.units
            for level, lines in self._levels.items()
            if level > waiter.level
            for line in lines.values()
        )
        lines = self._levels[waiter.level]
        own, weight = lines[waiter.tenant], self._weight(waiter.tenant)
        own_units = own.units * own.position(waiter) / len(own)
        for tenant, line in lines.items():
            if tenant != waiter.tenant:
                before += min(line.units, (own_units + waiter.units) * self._weight(tenant) / weight)
        return before + own_units

    def _merged(self, lines: Mapping[str | None, _Line]) -> Iterator[Waiter]:
        if len(lines) == 1:
            line = next(iter(lines.values()))
            yield from (line[at] for at in range(len(line)))
            return
        heads = [(self._tag(tenant), line[0].key, tenant, 0) for tenant, line in lines.items()]
        heapify(heads)
        while heads:
            tag, _, tenant, at = heads[0]
            line = lines[tenant]
            waiter = line[at]
            yield waiter
            if at + 1 < len(line):
                tag += waiter.units / self._weight(tenant)
                heapreplace(heads, (tag, line[at + 1].key, tenant, at + 1))
            else:
                heappop(heads)

    def _last(self, newcomer: Waiter) -> Waiter:
        """Who goes when there are too many, ``newcomer`` among them."""
        if not self._levels:
            return newcomer
        level = min(self._levels)
        lines = self._levels[level]
        longest = max(lines, key=lambda tenant: len(lines[tenant]) / self._weight(tenant))
        if newcomer.level == level:
            own = lines.get(newcomer.tenant)
            length = (1 + (len(own) if own else 0)) / self._weight(newcomer.tenant)
            if len(lines[longest]) / self._weight(longest) <= length:
                return newcomer
        elif newcomer.level < level:
            return newcomer
        return lines[longest][-1]

    def _age(self, now: float) -> None:
        while self._ageing:
            waiter, at = next(iter(self._ageing.items()))
            if at > now:
                return
            self._take_out(waiter)
            waiter.level += 1
            self._insert(waiter)
            # Those to come age later than those that have aged, so that the first stays the next.
            self._ageing[waiter] = at + self._ageing_s
            self._ageing.move_to_end(waiter)

    def _insert(self, waiter: Waiter) -> None:
        lines = self._levels.setdefault(waiter.level, {})
        lines.setdefault(waiter.tenant, _Line()).add(waiter)

    def _take_out(self, waiter: Waiter) -> None:
        lines = self._levels[waiter.level]
        lines[waiter.tenant].remove(waiter)
        if not lines[waiter.tenant]:
            del lines[waiter.tenant]
        if not lines:
            del self._levels[waiter.level]

    def _tag(self, tenant: str | None) -> float:
        return max(self._turn, self._served.get(tenant) or 0.0)

    def _weight(self, tenant: str | None) -> float:
        return 1.0 if tenant is None else self._weights.get(tenant, 1.0)
