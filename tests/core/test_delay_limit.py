"""One limit for all replicas: calls that have no content yet, by how long first contents stand behind others' work."""

from __future__ import annotations

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.delay_limit import DelayLimit

TARGET_S = 3.0


def limit_of(replicas: int = 8) -> DelayLimit:
    limit = DelayLimit(TARGET_S)
    limit.members(replicas)
    return limit


def crowded(limit: DelayLimit, calls: int, waiting: int, now: float = 0.0) -> float:
    """``calls`` rounds, each of which finds so much of others' work; the time after it."""
    for _ in range(calls):
        limit.waits(waiting)
        limit.sample(12.0, 1.0, now, 3, now + 12.0)
        now += 12.1
    return now


def test_it_begins_with_two_calls_a_replica_and_grows_as_fast_as_it_is_used() -> None:
    limit = limit_of(8)
    assert limit.opens_in_s(15, 0.0) == 0.0
    assert limit.opens_in_s(16, 0.0) == inf

    for _ in range(100):
        limit.sample(2.0, 2.0, 0.0, 1_000, 2.0)

    assert limit.opens_in_s(115, 2.0) == 0.0


def test_own_work_is_no_crowd_however_long() -> None:
    limit = limit_of()
    for _ in range(100):
        limit.sample(60.0, 60.0, 0.0, 100, 60.0)

    assert limit.value > 100


def test_others_work_cuts_it_to_a_few_and_below_one_only_while_more_wait_than_are_under_way() -> None:
    limit = limit_of()
    now = crowded(limit, 50, waiting=0)
    assert 3.0 <= limit.value <= 4.0

    now = crowded(limit, 50, waiting=10, now=now)
    assert limit.value < 1.0
    limit.sent(now)
    assert limit.opens_in_s(1, now) == inf
    assert limit.opens_in_s(0, now) > TARGET_S, "calls are spaced out"
    assert limit.opens_in_s(0, now + limit.opens_in_s(0, now)) == 0.0

    limit.waits(0)
    assert limit.value >= 3.0


def test_it_is_cut_once_a_round_and_by_half_at_most() -> None:
    limit = limit_of(50)
    for _ in range(20):
        limit.sample(100.0, 0.0, 0.0, 50, 100.0)

    assert limit.value == 50.0


def test_one_slow_replica_among_many_does_not_cut_it() -> None:
    limit = limit_of()
    before = limit.value
    for at in range(100):
        slow = at % 8 == 0
        limit.sample(30.0 if slow else 1.0, 1.0, float(at), 16, at + 30.0)

    assert limit.value >= before


def test_what_is_not_used_fades() -> None:
    limit = limit_of(100)
    for at in range(100):
        limit.sample(2.0, 1.0, float(at), 2, at + 2.0)

    assert limit.value < 5.0


def test_as_many_again_are_kept_for_urgent_calls() -> None:
    limit = limit_of()
    crowded(limit, 50, waiting=10)

    assert limit.opens_in_s(1, 0.0) == inf
    assert limit.takes_urgent(1)
    assert not limit.takes_urgent(2)


@pytest.mark.parametrize("figure", [nan, inf, -inf])
def test_absurd_times_are_not_believed(figure: float) -> None:
    limit = limit_of()
    for stood_s, own_s in ((figure, 1.0), (1.0, figure)):
        for _ in range(3):
            limit.sample(stood_s, own_s, 0.0, 100, 1.0)

    assert limit.value == 16.0


@given(
    st.lists(
        st.tuples(
            st.floats(-1e9, 1e9),
            st.floats(0, 1e9),
            st.integers(1, 1_000),
            st.integers(0, 100),
            st.floats(0, 10),
        ),
        max_size=60,
    )
)
def test_whatever_comes_a_call_may_be_sent_in_the_end(
    samples: list[tuple[float, float, int, int, float]],
) -> None:
    limit = limit_of()
    now = 0.0
    for stood_s, own_s, under_way, waiting, passed_s in samples:
        limit.waits(waiting)
        limit.sample(stood_s, own_s, now, under_way, now + passed_s)
        now += passed_s
        limit.sent(now)

    in_s = limit.opens_in_s(0, now)
    assert 0.0 <= in_s < inf
    assert limit.opens_in_s(0, now + in_s * 1.000001 + 1e-9) <= 1e-3
