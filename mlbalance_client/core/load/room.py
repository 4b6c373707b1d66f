"""How a replica's room is shared among those who ask for it.

The room is laid out as a line in whole units and cut at cumulative shares, so that what all get adds up to it. The cuts
move on with time: a room of fewer units than there are clients goes round. Room in tokens comes in calls: who holds a
sliver of each of a hundred rooms sends a whole call into every one, and so do all others.
"""

from __future__ import annotations

from math import floor

_TURN_S = 0.1
_GOLDEN = 0.6180339887


def turn(now: float, first: float = 0.0) -> float:
    """Where the cuts are at ``now``, from 0 to 1; ``first``: where they begin."""
    return (first + floor(now / _TURN_S) * _GOLDEN) % 1.0


def part(room: int, low: float, high: float, cuts: float, unit: int = 1) -> int:
    """What falls to the stretch from ``low`` to ``high`` (0 to 1); of all together the room, in whole units."""
    units = room / unit
    return unit * (floor(units * high + cuts) - floor(units * low + cuts))
