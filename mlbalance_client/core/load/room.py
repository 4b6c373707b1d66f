"""How a replica's room is shared among those who ask for it.

The room is laid out as a line in whole units and cut at cumulative shares. The cuts move on with time: a room of fewer
units than there are clients goes round. Room in tokens comes in calls, for who holds a sliver of each of a hundred
rooms sends a whole call into every one, and so do all others; but in slivers where no more stands than there is room
for: whose turn it is may have nothing to send.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from math import floor
from random import Random

_TURN_S = 0.1
_KNOWN_TURNS = 100
_A_BIT = 1e-6


def unit_of(room: int, standing: int, usual: int) -> int:
    """In what a ``room`` in tokens is granted where ``standing`` ones are there; ``usual``: those of a call."""
    return 1 if standing <= room else max(1, usual)


def part(room: int, low: float, high: float, cuts: float, unit: int = 1) -> int:
    """What falls to the stretch from ``low`` to ``high`` (0 to 1), in whole units.

    All together get the room if the unit is 1, else as much on average over the places of the cuts.
    """
    units = room / unit
    return unit * (floor(units * high + cuts) - floor(units * low + cuts))


def _turn(now: float) -> int:
    # Who waits for a turn to begin may wake by a rounding's breadth before it.
    return floor(now / _TURN_S + _A_BIT)


class Turns:
    """Where the cuts are, from 0 to 1: elsewhere in each tenth of a second.

    By chance, for each client hears at a period of its own, in which steps of one size might close the circle.
    """

    __slots__ = ("_of",)

    def __init__(self, seed: int) -> None:
        self._of = lru_cache(_KNOWN_TURNS)(lambda turn: Random(seed + turn).random())

    def cuts(self, now: float) -> float:
        """At ``now``, in seconds."""
        return self._of(_turn(now))

    def ahead(self, now: float, most_s: float) -> Iterator[tuple[float, float]]:
        """The turns that begin within ``most_s``: in how many seconds, and where the cuts are then."""
        turn = _turn(now)
        while (in_s := (turn := turn + 1) * _TURN_S - now) < most_s:
            yield max(in_s, _A_BIT), self._of(turn)
