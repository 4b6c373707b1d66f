"""Who may take how much of a replica's room, so that hundreds of clients do not all see the same gap.

Who sends more gets more; see ``core.load.room`` for how it is cut.
"""

from __future__ import annotations

from ..core.load.room import Turns, part
from .acks import Acks

_REFRESH_S = 1.0
_QUIET = 0.25
_FADE = 0.5


class Grant:
    """One subscriber's place: its part of the line, from ``low`` to ``high`` (0 to 1)."""

    __slots__ = ("client", "demand", "high", "low")

    def __init__(self, client: str | None) -> None:
        self.client = client
        self.demand = 0.0
        self.low = self.high = 0.0


class Grants:
    """The places of all subscribers. ``seed``: replicas of one host must not take turns in step."""

    def __init__(self, acks: Acks, seed: int = 0) -> None:
        self._acks = acks
        self._turns = Turns(seed)
        self._grants: dict[int, Grant] = {}
        self._laid_at: float | None = None

    def __len__(self) -> int:
        return len(self._grants)

    def admit(self, client: str | None) -> Grant:
        """A subscriber has come."""
        grant = Grant(client)
        self._grants[id(grant)] = grant
        self._laid_at = None
        return grant

    def drop(self, grant: Grant) -> None:
        """It is gone; its share is the others'."""
        if self._grants.pop(id(grant), None) is not None:
            self._laid_at = None

    def share(self, grant: Grant | None, room: int, now: float, unit: int = 1) -> int:
        """What of ``room`` is the subscriber's, in whole units; who has no place (it asks once) gets a share alike."""
        cuts = self._turns.cuts(now)
        if grant is None:
            return part(room, 0.0, 1.0 / (len(self._grants) + 1), cuts, unit)
        if self._laid_at is None or now - self._laid_at >= _REFRESH_S:
            self._lay(now)
        return part(room, grant.low, grant.high, cuts, unit)

    def turn_in_s(self, grant: Grant, room: int, now: float, most_s: float) -> float:
        """In how many seconds the subscriber's turn comes that has none of ``room`` now; ``most_s`` if not before."""
        if not room:
            return most_s
        turns = self._turns.ahead(now, most_s)
        return next((in_s for in_s, cuts in turns if part(room, grant.low, grant.high, cuts)), most_s)

    def _lay(self, now: float) -> None:
        if self._laid_at is not None:
            for grant in self._grants.values():
                grant.demand = grant.demand * _FADE + self._acks.calls_since(grant.client)
        total = sum(grant.demand + _QUIET for grant in self._grants.values())
        low = 0.0
        for grant in self._grants.values():
            grant.low = low
            low = grant.high = low + (grant.demand + _QUIET) / total
        if self._grants:
            grant.high = 1.0
        self._laid_at = now
