"""Replicas that come and go."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Protocol

from ..model import Replica, ReplicaId


class FlapSettings(Protocol):
    """How often within which window is too often, and for how long one must stay then; times in seconds."""

    @property
    def flap_departures(self) -> int: ...
    @property
    def flap_window_s(self) -> float: ...
    @property
    def flap_hold_s(self) -> float: ...


class Flaps:
    """When replicas left, and when those that came back did so."""

    def __init__(self, settings: FlapSettings) -> None:
        self._settings = settings
        self._usable: set[ReplicaId] = set()
        self._left: dict[ReplicaId, deque[float]] = {}
        self._back: dict[ReplicaId, float] = {}

    def observe(self, replicas: Iterable[Replica], now: float) -> None:
        """These are there now, some of them usable."""
        usable = {replica.id for replica in replicas if replica.usable}
        for id_ in self._usable - usable:
            self._left.setdefault(id_, deque(maxlen=self._settings.flap_departures)).append(now)
            self._back.pop(id_, None)
        for id_ in usable - self._usable:
            if len(self._left.get(id_, ())) == self._settings.flap_departures:
                self._back[id_] = now
        self._usable = usable
        horizon = now - self._settings.flap_window_s
        for id_ in [id_ for id_, left in self._left.items() if left[-1] < horizon and id_ not in self._back]:
            del self._left[id_]

    def holds(self, id_: ReplicaId, now: float) -> bool:
        """Whether it has come back from flapping and not stayed for long enough yet."""
        back = self._back.get(id_)
        if back is None or now >= self.until(id_):
            return False
        return self._left[id_][0] >= back - self._settings.flap_window_s

    def until(self, id_: ReplicaId) -> float:
        """When one that is held will have stayed for long enough."""
        return self._back[id_] + self._settings.flap_hold_s
