"""What others will have sent since replicas reported: the least loaded are filled first, to a common level.

All who read the same old report see the same replica idle, and together make it the busiest (a herd). So each reckons
with what the others do meanwhile, who read it too: work that has come since stands where least stood, as water does
(the aggressive load interpretation of Dahlin, "Interpreting stale load information", 1999). Replicas under the level
are alike then, and chance or what they have cached decides. How much comes, the reports tell too: a server is busy for
as many seconds in a second as work comes to it (the utilization law), and on an idle fleet nothing is poured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

# More comes to no fleet that keeps up; until reports have shown less, it is taken to be as busy as that.
_MOST = 0.75
_MEMORY_S = 10.0
# Work comes in bursts of several times the mean, and herds are made in bursts.
_BURST = 3.0
# Up to so much may have come to who does not report as well; beyond, what own calls have found there knows better.
_ALIKE_S = 0.1
# A replica of which nothing was heard before counts as busy for so long.
_PRIOR_S = 0.5


@dataclass(slots=True)
class _Heard:
    """For how long, lately, a replica was ``busy``, of the time since it is ``heard`` of; ``was`` it when last?"""

    at: float
    was: bool
    busy_s: float = _PRIOR_S
    heard_s: float = _PRIOR_S

    @property
    def share(self) -> float:
        return self.busy_s / self.heard_s

    def until(self, now: float) -> None:
        passed_s = max(0.0, now - self.at)
        keep = exp(-passed_s / _MEMORY_S)
        counts_s = _MEMORY_S * (1.0 - keep)
        self.heard_s = self.heard_s * keep + counts_s
        self.busy_s = self.busy_s * keep + counts_s * self.was


class Inflow:
    """How many seconds of work a replica may get in a second, by how often reports find replicas busy."""

    __slots__ = ("_heard", "_shares")

    def __init__(self) -> None:
        self._heard: dict[int, _Heard] = {}
        self._shares = 0.0

    def hear(self, place: int, at: float, *, busy: bool) -> None:
        """A replica had work at that time, or none, which counts until its next report, however many come."""
        heard = self._heard.get(place)
        if heard is None:
            heard = self._heard[place] = _Heard(at, busy)
            self._shares += heard.share
        if at >= heard.at:
            before = heard.share
            heard.until(at)
            heard.at, heard.was = at, busy
            self._shares += heard.share - before

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._heard.pop(place, None)
        self._shares = sum(heard.share for heard in self._heard.values())

    @property
    def value(self) -> float:
        """0 to 0.75."""
        return min(_MOST, _BURST * self._shares / len(self._heard)) if self._heard else _MOST


def levelled(waiting_s: Sequence[float], ages_s: Sequence[float | None], inflow: float) -> list[float]:
    """Seconds that stand at each replica by now, from what stood there ``ages_s`` ago, drained; None: not reported.

    ``inflow``: seconds of work that others send a replica in a second, on the mean. What came where least stands may
    have come to those not reported as well: they are not preferred for that alone.
    """
    told = sorted(waiting for waiting, age_s in zip(waiting_s, ages_s, strict=True) if age_s is not None)
    if not told:
        return list(waiting_s)
    level_s = _level(told, inflow * sum(age_s for age_s in ages_s if age_s is not None))
    most = inflow * len(told)  # all that comes may go to one
    levels_s = [
        waiting if age_s is None else max(waiting, min(level_s, waiting + most * age_s))
        for waiting, age_s in zip(waiting_s, ages_s, strict=True)
    ]
    if len(told) == len(levels_s):
        return levels_s
    least_s, stood_s = min(
        (level, waiting)
        for level, waiting, age_s in zip(levels_s, waiting_s, ages_s, strict=True)
        if age_s is not None
    )
    came_s = min(_ALIKE_S, least_s - stood_s)
    return [
        max(level, min(least_s, level + came_s)) if age_s is None else level
        for level, age_s in zip(levels_s, ages_s, strict=True)
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
