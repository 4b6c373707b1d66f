"""Priorities: the lower one first, the next one for what it cannot carry, and no key moves without need."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.config import PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.load.pace import Found
from mlbalance_client.core.model import Replica, ReplicaId, ReplicaState, Verdict
from mlbalance_client.core.placement.picker import Source
from mlbalance_client.core.placement.tiers import tiers
from mlbalance_client.errors import NoReplicas

H, D, X, G = ReplicaState.HEALTHY, ReplicaState.DEGRADED, ReplicaState.OUT, ReplicaState.DRAINING
KEYS = [Random(n).getrandbits(64) for n in range(4000)]


def members(*priorities: list[ReplicaState]) -> dict[int, Replica]:
    flat = [(priority, state) for priority, states in enumerate(priorities) for state in states]
    return {
        place: Replica(ReplicaId(f"r{place}"), f"http://r{place}", priority=priority, state=state)
        for place, (priority, state) in enumerate(flat)
    }


@pytest.mark.parametrize(
    ("priorities", "pools"),
    [
        ([[H, H], [H]], [{0, 1}, {2}]),
        ([[H, H, X], [H]], [{0, 1, 3}]),
        ([[H, H, H, X], [H]], [{0, 1, 2}, {4}]),
        ([[H, G, G], [H]], [{0}, {3}]),
        ([[H, X], [X], [H], [H]], [{0, 3}, {4}]),
        ([[D, D], [H]], [{2}, {0, 1}]),
        ([[D, D], [D]], [{0, 1}, {2}]),
        ([[D, X], [X]], [{0}]),
        ([[X, G], [X]], []),
        ([[H, D, D], [H]], [{0, 1, 2, 3}]),
        ([], []),
    ],
)
def test_which_replicas_are_in_use_and_who_comes_next(
    priorities: list[list[ReplicaState]], pools: list[set[int]]
) -> None:
    assert [set(pool.places) for pool in tiers(members(*priorities), 0.7, {})] == pools


def test_only_the_missing_share_of_the_keys_spills() -> None:
    whole = tiers(members([H] * 4, [H] * 4), 0.7, {})[0]
    half = tiers(members([H, H, X, X], [H] * 4), 0.7, {})[0]

    spilt = [key for key in KEYS if half.homes(key)[0] >= 4]
    stayed = [
        key for key in KEYS if whole.homes(key)[0] in (0, 1) and half.homes(key)[0] == whole.homes(key)[0]
    ]

    assert len(spilt) / len(KEYS) == pytest.approx(1 - 0.5 / 0.7, abs=0.03)
    assert len(stayed) / len([k for k in KEYS if whole.homes(k)[0] in (0, 1)]) > 0.75
    assert not [
        k for k in KEYS if whole.homes(k)[0] in (0, 1) and half.homes(k)[0] in (0, 1) and k not in stayed
    ]


@given(
    st.lists(st.lists(st.sampled_from([H, D, X, G]), max_size=5), max_size=4),
    st.floats(0.01, 1.0),
)
def test_every_usable_replica_is_in_one_pool_and_no_other_is(
    priorities: list[list[ReplicaState]], share: float
) -> None:
    serving = members(*priorities)

    placed = [place for pool in tiers(serving, share, {}) for place in pool.places]

    assert sorted(placed) == [place for place, r in serving.items() if r.usable]


def fleet(*replicas: Replica) -> Fleet:
    made = Fleet(PickingConfig(), Random(1))
    made.update(replicas)
    return made


def pick(fleet: Fleet, *excluded: str, text: bytes = b"x" * 9000) -> str:
    made = fleet.pick(fleet.demand(fingerprint(text), text_bytes=9000), 0.0, [ReplicaId(e) for e in excluded])
    made.settle(Verdict.OK, 0.0)
    return made.replica.id


def test_the_next_priority_takes_a_call_that_the_first_has_failed() -> None:
    it = fleet(*members([H], [H], [H]).values())

    assert pick(it) == "r0"
    assert pick(it, "r0") == "r1"
    assert pick(it, "r0", "r1") == "r2"
    with pytest.raises(NoReplicas, match="3 tried"):
        pick(it, "r0", "r1", "r2")


def test_a_draining_replica_gets_no_new_call_and_keeps_what_is_known_of_it() -> None:
    healthy, draining = members([H, H]), members([G, H])
    it = fleet(*healthy.values())
    held = it.pick(it.demand(fingerprint(b"p" * 9000), text_bytes=9000), 0.0)
    it.update(draining.values() if held.replica.id == "r0" else members([H, G]).values())

    assert {pick(it, text=bytes([n]) * 9000) for n in range(50)} == {"r0", "r1"} - {held.replica.id}
    assert it.ledger.requests == 1
    held.settle(Verdict.OK, 1.0)
    assert it.ledger.tokens == 0
    it.update(healthy.values())
    assert pick(it, text=b"p" * 9000) == held.replica.id, "its record of the prefix is still there"


def test_a_call_at_a_replica_that_has_gone_says_nothing_of_the_one_in_its_place() -> None:
    it = fleet(*members([H]).values())
    held = it.pick(it.demand(fingerprint(b"p" * 9000), text_bytes=9000), 0.0)
    it.update([Replica(ReplicaId("other"), "http://other")])
    assert [place for place, _ in it.places()] == [held.place]

    held.first_content(1.0)
    for second in range(2, 60):
        held.piece(float("-inf"), float(second))
    held.settle(Verdict.OK, 60.0)

    assert it.load.found(held.place, 60.0) is Found.UNSEEN
    assert (it.ledger.requests, it.ledger.tokens) == (0, 0)


def test_a_readdressed_replica_keeps_what_was_learned() -> None:
    it = fleet(*members([H, H, H]).values())
    first = it.pick(it.demand(fingerprint(b"p" * 9000), text_bytes=9000), 0.0)
    moved = [
        Replica(r.id, r.url + ":81") if r.id == first.replica.id else r for r in members([H, H, H]).values()
    ]

    change = it.update(moved)

    assert change.changed == (first.replica.id,)
    assert it.ledger.requests == 1
    first.settle(Verdict.OK, 1.0)
    again = it.pick(it.demand(fingerprint(b"p" * 9000), text_bytes=9000), 2.0)
    assert (again.replica.id, again.replica.url) == (first.replica.id, first.replica.url + ":81")
    assert again.decision.chosen.hit_tokens > 0


def test_a_degraded_replica_is_picked_when_the_others_are_that_much_later() -> None:
    it = fleet(*members([H, D]).values())
    assert {pick(it, text=bytes([n]) * 9000) for n in range(50)} == {"r0"}
    for n in range(10):
        it.pick(it.demand(fingerprint(bytes([n]) * 90_000), text_bytes=90_000), 0.0)
    assert it.ledger.account(1).requests > 0


def test_who_may_not_be_used_is_said() -> None:
    with pytest.raises(NoReplicas, match="r0 is out, r1 is draining"):
        pick(fleet(*members([X, G]).values()))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.booleans())
def test_one_of_a_hundred_moves_few_of_the_sticky_prefixes(number: int, joins: bool) -> None:
    """Through picks: of prompts that nobody has sent before, each goes to its home, here and in other clients."""
    everybody = [Replica(ReplicaId(f"replica-{n}"), f"http://replica-{n}") for n in range(100)]
    without = [r for r in everybody if r.id != f"replica-{number}"]
    before, after = (without, everybody) if joins else (everybody, without)
    prompts = [n.to_bytes(4, "big") * 4096 for n in range(100)]

    here, elsewhere = fleet(*before), fleet(*after)
    homes = {text: home(here, text) for text in prompts}
    here.update(after)

    moved = [text for text in prompts if home(here, text) != homes[text]]
    assert all(f"replica-{number}" in (home(here, text), homes[text]) for text in moved)
    assert [text for text in prompts if home(elsewhere, text) != homes[text]] == moved, (
        "clients agree on who moves"
    )


def home(fleet: Fleet, text: bytes) -> str:
    demand = fleet.demand(fingerprint(text), text_bytes=len(text))
    decision = fleet.choose(demand, 0.0)
    assert decision.chosen.source is Source.HOME
    return decision.pool.replicas[decision.chosen.place].id


def test_it_is_at_most_one_and_a_half_percent() -> None:
    everybody = [Replica(ReplicaId(f"replica-{n}"), f"http://replica-{n}") for n in range(100)]
    prompts = [n.to_bytes(4, "big") * 600 for n in range(4000)]
    it = fleet(*everybody)
    before = [home(it, text) for text in prompts]

    for number in (0, 41, 99):
        it.update([r for r in everybody if r.id != f"replica-{number}"])
        moved = sum(home(it, text) != was for text, was in zip(prompts, before, strict=True))
        assert 0 < moved <= 0.015 * len(prompts)
        it.update(everybody)
        assert [home(it, text) for text in prompts] == before
