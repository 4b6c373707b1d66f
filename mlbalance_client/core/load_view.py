"""How much work stands before a new call at a replica, in seconds.

Own outstanding prefill, drained as time passes, plus a guess about others' work. A call that stood in a
replica's queue for a time T leaves behind it what others sent meanwhile: a part of T, namely as large as others'
part has been in the waiting of own calls lately. The guess starts there at the call's first content and returns to
the fleet's mean as it ages, so that a replica long unheard of looks average, not idle. A call that is overdue
says more. A load report, where there is one, takes the place of the guess; all else stays.
"""

from __future__ import annotations

from math import exp

from .ledger import Charge, Ledger

_BEHIND = 0.4
_STEP = 0.05


class LoadView:
    """``memory_s``: time constant with which a guess about others' work returns to the mean, in seconds."""

    def __init__(self, ledger: Ledger, memory_s: float) -> None:
        self._ledger = ledger
        self._memory_s = memory_s
        self._mean_s = 0.0
        self._stood_s = self._unexplained_s = 1.0
        self._seen: dict[int, tuple[float, float]] = {}

    @property
    def others_share(self) -> float:
        """Which part of own calls' waiting was others' work lately, 0 .. 1; 1 until calls have shown it."""
        return min(1.0, max(0.0, self._unexplained_s / self._stood_s)) if self._stood_s > 0 else 0.0

    def waiting_s(self, place: int, now: float) -> float:
        """Seconds of prefill that stand before a call sent now."""
        own_s, overdue_s = self._ledger.account(place).standing_s(now)
        return own_s + max(overdue_s, self.others_s(place, now))

    def others_s(self, place: int, now: float) -> float:
        """Seconds of other clients' work at the replica, as last seen and aged since."""
        seen = self._seen.get(place)
        if seen is None:
            return self._mean_s
        behind_s, at = seen
        return self._mean_s + (behind_s - self._mean_s) * exp(min(0.0, at - now) / self._memory_s)

    def heard(self, place: int, charge: Charge, now: float) -> None:
        """A call showed its first content: it stood in the queue until now."""
        behind_s = _BEHIND * self.others_share * max(0.0, now - charge.at)
        self._mean_s += _STEP * (behind_s - self._mean_s)
        self._seen[place] = (behind_s, now)

    def explained(self, stood_s: float, own_s: float) -> None:
        """Of ``stood_s`` seconds to its first content a call's own client has caused ``own_s``; the rest, others."""
        self._stood_s += _STEP * (stood_s - self._stood_s)
        self._unexplained_s += _STEP * (stood_s - own_s - self._unexplained_s)

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._seen.pop(place, None)
