"""Homes: all clients agree, weights give shares, and a change moves only what it must."""

import re
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.placement.rendezvous import Rendezvous

DOC = Path(__file__).parents[2] / "docs" / "fingerprint.md"
VECTORS = re.findall(r"^\| `(\w{16})` \| (replica-.*) \|$", DOC.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("key", "order"), VECTORS)
def test_golden_vectors_of_the_document(key: str, order: str) -> None:
    homes = Rendezvous([(i, f"replica-{i}", 2.0 if i == 3 else 1.0) for i in range(5)]).homes(int(key, 16))

    assert [f"replica-{place}" for place in homes] == order.split()


def test_there_are_vectors() -> None:
    assert len(VECTORS) >= 3


@given(st.permutations(range(6)), st.integers(0, 2**64 - 1))
def test_the_order_of_the_list_does_not_matter(order: list[int], key: int) -> None:
    sorted_ = Rendezvous([(i, f"r{i}", 1.0) for i in range(6)])
    shuffled = Rendezvous([(i, f"r{i}", 1.0) for i in order])

    assert sorted_.homes(key) == shuffled.homes(key)


def test_one_of_a_hundred_moves_only_its_own_keys() -> None:
    rng = Random(1)
    keys = [rng.getrandbits(64) for _ in range(20_000)]
    all_ = Rendezvous([(i, f"replica-{i}", 1.0) for i in range(100)])
    fewer = Rendezvous([(i, f"replica-{i}", 1.0) for i in range(99)])

    moved = [key for key in keys if all_.homes(key)[0] != fewer.homes(key)[0]]

    assert all(all_.homes(key)[0] == 99 for key in moved)
    assert 0 < len(moved) <= 0.015 * len(keys)


def test_weights_are_shares() -> None:
    rng = Random(2)
    homes = Rendezvous([(0, "a", 1.0), (1, "b", 2.0), (2, "c", 5.0)])

    counts = Counter(homes.homes(rng.getrandbits(64))[0] for _ in range(20_000))

    assert [round(counts[place] / 20_000, 1) for place in range(3)] == [0.1, 0.2, 0.6] or (
        abs(counts[2] / 20_000 - 5 / 8) < 0.02 and abs(counts[1] / 20_000 - 2 / 8) < 0.02
    )
