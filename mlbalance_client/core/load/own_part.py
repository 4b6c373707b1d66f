"""This client's part of a replica's room, where the replica tells how many calls it has but grants nobody anything.

All clients see the same gap in the same report, and each would fill it. So each takes the part of it that its own calls
are of all that replicas have. What is less than a call is a call by chance, drawn for each report: a room for one is
one client's, on average; who has not used a better draw keeps it. Until the next report the room grows as work drains,
and what was sent is used up.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from ..cost import MovingMean

_STEP = 0.01


@dataclass(slots=True)
class _Told:
    """``stood_s``: what stood there; ``chance``: from 0 to 1; ``sent_s``: own prefill sent since."""

    at: float
    stood_s: float
    chance: float
    sent_s: float = 0.0


class OwnPart:
    """``expiry_s``: a report's life. Times and work in seconds."""

    def __init__(self, rng: Random, expiry_s: float) -> None:
        self._rng = rng
        self._expiry_s = expiry_s
        self._told: dict[int, _Told] = {}
        self._own = MovingMean(_STEP)
        self._all = MovingMean(_STEP)

    @property
    def share(self) -> float:
        """Of all calls at replicas, own ones; who has none may have one. 1: there are no others."""
        one = 1.0 / max(1, len(self._told))
        return min(1.0, max(one, self._own.value) / max(one, self._all.value))

    def hear(self, place: int, at: float, own_calls: int, calls: int, stood_s: float) -> None:
        """A replica has ``calls``, of which this client knows ``own_calls`` to be its own."""
        self._own.add(own_calls)
        self._all.add(max(own_calls, calls))
        chance, before = self._rng.random(), self._told.get(place)
        if before is not None and not before.sent_s:
            chance = max(chance, before.chance)
        self._told[place] = _Told(at, stood_s, chance)

    def sent(self, place: int, prefill_s: float) -> None:
        """This client has sent a call there."""
        if (told := self._told.get(place)) is not None:
            told.sent_s += prefill_s

    def opens_in_s(self, place: int, most_s: float, call_s: float, now: float) -> float:
        """In how many seconds a call may be sent there, of which ``call_s`` is the usual one; 0: now, or nobody else is
        known to be there. ``most_s``: what may stand there."""
        told, share = self._told.get(place), self.share
        if told is None or share == 1.0 or now - told.at >= self._expiry_s:
            return 0.0
        room_s = most_s - told.stood_s + now - told.at
        needed_s = told.sent_s + call_s * (1.0 - share) * (1.0 - told.chance)
        return max(0.0, needed_s / share - room_s)

    def drop(self, place: int) -> None:
        """The replica is gone, or tells otherwise."""
        self._told.pop(place, None)
