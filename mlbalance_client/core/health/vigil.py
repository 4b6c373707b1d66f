"""Whom a client checks, and when: those of whom its calls tell nothing, at moments of its own, within a budget.

Each replica is checked by a client at most once an interval, in a phase of the client's own and one check at a time.
The interval grows for a client without calls (up to eightfold, cadence.py), and with the number of clients where the
replica tells it: then all of them together make about one check a second there. Checks that cost tokens come out of a
bucket of so many a minute, which holds one minute's worth.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from ..load.cadence import Cadence
from ..model import ReplicaId

_JITTER = 0.1
_CLIENTS_PER_S = 1.0
_MINUTE_S = 60.0


class VigilSettings(Protocol):
    """The knobs; the configuration's section ``health_checks`` fulfils it."""

    @property
    def interval_s(self) -> float: ...
    @property
    def max_tokens_per_min(self) -> int: ...


@dataclass(slots=True)
class _Turn:
    """When a replica is next: at ``at``, or from ``busy_at`` on if there have been calls since."""

    cadence: Cadence
    at: float
    busy_at: float
    calls: int
    running: bool = False


class Vigil:
    """One client's."""

    def __init__(self, settings: VigilSettings, rng: Random) -> None:
        self._interval_s = settings.interval_s
        self._per_s = settings.max_tokens_per_min / _MINUTE_S
        self._most = float(settings.max_tokens_per_min)
        self._rng = rng
        self._turns: dict[ReplicaId, _Turn] = {}
        self._left = self._most
        self._filled_at: float | None = None

    def due(self, unproven: Iterable[ReplicaId], now: float, calls: int) -> list[ReplicaId]:
        """Those to be checked now, each of whose end ``ended`` must be told. ``calls``: how many there were ever."""
        due = []
        for id_ in unproven:
            turn = self._turns.get(id_)
            if turn is None:
                turn = self._turns[id_] = _Turn(Cadence(self._interval_s, self._rng), now, now, calls)
                turn.at = turn.busy_at = now + turn.cadence.first_s()
            elif turn.running:
                continue
            elif turn.at < now - self._interval_s:  # until now there was no need
                turn.at = turn.busy_at = now + turn.cadence.first_s()
            if now >= turn.at or (calls != turn.calls and now >= turn.busy_at):
                turn.running = True
                due.append(id_)
        return due

    def ended(self, id_: ReplicaId, now: float, calls: int, clients: int | None = None) -> None:
        """A check is over. ``clients``: how many the replica has, as far as it tells."""
        if (turn := self._turns.get(id_)) is None:
            return
        pause_s = turn.cadence.answered(0.0, calls=calls != turn.calls)
        least_s = (clients or 0) / _CLIENTS_PER_S * (1.0 + _JITTER * (2.0 * self._rng.random() - 1.0))
        turn.at = now + max(pause_s, least_s)
        turn.busy_at = now + max(turn.cadence.least_s, least_s)
        turn.calls, turn.running = calls, False

    def keep(self, ids: Iterable[ReplicaId]) -> None:
        """Forget all others: they are gone."""
        kept = set(ids)
        self._turns = {id_: turn for id_, turn in self._turns.items() if id_ in kept}

    def afford(self, tokens: int, now: float) -> bool:
        """Take so many tokens for a check, if they are there."""
        if self._filled_at is not None:
            self._left = min(self._most, self._left + (now - self._filled_at) * self._per_s)
        self._filled_at = now
        if self._left < tokens:
            return False
        self._left -= tokens
        return True

    def cost_more(self, tokens: int) -> None:
        """A check has cost so many tokens more than were taken for it."""
        self._left -= max(0, tokens)
