"""What the pace of own streams tells of a replica's queue.

An engine that has prefill standing gives most of every step to it, so that all streams beside it slow down (chunked
prefill, Sarathi-Serve), or stop (engines without). A client's own streams therefore show, piece by piece and at no
cost, whether work of others is standing at their replica: a fast piece says that none is, slow ones that there is.
"""

from __future__ import annotations

from collections.abc import Container
from enum import StrEnum
from math import inf
from statistics import median

from ..cost import Recent

_SLOW = 4.0
# What a replica shows to be fast counts up to so many times what is fast in its fleet: one that has been overloaded
# for long has shown nothing else.
_SLOWEST = 3.0
_LONG_S = 0.5
_SAME_WRITE_S = 0.001
_FASTEST = 0.1
_SAMPLES = 64
_FLEET_SAMPLES = 256
_ONE_IN = 8
_OTHERS = 2


class Found(StrEnum):
    """How own streams show a replica to be."""

    UNSEEN = "unseen"
    FREE = "free"
    BUSY = "busy"
    LONG_BUSY = "long busy"


# Python 3.11 looks up a member of an enum by a call.
_UNSEEN, _FREE = Found.UNSEEN, Found.FREE


class _Replica:
    """How its own streams have gone lately. What is fast is learned; of the fleet, until it has shown enough."""

    __slots__ = (
        *("_alone", "_count", "_fastest", "_fleet", "_slow_s"),
        *("at", "began_at", "busy_since", "streams"),
    )

    def __init__(self, fleet: Recent) -> None:
        self.streams = 0
        self.at: float | None = None
        # When it last showed an own call's first content.
        self.began_at = -inf
        self.busy_since: float | None = None
        self._fleet = fleet
        self._fastest = Recent(_FASTEST, _SAMPLES)
        # Those of them that came beside no own prefill: a step that takes some is slow at a sound replica too.
        self._alone = Recent(_FASTEST, _SAMPLES)
        self._slow_s = inf
        self._count = 0

    def piece(self, gap_s: float, now: float, *, alone: bool) -> None:
        """A piece came ``gap_s`` after the one before it; ``alone``: while no own prefill was standing there."""
        if not self._count % _ONE_IN:
            self._learn(gap_s)
            if alone:
                self._alone.add(gap_s)
        self._count += 1
        if gap_s < self._slow_s:
            self.busy_since = None
        elif self.busy_since is None:
            self.busy_since = now - gap_s
        self.at = now

    @property
    def fastest_s(self) -> float | None:
        """How soon after another its quickest pieces come beside no own prefill, once it has shown enough of them."""
        return self._alone.value() if len(self._alone) == _SAMPLES else None

    def slow_since(self, now: float) -> float | None:
        """Since when its streams are slow, or, if one is open, silent for too long; None if they are not."""
        if self.busy_since is None and self.streams and self.at is not None and now - self.at > self._slow_s:
            return self.at
        return self.busy_since

    def _learn(self, gap_s: float) -> None:
        self._fastest.add(gap_s)
        self._fleet.add(gap_s)
        fast_s = fleet_s = self._fleet.value() or gap_s
        if len(self._fastest) == _SAMPLES:
            fast_s = min(self._fastest.value() or fleet_s, _SLOWEST * fleet_s)
        self._slow_s = _SLOW * fast_s


class Stream:
    """One own stream after its first content. Close it once, whatever the way out."""

    __slots__ = ("_arrived", "_replica")

    def __init__(self, replica: _Replica, now: float) -> None:
        self._replica: _Replica | None = replica
        self._arrived = now
        replica.streams += 1

    def piece(self, asked: float, arrived: float, *, alone: bool = True) -> None:
        """A piece for which the reader asked at ``asked`` came at ``arrived``; ``alone``: beside no own prefill."""
        since = self._arrived
        gap_s = arrived - since
        if gap_s < _SAME_WRITE_S:
            return
        waited = 2 * (arrived - asked) >= gap_s
        self._arrived = arrived
        replica = self._replica
        # A reader who comes late finds pieces that lay waiting; they tell nothing.
        if replica is None or not waited:
            return
        replica.piece(gap_s, arrived, alone=alone and replica.began_at <= since)

    def close(self) -> None:
        """The stream has ended or was left."""
        if self._replica is not None:
            self._replica.streams -= 1
            self._replica = None


class Pace:
    """The pace of all own streams, by replica."""

    def __init__(self) -> None:
        self._replicas: dict[int, _Replica] = {}
        self._fleet = Recent(_FASTEST, _FLEET_SAMPLES)

    @property
    def places(self) -> Container[int]:
        """Where own streams have been."""
        return self._replicas

    def stream(self, place: int, now: float) -> Stream:
        """A stream at ``place`` has shown its first content."""
        replica = self._replicas.get(place)
        if replica is None:
            replica = self._replicas[place] = _Replica(self._fleet)
        replica.began_at = now
        return Stream(replica, now)

    def last_at(self, place: int) -> float:
        """When the last piece came from there for which its reader waited; before all time if none has."""
        replica = self._replicas.get(place)
        return -inf if replica is None or replica.at is None else replica.at

    def found(self, place: int, now: float) -> tuple[Found, float]:
        """How the replica looks, and how many seconds old the evidence is."""
        replica = self._replicas.get(place)
        if replica is None or replica.at is None:
            return _UNSEEN, inf
        age_s = 0.0 if replica.streams else now - replica.at
        since = replica.slow_since(now)
        if since is None:
            return _FREE, age_s
        return (Found.LONG_BUSY if now - since > _LONG_S else Found.BUSY), age_s

    def lag(self, place: int) -> float:
        """By what factor its pieces come slower than the median of the others', at their quickest; 1 if not slower."""
        own = self._replicas.get(place)
        fleet_s = self._fleet.value()
        if own is None or own.fastest_s is None or fleet_s is None or own.fastest_s < _SLOW * fleet_s:
            return 1.0
        others = [
            replica.fastest_s
            for other, replica in self._replicas.items()
            if other != place and replica.fastest_s is not None
        ]
        return own.fastest_s / median(others) if len(others) >= _OTHERS else 1.0

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._replicas.pop(place, None)
