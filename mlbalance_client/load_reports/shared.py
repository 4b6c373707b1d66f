"""Published prefixes, held once for all clients of the process that follow the same replica."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

from mlbalance_client.core.load.format import PrefixDelta
from mlbalance_client.core.placement.published import PublishedPrefixes

Key = tuple[str, str]

_SLICE = 2_000


@dataclass(slots=True)
class _Publisher:
    holder: int
    followers: int = 0
    seq: int = -1


class SharedPrefixes:
    """One life of a replica is known by its URL and epoch. Safe to use from any thread."""

    def __init__(self) -> None:
        self.table = PublishedPrefixes()
        self._publishers: dict[Key, _Publisher] = {}
        self._lock = Lock()

    def join(self, key: Key) -> int:
        """Follow a replica's life; the number that it has in ``table``. Call ``leave`` once for it."""
        with self._lock:
            publisher = self._publishers.get(key)
            if publisher is None:
                publisher = self._publishers[key] = _Publisher(self.table.enrol())
            publisher.followers += 1
            return publisher.holder

    def leave(self, key: Key) -> None:
        """The last one to leave clears the table of it."""
        with self._lock:
            publisher = self._publishers[key]
            publisher.followers -= 1
            if not publisher.followers:
                del self._publishers[key]
                self.table.disown(publisher.holder)

    def apply(self, key: Key, delta: PrefixDelta) -> Iterator[None]:
        """Take in what one follower has heard; what another has told already is passed over.

        A large one in slices of some milliseconds: go through all of it, and let others run in between.
        """
        with self._lock:
            publisher = self._publishers[key]
            if delta.seq <= publisher.seq:
                return
            publisher.seq = delta.seq
            if delta.reset:
                self.table.clear(publisher.holder)
            if len(delta.drop) + len(delta.add) <= _SLICE:
                self.table.change(publisher.holder, delta.add, delta.drop)
                return
        for at in range(0, len(delta.drop), _SLICE):
            with self._lock:
                self.table.change(publisher.holder, (), delta.drop[at : at + _SLICE])
            yield
        for at in range(0, len(delta.add), _SLICE):
            with self._lock:
                self.table.change(publisher.holder, delta.add[at : at + _SLICE], ())
            yield
