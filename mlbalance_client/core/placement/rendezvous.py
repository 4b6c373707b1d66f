"""Weighted rendezvous hashing: who is at home with a key, the same answer in every client.

A key falls into one of 2**14 slots by its top bits. For a slot s and a replica with identity r and weight w,
u = (xxh3-64(le64(s) || le64(xxh3-64(r))) + 0.5) / 2**64 and the replica with the least -ln(u) / w comes first
(Wang & Ravishankar; the logarithmic form gives each its weight's share). Adding or removing a replica moves
only that replica's own keys. Rankings are O(n), so they are made once a slot and kept until membership changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import nsmallest
from math import log

from xxhash import xxh3_64_intdigest

SLOT_BITS = 14
RANKED = 8


class Rendezvous:
    """Rankings over one membership: ``members`` are (place, identity, weight); answers are places, best first."""

    def __init__(self, members: Sequence[tuple[int, str, float]]) -> None:
        self._members = [
            (place, xxh3_64_intdigest(identity.encode()).to_bytes(8, "little"), 1.0 / weight)
            for place, identity, weight in members
        ]
        self._ranked: dict[int, tuple[int, ...]] = {}

    def homes(self, key: int) -> tuple[int, ...]:
        """The first eight (or all, if fewer) places for a 64-bit key."""
        slot = key >> (64 - SLOT_BITS)
        ranked = self._ranked.get(slot)
        if ranked is None:
            ranked = self._ranked[slot] = self._rank(slot)
        return ranked

    def _rank(self, slot: int) -> tuple[int, ...]:
        prefix = slot.to_bytes(8, "little")
        distances = [
            (-log((xxh3_64_intdigest(prefix + identity) + 0.5) / 2**64) * inverse_weight, place)
            for place, identity, inverse_weight in self._members
        ]
        return tuple(place for _, place in nsmallest(RANKED, distances))
