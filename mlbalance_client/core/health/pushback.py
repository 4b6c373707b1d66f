"""Replicas that have just failed rest for a while: the longer, the more often in a row.

What fails at once is always idle, so a picker that goes by load alone would send it everything. A failure makes its
replica rest for ``base_s`` seconds, doubled with each one in a row up to ``max_s``; a replica that names a time itself
(Retry-After) gets that, within ``max_s``. A success ends the row; and the rest, if the call was sent during it: a busy
replica that pushes back goes on with what it has, which calls nobody back. Those who rest are not picked while others
can be.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class _Rest:
    since: float
    until: float
    row: int


class Pushback:
    """Who rests. ``base_s`` of 0: nobody ever does."""

    def __init__(self, base_s: float, max_s: float) -> None:
        self._base_s = base_s
        self._max_s = max_s
        self._rests: dict[int, _Rest] = {}

    def alike(self) -> Pushback:
        """Another one with the same bounds, in which nobody rests."""
        return Pushback(self._base_s, self._max_s)

    def failed(self, place: int, now: float, retry_after_s: float | None = None) -> None:
        """The replica failed a call; failures of calls that were under way when it began to rest count once."""
        rest = self._rests.get(place)
        retry_after_s = retry_after_s or None  # a time that has passed names none
        resting = rest is not None and now < rest.until
        if not self._base_s or (resting and retry_after_s is None):
            return
        if rest is None:
            rest = self._rests[place] = _Rest(now, now, 0)
        if not resting:
            rest.since = now
        rest_s = self._base_s * 2 ** min(rest.row, 30) if retry_after_s is None else retry_after_s
        rest.until = max(rest.until, now + min(self._max_s, rest_s))
        rest.row += not resting

    def succeeded(self, place: int, sent: float) -> None:
        """The replica served a call that was sent at ``sent``."""
        rest = self._rests.get(place)
        if rest is None:
            return
        if sent >= rest.since:
            del self._rests[place]
        else:
            rest.row = 0

    def resting(self, now: float) -> int:
        """The places that rest now, as a bit set."""
        mask = 0
        for place, rest in self._rests.items():
            if now < rest.until:
                mask |= 1 << place
        return mask

    def rests_s(self, place: int, now: float) -> float:
        """How long the replica rests yet, in seconds."""
        rest = self._rests.get(place)
        return 0.0 if rest is None else max(0.0, rest.until - now)

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._rests.pop(place, None)
