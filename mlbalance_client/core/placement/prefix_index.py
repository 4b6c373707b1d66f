"""This client's own record of what it sent where: which prefixes a replica should still have in its cache.

One table maps a block hash to the set of replicas holding it (an integer, one bit a replica). A hash stands for all
that comes before its block too, and whoever holds a block was sent all before it; so a look-up halves the prompt's
chain, whatever the number of replicas. Each replica's blocks age in LRU order and are limited to what its cache is
believed to hold; deep blocks of a prompt go before shallow ones, as in engines.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

_CUT, _GROWTH = 0.9, 1.02


class PrefixIndex:
    """``capacity_blocks``: how many blocks one replica is believed to hold at most.

    ``total_blocks`` bounds the memory of the whole record (about 200 bytes a block).
    """

    def __init__(self, capacity_blocks: int, total_blocks: int = 500_000) -> None:
        self._believed_blocks = capacity_blocks
        self._total_blocks = total_blocks
        self._holders: dict[int, int] = {}
        self._held: dict[int, OrderedDict[int, None]] = {}
        self._limits: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._holders)

    def record(self, place: int, chain: Sequence[int]) -> int:
        """Note that the replica at ``place`` is being sent a prompt with this chain; how many blocks it had before."""
        held = self._held.get(place)
        if held is None:
            held = self._held[place] = OrderedDict()
            self._limits.setdefault(place, float(self._believed_blocks))
        holders, bit, renew = self._holders, 1 << place, held.move_to_end
        known = len(chain)
        for block in reversed(chain):
            if block in held:
                renew(block)
            else:
                held[block] = None
                holders[block] = holders.get(block, 0) | bit
                known -= 1
        self._trim(place, held)
        return known

    def deepest(self, chain: Sequence[int], among: int, most: int) -> list[tuple[int, int]]:
        """Up to ``most`` (place, depth in blocks) of replicas in the bit set ``among``, deepest first."""
        found: list[tuple[int, int]] = []
        left, depth = among, len(chain)
        while left and depth and len(found) < most:
            depth, places = self._deepest_of(chain, depth, left)
            left &= ~places
            while places and len(found) < most:
                low = places & -places
                found.append((low.bit_length() - 1, depth))
                places ^= low
        return found

    def _deepest_of(self, chain: Sequence[int], high: int, among: int) -> tuple[int, int]:
        """The greatest depth up to ``high`` at which any of ``among`` holds the chain, and who does; by halving."""
        get = self._holders.get
        low = places = 0
        while low < high:
            middle = (low + high + 1) // 2
            if held := get(chain[middle - 1], 0) & among:
                low, places = middle, held
            else:
                high = middle - 1
        return low, places

    def depth(self, place: int, chain: Sequence[int]) -> int:
        """How many leading blocks the replica at ``place`` is believed to hold."""
        held = self._held.get(place)
        if not held:
            return 0
        for depth, block in enumerate(chain):
            if block not in held:
                return depth
        return len(chain)

    def confirmed(self, place: int, *, predicted_blocks: int, seen_blocks: int) -> None:
        """An answer told how much was cached: shrink what we believe on a miss, grow it slowly on a hit."""
        if not predicted_blocks or place not in self._limits:
            return
        if seen_blocks < predicted_blocks // 2:
            self._limits[place] = max(64.0, min(self._limits[place], len(self._held[place])) * _CUT)
            self._trim(place, self._held[place])
        elif seen_blocks >= predicted_blocks:
            self._limits[place] = min(self._believed_blocks, self._limits[place] * _GROWTH)

    def forget(self, place: int, chain: Sequence[int]) -> None:
        """These blocks are not there after all."""
        if held := self._held.get(place):
            for block in chain:
                if block in held:
                    del held[block]
                    self._release(block, 1 << place)

    def drop(self, place: int) -> None:
        """The replica is gone or has restarted with an empty cache."""
        for block in self._held.pop(place, ()):
            self._release(block, 1 << place)
        self._limits.pop(place, None)

    def limit_blocks(self, place: int) -> int:
        """What the replica is believed to hold at most, in blocks."""
        return int(self._limits.get(place, self._believed_blocks))

    def _trim(self, place: int, held: OrderedDict[int, None]) -> None:
        fair_share = self._total_blocks // max(1, len(self._held))
        limit = min(self._limits[place], max(64, fair_share))
        while len(held) > limit:
            block, _ = held.popitem(last=False)
            self._release(block, 1 << place)

    def _release(self, block: int, bit: int) -> None:
        left = self._holders[block] & ~bit
        if left:
            self._holders[block] = left
        else:
            del self._holders[block]
