"""What a call will cost: tokens from bytes, seconds from tokens, both learned from answers.

Prefill of n uncached tokens in a prompt of L is taken as n * (1 + (L - n/2) / knee) *work units* (attention
reads all that stands before a token, so its part grows with context), and a replica does ``rate`` units a second. Only
the rate is learned per replica; the knee is a setting, as it hardly moves within a model family.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from cachetools import LRUCache

_MEMORY = 0.98
_SAMPLES = 64
_ENOUGH = 8
_RATE_QUANTILE = 0.75
_OUTPUT_QUANTILE = 0.7


def prefill_units(uncached_tokens: float, prompt_tokens: float, knee_tokens: float) -> float:
    """Work units of prefilling the last ``uncached_tokens`` of ``prompt_tokens``."""
    return uncached_tokens * (1.0 + (prompt_tokens - uncached_tokens / 2) / knee_tokens)


class Recent:
    """A quantile of the last 64 samples; exact, and cheap to read because it is kept sorted on demand."""

    __slots__ = ("_quantile", "_samples", "_value")

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._samples: deque[float] = deque(maxlen=_SAMPLES)
        self._value: float | None = None

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: float) -> None:
        """Take in one sample."""
        self._samples.append(sample)
        self._value = None

    def value(self) -> float | None:
        """The quantile, or ``None`` before the first sample."""
        if self._value is None and self._samples:
            ordered = sorted(self._samples)
            self._value = ordered[int(self._quantile * (len(ordered) - 1))]
        return self._value


class TokenRatio:
    """Bytes of text a token, as a ratio of decaying sums: long prompts count more than short ones."""

    __slots__ = ("_bytes", "_tokens")

    def __init__(self, bytes_per_token: float, trust_tokens: float = 2000.0) -> None:
        self._tokens = trust_tokens
        self._bytes = trust_tokens * bytes_per_token

    @property
    def value(self) -> float:
        """Bytes a token, within 0.5 .. 16."""
        return min(16.0, max(0.5, self._bytes / self._tokens))

    def learn(self, size_bytes: int, tokens: int) -> None:
        """``tokens`` were what an engine counted for ``size_bytes`` of text."""
        if size_bytes > 0 and 0 < tokens <= 4 * size_bytes:
            self._bytes = self._bytes * _MEMORY + size_bytes
            self._tokens = self._tokens * _MEMORY + tokens


class PrefillRate:
    """Work units a second of one replica.

    A sample is taken when the oldest outstanding prompt of a replica shows its first content: the time since
    the one before it did (or since it was sent) is what its prefill took, or more if others were there too.
    Hence a high quantile (as smetric does) rather than a mean.
    """

    __slots__ = ("_recent", "value")

    def __init__(self, first_guess: float) -> None:
        self._recent = Recent(_RATE_QUANTILE)
        self.value = first_guess

    @property
    def samples(self) -> int:
        """How many samples there are; the value is the first guess until there are eight."""
        return len(self._recent)

    def learn(self, units: float, took_s: float) -> None:
        """``units`` of work took ``took_s`` seconds; tiny ones say nothing (a step's overhead rules them)."""
        if units >= _LEAST_UNITS and took_s > 0:
            self._recent.add(units / took_s)
            if len(self._recent) >= _ENOUGH:
                self.value = self._recent.value() or self.value


_LEAST_UNITS = 512.0


@dataclass(slots=True)
class Costs:
    """All that is learned about calls, by model and route; bounded in memory."""

    bytes_per_token: float
    output_tokens: int
    knee_tokens: float
    _ratios: LRUCache[str | None, TokenRatio] = field(default_factory=lambda: LRUCache(256))
    _outputs: LRUCache[tuple[str | None, str], Recent] = field(default_factory=lambda: LRUCache(1024))

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
