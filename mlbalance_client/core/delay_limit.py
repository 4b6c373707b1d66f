"""How many own calls may stand before their first content, at all replicas together: Swift's window, on queueing delay.

What a first content comes later than own work explains, it has stood behind others'. Up to the target the limit grows
while half of it is used: by one a round, or for each call, where little stands. What is not used fades, so that a
burst does not begin with what was never tried. Beyond the target it is cut in proportion to the excess, by half at
most, once for all that were under way; that takes two in a row, for one slow replica among many is no crowd. Below
one, calls are spaced out, since clients may be more than replicas can take one call of each. A few are always open to
a client of which no more wait than are under way: its own chance clusters are no overload. One limit for all
replicas: a client among many has too few calls at each to learn from.

Source: Kumar et al., "Swift: Delay is Simple and Effective for Congestion Control in the Datacenter", SIGCOMM 2020
(target delay, increase 1, cut 0.8 of the excess, half at most, pacing below 1); RFC 7661 for what is not used.
"""

from __future__ import annotations

from math import inf, isfinite

_START = 2.0
_ALWAYS = 3.0
_FLOOR = 0.25
_CEILING = 65_536.0
_ALONE = 0.25
_STEP = 0.1
_FADE = 0.1
_CUT = 0.8
_LEAST_LEFT = 0.5


class DelayLimit:
    """One client's limit, in calls. ``target_s``: how long calls may stand behind others' work."""

    __slots__ = (
        *("_cut_at", "_others_s", "_replicas", "_sent_at", "_queued_s", "_target_s"),
        *("_untried", "_waiting", "value"),
    )

    def __init__(self, target_s: float) -> None:
        self.value = _ALWAYS
        self._replicas = 0
        self._untried = True
        self._others_s = 0.0
        self._target_s = target_s
        self._waiting = 0
        self._cut_at = self._sent_at = -inf
        self._queued_s = target_s

    def sample(self, queued_s: float, others_s: float, sent_at: float, under_way: int, now: float) -> None:
        """A first content came that had queued for ``queued_s``, for ``others_s`` of them behind work of others.

        ``under_way``: own calls that had not had theirs, this one included.
        """
        if not (isfinite(queued_s) and isfinite(others_s)):
            return
        target_s = self._target_s
        self._untried = False
        self._queued_s = max(target_s, queued_s)
        self._others_s += _STEP * (min(max(0.0, others_s), target_s) - self._others_s)
        alone = self._others_s < _ALONE * target_s
        if queued_s > target_s and not alone:
            if sent_at > self._cut_at:
                self._cut_at = now
                least = _FLOOR if self._waiting >= self.value else min(self.value, _ALWAYS)
                left = max(_LEAST_LEFT, 1.0 - _CUT * (queued_s - target_s) / queued_s)
                self.value = max(least, self.value * left)
        elif 2 * under_way >= self.value:
            self.value = min(_CEILING, self.value + (1.0 if alone else 1.0 / max(1.0, self.value)))
        else:
            enough = max(2.0 * under_way, _START * self._replicas if alone else _ALWAYS)
            self.value -= _FADE * max(0.0, self.value - enough)

    def members(self, replicas: int) -> None:
        """The fleet has so many now."""
        self._replicas = replicas
        if self._untried:
            self.value = max(_ALWAYS, _START * replicas)

    def waits(self, calls: int) -> None:
        """So many wait for room now."""
        self._waiting = calls
        if not calls:
            self.value = max(self.value, _ALWAYS)

    def sent(self, now: float) -> None:
        """A call is on its way."""
        self._sent_at = now

    def opens_in_s(self, under_way: int, now: float) -> float:
        """In how many seconds one more may be sent; infinite: not before one of those ``under_way`` has its content."""
        if under_way + 1 <= self.value:
            return 0.0
        if under_way:
            return inf
        return max(0.0, self._sent_at + self._queued_s / self.value - now)

    def takes_urgent(self, under_way: int) -> bool:
        """Whether one more may be sent that is more important than those who wait: as much again is kept for such."""
        return under_way + 1 <= 2.0 * max(1.0, self.value)
