"""How much work stands before a new call at a replica, in seconds.

Own outstanding prefill, drained as time passes, plus a guess about others' work: what own calls have found on average
at replicas that looked alike by the pace of own streams (free, busy, busy for long, unseen). What a replica looked like
fades with time to what an unseen one is like. A call that is overdue says more. A load report, where there is
one, takes the place of the guess; all else stays.
"""

from __future__ import annotations

from math import exp

from .ledger import Ledger
from .pace import Found, Pace

_STEP = 0.05
# What a replica of each look has standing, against the mean over all calls, until own calls have shown it.
_PRIOR = {Found.FREE: 0.2, Found.BUSY: 1.0, Found.LONG_BUSY: 2.0, Found.UNSEEN: 1.0}
_PRIOR_CALLS = 10


class _Mean:
    """A plain mean at first, later a moving one."""

    __slots__ = ("count", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.count = 0

    def add(self, sample: float) -> None:
        self.count += 1
        self.value += max(_STEP, 1 / self.count) * (sample - self.value)


class LoadView:
    """``memory_s``: time constant with which what own streams have shown fades, in seconds."""

    def __init__(self, ledger: Ledger, memory_s: float) -> None:
        self.pace = Pace()
        self._ledger = ledger
        self._memory_s = memory_s
        self._looks = {found: _Mean() for found in Found}
        self._all = _Mean()
        self._others_s = dict.fromkeys(Found, 0.0)

    def waiting_s(self, place: int, now: float) -> float:
        """Seconds of prefill that stand before a call sent now."""
        account = self._ledger.account(place)
        others_s = self.others_s(place, now)
        if not account.queue:
            return others_s
        own_s, overdue_s = account.standing_s(now)
        return own_s + max(overdue_s, others_s)

    def others_s(self, place: int, now: float) -> float:
        """Seconds of other clients' work at the replica, as far as can be guessed."""
        found, age_s = self.pace.found(place, now)
        unseen_s = self._others_s[Found.UNSEEN]
        if found is Found.UNSEEN:
            return unseen_s
        return unseen_s + (self._others_s[found] - unseen_s) * exp(-age_s / self._memory_s)

    def found(self, place: int, now: float) -> Found:
        """How the replica looks, if that is still worth more than not having seen it."""
        found, age_s = self.pace.found(place, now)
        return found if age_s < self._memory_s else Found.UNSEEN

    def explained(self, found: Found, stood_s: float, own_s: float) -> None:
        """A call stood ``stood_s`` seconds until its first content; its own client had caused ``own_s`` of them."""
        others_s = max(0.0, stood_s - own_s)
        self._looks[found].add(others_s)
        self._all.add(others_s)
        for look, mean in self._looks.items():
            prior_s = _PRIOR[look] * self._all.value
            self._others_s[look] = prior_s + (mean.value - prior_s) * mean.count / (mean.count + _PRIOR_CALLS)

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self.pace.drop(place)
