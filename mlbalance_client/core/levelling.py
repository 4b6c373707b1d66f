"""What others will have sent since replicas reported: the least loaded are filled first, to a common level.

All who read the same old report see the same replica idle, and together make it the busiest (a herd). So each reckons
with what the others do meanwhile, who read it too: work that has come since stands where least stood, as water does
(the aggressive load interpretation of Dahlin, "Interpreting stale load information", 1999). Replicas under the level
are alike then, and chance or what they have cached decides. How much comes, the reports tell too: a server is busy for
as many seconds in a second as work comes to it (the utilization law), and on an idle fleet nothing is poured.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

# More comes to no fleet that keeps up; until reports have shown less, it is taken to be as busy as that.
_MOST = 0.75
_MEMORY_S = 10.0


class Inflow:
    """How many seconds of work a replica gets in a second, on the mean, by how often reports find replicas busy."""

    __slots__ = ("_at", "_busy", "_sum")

    def __init__(self) -> None:
        self._busy: dict[int, float] = {}
        self._at: dict[int, tuple[float, bool]] = {}
        self._sum = 0.0

    def hear(self, place: int, at: float, *, busy: bool) -> None:
        """A replica had work at that time, or none, which counts until its next report, however many come."""
        known = self._busy.setdefault(place, 1.0)
        since, was = self._at.get(place, (at, busy))
        self._busy[place] = was + (known - was) * exp(-max(0.0, at - since) / _MEMORY_S)
        if at >= since:
            self._at[place] = at, busy
        self._sum = sum(self._busy.values())

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._busy.pop(place, None)
        self._at.pop(place, None)
        self._sum = sum(self._busy.values())

    @property
    def value(self) -> float:
        """0 to 0.75."""
        return min(_MOST, self._sum / len(self._busy)) if self._busy else _MOST


def levelled(waiting_s: Sequence[float], ages_s: Sequence[float | None], inflow: float) -> list[float]:
    """Seconds that stand at each replica by now, from what stood there ``ages_s`` ago, drained; None: not reported.

    ``inflow``: seconds of work that others send a replica in a second, on the mean.
    """
    told = sorted(waiting for waiting, age_s in zip(waiting_s, ages_s, strict=True) if age_s is not None)
    if not told:
        return list(waiting_s)
    level_s = _level(told, inflow * sum(age_s for age_s in ages_s if age_s is not None))
    most = inflow * len(told)  # all that comes may go to one
    return [
        waiting if age_s is None else max(waiting, min(level_s, waiting + most * age_s))
        for waiting, age_s in zip(waiting_s, ages_s, strict=True)
    ]


def _level(ordered: list[float], poured: float) -> float:
    """To which height ``poured`` fills columns, the lowest first."""
    filled = 0.0
    for count, height in enumerate(ordered):
        filled += height
        above = ordered[count + 1] if count + 1 < len(ordered) else float("inf")
        level = (filled + poured) / (count + 1)
        if level <= above:
            return level
    return ordered[-1]
