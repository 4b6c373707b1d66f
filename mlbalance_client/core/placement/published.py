"""Which prefixes replicas say that they hold: one compact table for all replicas, made for many.

A chain's hash falls into one of 2**16 buckets by its top bits. A bucket is an immutable string of 8-byte entries,
6 bytes of hash and 2 of the holder's number, so that a look-up is one search in a few hundred bytes and 1,000 replicas
with 4,000 chains each take about 35 MB. Readers never see a bucket half changed, whatever thread changes it.

Strangers fill it, so that everything is bounded: chains per holder, chains in all (beyond which each has its fair
share), and a holder's chains in one bucket, where honest hashes never crowd.

A *holder* is one life of a replica. When a replica starts anew its old holder is disowned: it is not found any more,
and its entries go all at once when half of the table is such.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

_BUCKETS = 1 << 16
_SHIFT = 48
_LOW = (1 << _SHIFT) - 1
_ENTRY = 8
_HASH = 6
_MOST_HOLDERS = 1 << 16
_LONG_BUCKET = 64 * _ENTRY
_MOST_IN_BUCKET = 32


class PublishedPrefixes:
    """``most_per_holder``: how many chains one replica may publish; ``most``: about how many all may together."""

    def __init__(self, most_per_holder: int = 65_536, most: int = 8_000_000) -> None:
        self._most_per_holder = most_per_holder
        self._most = most
        self._total = 0
        self._buckets: list[bytes] = [b""] * _BUCKETS
        self._counts: dict[int, int] = {}
        self._next = 0
        self._free: list[int] = []
        self._dead = 0

    def __len__(self) -> int:
        return self._total

    def count(self, holder: int) -> int:
        """How many chains a holder has."""
        return self._counts.get(holder, 0)

    def enrol(self) -> int:
        """A number for a replica that begins to publish."""
        if self._next == _MOST_HOLDERS and not self._free:
            self._sweep()
            self._free = sorted(set(range(_MOST_HOLDERS)) - self._counts.keys(), reverse=True)
            if not self._free:
                raise OverflowError(f"more than {_MOST_HOLDERS} replicas publish prefixes")
        if self._free:
            holder = self._free.pop()
        else:
            holder, self._next = self._next, self._next + 1
        self._counts[holder] = 0
        return holder

    def disown(self, holder: int) -> None:
        """The replica is gone, or has begun anew."""
        count = self._counts.pop(holder, 0)
        self._dead += count
        self._total -= count
        if self._dead > 10_000 and self._dead > self._total:
            self._sweep()

    def clear(self, holder: int) -> None:
        """The holder has nothing any more, and may go on. Goes through the whole table, if it had anything."""
        if not self._counts.get(holder):
            return
        number = holder.to_bytes(2, "little")
        for i, bucket in enumerate(self._buckets):
            at = bucket.find(number)
            if at < 0:
                continue
            left = bucket
            while at >= 0:
                if at % _ENTRY == _HASH:
                    left = left[: at - _HASH] + left[at - _HASH + _ENTRY :]
                    at = left.find(number, at - _HASH)
                else:
                    at = left.find(number, at + 1)
            self._buckets[i] = left
        self._total -= self._counts[holder]
        self._counts[holder] = 0

    def change(self, holder: int, add: Iterable[int], drop: Iterable[int]) -> None:
        """Chains that the holder has now, and such that it has no more."""
        if holder not in self._counts:
            return
        number = holder.to_bytes(2, "little")
        for chain in drop:
            self._without(chain >> _SHIFT, (chain & _LOW).to_bytes(_HASH, "little") + number)
        for chain in add:
            if not self._has_room(holder):
                return
            self._with(chain >> _SHIFT, (chain & _LOW).to_bytes(_HASH, "little") + number)

    def holds(self, holder: int, chain: int) -> bool:
        """Whether the holder has this chain."""
        entry = (chain & _LOW).to_bytes(_HASH, "little") + holder.to_bytes(2, "little")
        return _find(self._buckets[chain >> _SHIFT], entry, 0) >= 0

    def holders(self, chain: int) -> Iterator[int]:
        """Who has this chain, one after the other: there may be thousands, of whom few are wanted."""
        bucket = self._buckets[chain >> _SHIFT]
        if not bucket:
            return
        wanted = (chain & _LOW).to_bytes(_HASH, "little")
        at = _find(bucket, wanted, 0)
        while at >= 0:
            holder = bucket[at + _HASH] | bucket[at + _HASH + 1] << 8
            if holder in self._counts:
                yield holder
            at = _find(bucket, wanted, at + _ENTRY)

    def depth(self, holder: int, chain: Sequence[int]) -> int:
        """How many blocks of a prompt one holder has."""
        low, high = 0, len(chain)
        while low < high:
            middle = (low + high + 1) // 2
            if self.holds(holder, chain[middle - 1]):
                low = middle
            else:
                high = middle - 1
        return low

    def deepest(self, chain: Sequence[int], most: int, among: Callable[[int], bool]) -> list[tuple[int, int]]:
        """Up to ``most`` (holder, depth in blocks) of those ``among`` says yes to, deepest first."""
        found: dict[int, int] = {}
        high = len(chain)
        while high and len(found) < most:
            low = 0
            while low < high:
                middle = (low + high + 1) // 2
                if any(h not in found and among(h) for h in self.holders(chain[middle - 1])):
                    low = middle
                else:
                    high = middle - 1
            if low:
                for holder in self.holders(chain[low - 1]):
                    if holder not in found and among(holder):
                        found[holder] = low
                        if len(found) == most:
                            break
            high = low
        return list(found.items())

    def _has_room(self, holder: int) -> bool:
        count = self._counts[holder]
        if self._total >= self._most and count * len(self._counts) >= self._most:
            return False
        return count < self._most_per_holder

    def _with(self, bucket: int, entry: bytes) -> None:
        old = self._buckets[bucket]
        if _find(old, entry, 0) >= 0:
            return
        if len(old) > _LONG_BUCKET and old.count(entry[_HASH:]) >= _MOST_IN_BUCKET:
            return
        self._buckets[bucket] = old + entry
        self._counts[entry[_HASH] | entry[_HASH + 1] << 8] += 1
        self._total += 1

    def _without(self, bucket: int, entry: bytes) -> None:
        old = self._buckets[bucket]
        at = _find(old, entry, 0)
        if at >= 0:
            self._buckets[bucket] = old[:at] + old[at + _ENTRY :]
            self._counts[entry[_HASH] | entry[_HASH + 1] << 8] -= 1
            self._total -= 1

    def _sweep(self) -> None:
        """Remove the entries of holders that are no more."""
        living = self._counts
        for i, bucket in enumerate(self._buckets):
            if bucket:
                self._buckets[i] = b"".join(
                    bucket[at : at + _ENTRY]
                    for at in range(0, len(bucket), _ENTRY)
                    if bucket[at + _HASH] | bucket[at + _HASH + 1] << 8 in living
                )
        self._dead = 0


def _find(bucket: bytes, entry: bytes, start: int) -> int:
    """Where ``entry`` (or an entry that begins so) stands at or after ``start``; -1 if nowhere."""
    at = bucket.find(entry, start)
    while at >= 0 and at % _ENTRY:
        at = bucket.find(entry, at + 1)
    return at


class Publishers:
    """Which of one client's replicas publish, and what: its places against the holders of a shared table."""

    def __init__(self, table: PublishedPrefixes) -> None:
        self.table = table
        self._holders: dict[int, int] = {}
        self._places: dict[int, int] = {}
        self.mask = 0

    def __bool__(self) -> bool:
        return bool(self._holders)

    def assign(self, place: int, holder: int) -> None:
        """The replica at ``place`` publishes as ``holder`` from now on."""
        if self._holders.get(place) == holder:
            return
        self.drop(place)
        self._holders[place] = holder
        self._places[holder] = place
        self.mask |= 1 << place

    def drop(self, place: int) -> None:
        """The replica is gone or publishes no more."""
        holder = self._holders.pop(place, None)
        if holder is not None:
            left = next((other for other, its in self._holders.items() if its == holder), None)
            if left is None:
                del self._places[holder]
            else:
                self._places[holder] = left
            self.mask &= ~(1 << place)

    def count(self, place: int) -> int:
        """How many chains the replica at ``place`` has named."""
        holder = self._holders.get(place)
        return 0 if holder is None else self.table.count(holder)

    def deepest(self, chain: Sequence[int], among: int, most: int) -> list[tuple[int, int]]:
        """Up to ``most`` (place, depth in blocks) of those in the bit set ``among``, deepest first."""
        places = self._places

        def wanted(holder: int) -> bool:
            return (place := places.get(holder)) is not None and bool(among >> place & 1)

        return [(places[holder], depth) for holder, depth in self.table.deepest(chain, most, wanted)]

    def depth(self, place: int, chain: Sequence[int]) -> int:
        """How many blocks of a prompt the replica at ``place`` says that it has."""
        holder = self._holders.get(place)
        return 0 if holder is None else self.table.depth(holder, chain)
