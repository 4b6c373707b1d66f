"""What a call will cost: tokens from bytes, seconds from tokens, both learned from answers.

Prefill of n uncached tokens in a prompt of L is taken as n * (1 + (L - n/2) / knee) *work units* (attention
reads all that stands before a token, so its part grows with context), and a replica does ``rate`` units a second. Only
the rate is learned per replica; the knee is a setting, as it hardly moves within a model family.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field
from math import isfinite

from .remembered import Remembered

_MEMORY = 0.98
_SAMPLES = 64
_ENOUGH = 8
_SHRINK = 16
_LEAST_UNITS = 512.0
_RATE_QUANTILE = 0.85
_OUTPUT_QUANTILE = 0.7


def prefill_units(uncached_tokens: float, prompt_tokens: float, knee_tokens: float) -> float:
    """Work units of prefilling the last ``uncached_tokens`` of ``prompt_tokens``."""
    return uncached_tokens * (1.0 + (prompt_tokens - uncached_tokens / 2) / knee_tokens)


class Recent:
    """A quantile of the last ``count`` samples; exact. They are kept sorted, for it is read after every sample."""

    __slots__ = ("_count", "_ordered", "_quantile", "_samples")

    def __init__(self, quantile: float, count: int = _SAMPLES) -> None:
        self._quantile = quantile
        self._count = count
        self._samples: deque[float] = deque()
        self._ordered: list[float] = []

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, sample: float) -> None:
        """Take in one sample."""
        ordered = self._ordered
        if len(ordered) == self._count:
            del ordered[bisect_left(ordered, self._samples.popleft())]
        self._samples.append(sample)
        insort(ordered, sample)

    def value(self) -> float | None:
        """The quantile, or ``None`` before the first sample."""
        ordered = self._ordered
        return ordered[int(self._quantile * (len(ordered) - 1))] if ordered else None


class MovingMean:
    """A plain mean at first, later one in which each sample counts for ``step``."""

    __slots__ = ("_step", "count", "value")

    def __init__(self, step: float) -> None:
        self._step = step
        self.value = 0.0
        self.count = 0

    def add(self, sample: float) -> None:
        """Take in one sample."""
        self.count += 1
        self.value += max(self._step, 1 / self.count) * (sample - self.value)


class TokenRatio:
    """Bytes of text a token, as a ratio of decaying sums: long prompts count more than short ones.

    ``value``: within 0.5 .. 16.
    """

    __slots__ = ("_bytes", "_tokens", "value")

    def __init__(self, bytes_per_token: float, trust_tokens: float = 2000.0) -> None:
        self._tokens = trust_tokens
        self._bytes = trust_tokens * bytes_per_token
        self.value = self._within_bounds()

    def learn(self, size_bytes: int, tokens: int) -> None:
        """``tokens`` were what an engine counted for ``size_bytes`` of text."""
        if size_bytes > 0 and 0 < tokens <= 4 * size_bytes:
            self._bytes = self._bytes * _MEMORY + size_bytes
            self._tokens = self._tokens * _MEMORY + tokens
            self.value = self._within_bounds()

    def _within_bounds(self) -> float:
        return min(16.0, max(0.5, self._bytes / self._tokens))


class PrefillRates(dict[int, float]):
    """Work units a second of each replica, learned from calls that were the oldest at their replica.

    The time from the first content before it (or from its sending) to its own is what its prefill took, or
    more, if other clients' work came between: hence a high quantile, as smetric takes, not a mean. A replica's own
    figure is drawn to the fleet's until it has many samples, for unlike noise must not pass for unlike speed.

    A pick reads one for each candidate: as a table, of what was asked for since the last sample.
    """

    def __init__(self) -> None:
        self._guess: dict[int, float] = {}
        self._of_replica: dict[int, Recent] = {}
        self._of_fleet = Recent(_RATE_QUANTILE, 4 * _SAMPLES)

    def admit(self, place: int, guess: float) -> None:
        """A replica is there; ``guess`` (units a second) serves until eight samples of the fleet are in."""
        if place not in self._of_replica:
            self._of_replica[place] = Recent(_RATE_QUANTILE, _SAMPLES)
        self._guess[place] = guess
        self.pop(place, None)

    def forget(self, place: int) -> None:
        """What the replica has shown counts no more; it is taken to be as fast as the others."""
        self._of_replica[place] = Recent(_RATE_QUANTILE, _SAMPLES)
        self.pop(place, None)

    def drop(self, place: int) -> None:
        """The replica is gone."""
        for table in (self._guess, self._of_replica, self):
            table.pop(place, None)

    def __missing__(self, place: int) -> float:
        rate = self[place] = self._pace(place) * self._guess[place]
        return rate

    def relative(self, place: int) -> float:
        """By how much a replica is faster than its weight says, beside the fleet; slower ones are below 1."""
        if len(self._of_fleet) < _ENOUGH:
            return 1.0
        return self[place] / self._guess[place] / (self._of_fleet.value() or 1.0)

    @property
    def known(self) -> bool:
        """Whether the fleet has shown how fast it is."""
        return len(self._of_fleet) >= _ENOUGH

    def samples(self, place: int) -> int:
        """How many samples of its own a replica has."""
        return len(self._of_replica[place])

    def learn(self, place: int, units: float, took_s: float) -> None:
        """``units`` of work took ``took_s`` seconds; tiny ones say nothing (a step's overhead rules them)."""
        if units < _LEAST_UNITS or not took_s > 0 or place not in self._guess:
            return
        pace = units / took_s / self._guess[place]
        if isfinite(pace) and pace > 0:
            self._of_replica[place].add(pace)
            self._of_fleet.add(pace)
            self.clear()

    def _pace(self, place: int) -> float:
        """By how much a replica is faster than its guess."""
        if len(self._of_fleet) < _ENOUGH:
            return 1.0
        own = self._of_replica[place]
        trust = len(own) / (len(own) + _SHRINK)
        pace: float = (self._of_fleet.value() or 1.0) ** (1 - trust) * (own.value() or 1.0) ** trust
        return pace


@dataclass(slots=True)
class Costs:
    """All that is learned about calls, by model and route; bounded in memory."""

    bytes_per_token: float
    output_tokens: int
    knee_tokens: float
    _ratios: Remembered[str | None, TokenRatio] = field(default_factory=lambda: Remembered(256))
    _outputs: Remembered[tuple[str | None, str], Recent] = field(default_factory=lambda: Remembered(1024))

    def ratio(self, model: str | None) -> TokenRatio:
        """The bytes-a-token ratio of a model."""
        ratio = self._ratios.get(model)
        if ratio is None:
            ratio = self._ratios[model] = TokenRatio(self.bytes_per_token)
        return ratio

    def expected_output(self, model: str | None, route: str, limit: int | None) -> int:
        """Expected output in tokens: a learned quantile for the model and route, within the caller's limit."""
        known = self._outputs.get((model, route))
        expected = (known and known.value()) or float(self.output_tokens)
        return int(expected if limit is None else min(limit, expected))

    def learn_output(self, model: str | None, route: str, tokens: int) -> None:
        """An answer of ``tokens`` tokens came on this route."""
        known = self._outputs.get((model, route))
        if known is None:
            known = self._outputs[model, route] = Recent(_OUTPUT_QUANTILE)
        known.add(float(max(0, tokens)))
