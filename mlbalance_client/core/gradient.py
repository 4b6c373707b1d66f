"""How many calls a replica takes that tells nothing: Netflix's Gradient2, on time to first content.

Time is taken over predicted time, so that a long prompt does not look like a slow replica, and averaged as a ratio of
sums, so that short ones do not rule. The limit grows only while half of it is used, and shrinks when first contents
come later, against their prediction, than they have come over the last some hundred calls.
Source: concurrency-limits, Gradient2Limit (tolerance 1.5, smoothing 0.2, queue 4, long window 600).
"""

from __future__ import annotations

from math import isfinite

_START = 256.0
_FLOOR = 8.0
_CEILING = 65_536.0
_QUEUE = 4.0
_TOLERANCE = 1.5
_SMOOTHING = 0.2
_LONG = 1.0 - 2.0 / 601
_SHORT = 0.8
_RECOVERY = 0.95
# What passes in any call besides its prefill: the network, a step of the engine.
_OVERHEAD_S = 0.05


class _Ratio:
    """Of two decaying sums."""

    __slots__ = ("_below", "_keep", "above")

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self.above = 0.0
        self._below = 0.0

    def add(self, above: float, below: float) -> None:
        self.above = self.above * self._keep + above
        self._below = self._below * self._keep + below

    @property
    def value(self) -> float:
        return self.above / self._below


class Gradient:
    """One replica's limit: own calls under way."""

    __slots__ = ("_long", "_short", "value")

    def __init__(self) -> None:
        self.value = _START
        self._long = _Ratio(_LONG)
        self._short = _Ratio(_SHORT)

    def sample(self, took_s: float, predicted_s: float, under_way: int) -> None:
        """A first content came after ``took_s``; ``under_way``: calls there, this one included."""
        if not (took_s >= 0.0 and predicted_s >= 0.0 and isfinite(took_s) and isfinite(predicted_s)):
            return
        self._long.add(took_s + _OVERHEAD_S, predicted_s + _OVERHEAD_S)
        self._short.add(took_s + _OVERHEAD_S, predicted_s + _OVERHEAD_S)
        if 2 * under_way < self.value:
            return
        usual = self._long.value / self._short.value
        if usual > 2.0:
            self._long.above *= _RECOVERY
        gradient = min(1.0, max(0.5, _TOLERANCE * usual))
        wanted = self.value * gradient + _QUEUE
        self.value = min(_CEILING, max(_FLOOR, self.value * (1.0 - _SMOOTHING) + wanted * _SMOOTHING))
