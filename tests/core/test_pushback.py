"""Replicas that have failed rest: longer each time in a row, within bounds, never all of them, and not for ever."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.config import PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.health.pushback import Pushback
from mlbalance_client.core.model import Replica, ReplicaId, Verdict


def test_each_failure_in_a_row_doubles_the_rest_up_to_its_bound() -> None:
    rests = Pushback(1.0, 5.0)
    now = 0.0
    found = []
    for _ in range(4):
        rests.failed(3, now)
        found.append(rests.rests_s(3, now))
        now += found[-1]
        assert rests.resting(now) == 0

    assert found == [1.0, 2.0, 4.0, 5.0]

    rests.succeeded(3, now)
    rests.failed(3, now)

    assert rests.rests_s(3, now) == 1.0


def test_failures_of_one_burst_count_once() -> None:
    rests = Pushback(1.0, 60.0)
    for _ in range(10):
        rests.failed(0, 0.0)

    assert rests.rests_s(0, 0.0) == 1.0


def test_a_replica_names_its_own_time_within_the_bound() -> None:
    rests = Pushback(1.0, 30.0)
    rests.failed(0, 0.0, retry_after_s=7.0)
    rests.failed(1, 0.0, retry_after_s=1e99)
    rests.failed(2, 0.0)
    rests.failed(2, 0.5, retry_after_s=0.0)

    assert [rests.rests_s(place, 0.0) for place in range(3)] == [7.0, 30.0, 1.0]


def test_what_was_under_way_before_does_not_end_a_rest_that_the_replica_asked_for() -> None:
    rests = Pushback(1.0, 30.0)
    rests.failed(0, 5.0, retry_after_s=20.0)

    rests.succeeded(0, sent=4.0)
    assert rests.rests_s(0, 6.0) == 19.0

    rests.succeeded(0, sent=7.0)
    assert rests.rests_s(0, 8.0) == 0.0


def test_a_burst_that_names_a_time_is_one_failure_too() -> None:
    rests = Pushback(1.0, 60.0)
    for _ in range(10):
        rests.failed(0, 0.0, retry_after_s=1.0)
    rests.failed(0, 1.0)

    assert rests.rests_s(0, 1.0) == 2.0


def test_a_base_of_zero_turns_it_off() -> None:
    rests = Pushback(0.0, 30.0)
    rests.failed(0, 0.0, retry_after_s=9.0)

    assert rests.resting(0.0) == 0


@given(failing=st.sets(st.integers(0, 3)), calls=st.integers(1, 40), seed=st.integers(0, 99))
def test_who_rests_is_picked_only_if_all_do(failing: set[int], calls: int, seed: int) -> None:
    fleet = Fleet(PickingConfig(), Random(seed), Pushback(60.0, 600.0))
    fleet.update(Replica(ReplicaId(f"r{i}"), f"http://r{i}") for i in range(4))
    demand = fleet.demand(fingerprint(b"x" * 5000), text_bytes=5000)
    failed: set[str] = set()
    for call in range(calls):
        pick = fleet.pick(demand, float(call) / 100)
        if len(failed) < 4:
            assert pick.replica.id not in failed
        if int(pick.replica.id[1:]) in failing:
            failed.add(pick.replica.id)
            pick.failed(float(call) / 100)
            pick.settle(Verdict.FAILED, float(call) / 100)


def test_a_success_or_a_new_life_wakes_a_replica() -> None:
    fleet = Fleet(PickingConfig(), Random(1), Pushback(60.0, 600.0))
    replica = Replica(ReplicaId("r"), "http://r")
    fleet.update([replica])
    demand = fleet.demand(fingerprint(b"x"), text_bytes=1)
    fleet.pick(demand, 0.0).failed(0.0)
    assert fleet.fitness.pushback.resting(1.0) == 1

    fleet.pick(demand, 1.0).settle(Verdict.OK, 2.0)
    assert fleet.fitness.pushback.resting(2.0) == 0

    fleet.pick(demand, 3.0).failed(3.0)
    fleet.update([])
    fleet.update([replica])
    assert fleet.fitness.pushback.resting(4.0) == 0


@pytest.mark.parametrize("hint_s", [None, 0.0])
def test_a_time_that_has_passed_is_no_leave_to_come_back_at_once(hint_s: float | None) -> None:
    pushback = Pushback(0.5, 30.0)
    pushback.failed(0, 1.0, hint_s)
    assert pushback.rests_s(0, 1.0) == 0.5
    pushback.failed(0, 1.5, hint_s)
    assert pushback.rests_s(0, 1.5) == 1.0
