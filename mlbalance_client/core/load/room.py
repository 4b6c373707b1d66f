"""How a replica's room is shared among those who ask for it.

The room is laid out as a line in whole units and cut at cumulative shares. The cuts move on with time: a room of fewer
units than there are clients goes round. Room in tokens comes in calls, for who holds a sliver of each of a hundred
rooms sends a whole call into every one, and so do all others; but in slivers where no more stands than there is room
for: whose turn it is may have nothing to send.
"""

from __future__ import annotations

from math import floor
from random import Random

_TURN_S = 0.1


def unit_of(room: int, standing: int, usual: int) -> int:
    """In what a ``room`` in tokens is granted where ``standing`` ones are there; ``usual``: those of a call."""
    return 1 if standing <= room else max(1, usual)


def part(room: int, low: float, high: float, cuts: float, unit: int = 1) -> int:
    """What falls to the stretch from ``low`` to ``high`` (0 to 1), in whole units.

    All together get the room if the unit is 1, else as much on average over the places of the cuts.
    """
    units = room / unit
    return unit * (floor(units * high + cuts) - floor(units * low + cuts))


class Turns:
    """Where the cuts are, from 0 to 1: elsewhere in each tenth of a second.

    By chance, for each client hears at a period of its own, in which steps of one size might close the circle.
    """

    __slots__ = ("_cuts", "_seed", "_turn")

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._turn = -1
        self._cuts = 0.0

    def cuts(self, now: float) -> float:
        """At ``now``, in seconds."""
        if (turn := floor(now / _TURN_S)) != self._turn:
            self._turn, self._cuts = turn, Random(self._seed + turn).random()
        return self._cuts
