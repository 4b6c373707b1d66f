"""Whether other clients use the same replicas, as far as own calls show.

Two signs, each a share from 0 (alone) to 1. *Waiting*: the part of own calls' waiting that own work does not explain;
what even the best calls wait (the network, a first decode step), a second at most, is nobody's work, nor is what one
call waits far beyond all others: that one has stalled. *Caches*: the part of the cached tokens in answers that this
client never sent there.
"""

from __future__ import annotations

from ..cost import MovingMean, Recent

_STEP = 0.02
# What a call has waited for others counts up to so many times what calls usually stand.
_MOST = 2.0
_KEEP = 0.95
_BASE_QUANTILE = 0.1
# Where even the best calls wait longer, they wait for others too.
_MOST_BASE_S = 1.0
_PRIOR_TOKENS = 4096.0
_PRIOR_KEEP = 0.8
# A client that is alone finds this share too, for it predicts its own work with errors; from the second on others are
# at work for certain.
_BY_CHANCE = 0.1
_IN_COMPANY = 0.2
_ENOUGH_CALLS = 10


class Company:
    """In company until caches show nothing but what this client itself sent. ``share``: the stronger of the signs."""

    __slots__ = ("_base_s", "_cached", "_others_cached", "_others_s", "_prior", "_stood_s", "share")

    def __init__(self) -> None:
        self._base_s = Recent(_BASE_QUANTILE)
        self._stood_s = MovingMean(_STEP)
        self._others_s = MovingMean(_STEP)
        self._cached = 0.0
        self._others_cached = 0.0
        self._prior = _PRIOR_TOKENS
        self.share = 1.0

    @property
    def degree(self) -> float:
        """From 0 (as good as alone) to 1: how much of what is not explained by own calls others may have caused."""
        return min(1.0, max(0.0, self.share - _BY_CHANCE) / (_IN_COMPANY - _BY_CHANCE))

    def stood(self, stood_s: float, own_s: float) -> None:
        """A call stood ``stood_s`` seconds until its first content; its own client had caused ``own_s`` of them."""
        rest_s = max(0.0, stood_s - own_s)
        self._base_s.add(rest_s)
        others_s = rest_s - min(_MOST_BASE_S, self._base_s.value() or 0.0)
        beyond_s = max(0.0, others_s - _MOST * self._stood_s.value) if self._stood_s.count else 0.0
        self._stood_s.add(stood_s - beyond_s)
        self._others_s.add(others_s - beyond_s)
        self._reckon()

    def found_cached(self, tokens: int, sent_before: int) -> None:
        """An answer told of ``tokens`` from the cache; this client had sent ``sent_before`` of them there itself."""
        others = max(0, tokens - sent_before)
        self._cached = self._cached * _KEEP + tokens
        self._others_cached = self._others_cached * _KEEP + others
        if tokens and not others:
            self._prior = max(1.0, self._prior * _PRIOR_KEEP)
        self._reckon()

    @property
    def delays(self) -> bool:
        """Whether own calls wait for others' work for certain."""
        return self._waiting >= _IN_COMPANY

    @property
    def leaves_alone(self) -> bool:
        """Whether own calls, enough of them, have waited for nobody else's work; caches may yet show others."""
        return self._stood_s.count >= _ENOUGH_CALLS and not self.delays

    @property
    def _waiting(self) -> float:
        return self._others_s.value / self._stood_s.value if self._stood_s.value > 0 else 0.0

    def _reckon(self) -> None:
        cached = (self._others_cached + self._prior) / (self._cached + self._prior)
        self.share = min(1.0, max(self._waiting, cached))
