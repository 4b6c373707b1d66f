"""The shared table of published prefixes, against a plain model of it: a dict of sets."""

from __future__ import annotations

import tracemalloc
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mlbalance_client.core.placement.published import PublishedPrefixes, Publishers

# Hashes that crowd: few top bits, few low ones, and bytes that look like holders' numbers.
CHAINS = [
    top << 48 | low for top in (0, 1, 0xFFFF) for low in (0, 1, 0x0100, 0x0100_0000_0001, 0xFFFF_FFFF_FFFF)
]
chains = st.lists(st.sampled_from(CHAINS), max_size=6)


class AgainstSets(RuleBasedStateMachine):
    """Change, clear, disown and enrol in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.table = PublishedPrefixes()
        self.model: dict[int, set[int]] = {}

    @rule()
    def enrol(self) -> None:
        holder = self.table.enrol()
        assert holder not in self.model
        self.model[holder] = set()

    @rule(number=st.integers(0, 99), add=chains, drop=chains)
    def change(self, number: int, add: list[int], drop: list[int]) -> None:
        if self.model:
            holder = sorted(self.model)[number % len(self.model)]
            self.table.change(holder, add, drop)
            self.model[holder] = (self.model[holder] - set(drop)) | set(add)

    @rule(number=st.integers(0, 99))
    def clear(self, number: int) -> None:
        if self.model:
            holder = sorted(self.model)[number % len(self.model)]
            self.table.clear(holder)
            self.model[holder] = set()

    @rule(number=st.integers(0, 99))
    def disown(self, number: int) -> None:
        if self.model:
            holder = sorted(self.model)[number % len(self.model)]
            self.table.disown(holder)
            del self.model[holder]
            self.table.change(holder, CHAINS, [])  # nobody any more: changes nothing

    @invariant()
    def is_the_same(self) -> None:
        assert len(self.table) == sum(map(len, self.model.values()))
        for chain in CHAINS:
            assert sorted(self.table.holders(chain)) == sorted(h for h, s in self.model.items() if chain in s)
        for holder, held in self.model.items():
            assert self.table.count(holder) == len(held)
            assert {c for c in CHAINS if self.table.holds(holder, c)} == held


TestAgainstSets = AgainstSets.TestCase
TestAgainstSets.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(
    st.dictionaries(st.integers(0, 5), st.integers(0, 12), max_size=6),
    st.sets(st.integers(0, 5)),
    st.integers(1, 6),
)
def test_the_deepest_are_those_that_brute_force_finds(
    held: dict[int, int], among: set[int], most: int
) -> None:
    chain = [Random(1).getrandbits(64) ^ i for i in range(12)]
    table = PublishedPrefixes()
    holders = {name: table.enrol() for name in sorted(held)}
    for name, depth in held.items():
        table.change(holders[name], chain[:depth], ())
    wanted = {holders[name] for name in among if name in holders}

    found = table.deepest(chain, most, wanted.__contains__)

    depths = sorted((held[n] for n in among if held.get(n)), reverse=True)
    assert [depth for _, depth in found] == depths[:most]
    assert all(holder in wanted and table.depth(holder, chain) == depth for holder, depth in found)
    assert len({holder for holder, _ in found}) == len(found)


@pytest.mark.slow
def test_numbers_are_used_again_only_without_their_old_entries() -> None:
    table = PublishedPrefixes()
    for _ in range(1 << 16):
        holder = table.enrol()
        table.change(holder, [holder], ())
        table.disown(holder)

    assert len({table.enrol() for _ in range(100)}) == 100
    assert not any(list(table.holders(chain)) for chain in range(1 << 16))


def test_there_are_no_more_numbers_than_there_are() -> None:
    table = PublishedPrefixes()
    for _ in range(1 << 16):
        table.enrol()

    with pytest.raises(OverflowError):
        table.enrol()


def test_one_who_publishes_too_much_is_cut_short() -> None:
    table = PublishedPrefixes(most_per_holder=10)
    holder = table.enrol()
    table.change(holder, (Random(i).getrandbits(64) for i in range(50)), ())

    assert table.count(holder) == 10


def test_a_full_table_leaves_each_its_fair_share() -> None:
    table, rng = PublishedPrefixes(most=100), Random(1)
    greedy, modest = table.enrol(), table.enrol()
    table.change(greedy, [rng.getrandbits(64) for _ in range(500)], ())
    table.change(modest, [rng.getrandbits(64) for _ in range(500)], ())

    assert table.count(greedy) == 100
    assert table.count(modest) == 50


def test_hashes_made_to_crowd_one_bucket_are_refused_and_leave_room_for_others() -> None:
    table = PublishedPrefixes()
    liar, honest = table.enrol(), table.enrol()
    table.change(liar, range(10_000), ())
    table.change(honest, [77_777], ())

    assert table.count(liar) < 100
    assert table.holds(honest, 77_777)


@pytest.mark.slow
def test_thousand_replicas_of_four_thousand_chains_fit_into_64_mb() -> None:
    rng = Random(1)
    tracemalloc.start()
    table = PublishedPrefixes()
    empty = tracemalloc.get_traced_memory()[0]
    for _ in range(200):
        table.change(table.enrol(), (rng.getrandbits(64) for _ in range(4_000)), ())
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()

    assert len(table) > 799_000
    assert empty + 5 * (taken - empty) < 64e6


def test_a_clients_places_are_found_by_what_their_holders_have() -> None:
    table = PublishedPrefixes()
    publishers = Publishers(table)
    chain = [11 << 50, 22 << 50, 33 << 50]
    for place, depth in enumerate((1, 3, 2)):
        holder = table.enrol()
        table.change(holder, chain[:depth], ())
        publishers.assign(place, holder)

    assert publishers.deepest(chain, 0b111, 2) == [(1, 3), (2, 2)]
    assert publishers.deepest(chain, 0b101, 2) == [(2, 2), (0, 1)]
    publishers.drop(1)
    assert publishers.deepest(chain, 0b111, 3) == [(2, 2), (0, 1)]
    assert (publishers.depth(1, chain), publishers.depth(2, chain), publishers.mask) == (0, 2, 0b101)


def test_a_replica_that_begins_anew_is_found_by_its_new_life_only() -> None:
    table = PublishedPrefixes()
    publishers = Publishers(table)
    old, new = table.enrol(), table.enrol()
    table.change(old, [5, 6], ())
    table.change(new, [5], ())
    publishers.assign(0, old)
    publishers.assign(0, new)
    publishers.assign(0, new)

    assert publishers.deepest([5, 6], 1, 3) == [(0, 1)]
    assert publishers.count(0) == 1


def test_two_places_of_one_holder_go_one_after_the_other() -> None:
    table = PublishedPrefixes()
    publishers = Publishers(table)
    holder = table.enrol()
    table.change(holder, [7 << 50], ())
    for place in (0, 1):
        publishers.assign(place, holder)

    publishers.drop(1)
    assert publishers.deepest([7 << 50], 0b11, 2) == [(0, 1)]
    publishers.drop(0)
    assert publishers.deepest([7 << 50], 0b11, 2) == []
    assert not publishers
