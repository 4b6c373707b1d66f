"""How much work stands before a new call at a replica, in seconds.

Today: own outstanding prefill, drained as time passes, plus what others seem to have queued there, read off
own calls that waited longer than own work explains. A load report, where there is one, will replace that
guess in ``others_s``; all else stays.
"""

from __future__ import annotations

from math import exp

from .ledger import Charge, Ledger


class LoadView:
    """``memory_s``: time constant with which a guess about others' work fades, in seconds."""

    def __init__(self, ledger: Ledger, memory_s: float) -> None:
        self._ledger = ledger
        self._memory_s = memory_s
        self._others: dict[int, tuple[float, float]] = {}

    def backlog_s(self, place: int, now: float) -> float:
        """Seconds of prefill that stand before a call sent now."""
        account = self._ledger.account(place)
        return account.backlog_s(now) + max(self.others_s(place, now), account.overdue_s(now))

    def others_s(self, place: int, now: float) -> float:
        """Seconds of other clients' work at the replica, as last seen and faded since."""
        seen = self._others.get(place)
        return seen[0] * exp((seen[1] - now) / self._memory_s) if seen else 0.0

    def waited(self, place: int, charge: Charge, now: float) -> None:
        """A call showed its first content: what it waited beyond own work was others' work."""
        unexplained_s = max(0.0, now - charge.at - charge.waiting_s - charge.prefill_s)
        before_s = self.others_s(place, now)
        self._others[place] = ((before_s + unexplained_s) / 2, now)

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._others.pop(place, None)
