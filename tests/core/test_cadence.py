"""How often replicas are asked: in phases, less without calls, less where it is slow, ever less after failures."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.load.cadence import Cadence


def cadence(seed: int = 1, interval_s: float = 1.0) -> Cadence:
    return Cadence(interval_s, Random(seed))


def test_many_clients_begin_all_over_the_interval() -> None:
    firsts = sorted(cadence(seed).first_s() for seed in range(200))

    assert firsts[0] < 0.05
    assert firsts[-1] > 0.95
    assert 0.4 < firsts[100] < 0.6


def test_two_that_began_in_step_do_not_stay_so() -> None:
    one, other = cadence(1), cadence(2)
    apart_s = sum(one.answered(0.0, calls=True) - other.answered(0.0, calls=True) for _ in range(20))

    assert abs(apart_s) > 0.05


def test_with_calls_the_pause_is_the_interval() -> None:
    asked = cadence()

    assert all(0.9 <= asked.answered(0.01, calls=True) <= 1.1 for _ in range(50))


@pytest.mark.parametrize("patience", [0, 4])
def test_without_calls_it_doubles_up_to_eight_and_a_call_may_end_it_after_the_interval(patience: int) -> None:
    asked = Cadence(1.0, Random(1), patience)
    pauses = [asked.answered(0.0, calls=False) for _ in range(patience + 5)]

    assert pauses == pytest.approx([1] * patience + [2, 4, 8, 8, 8], rel=0.1)
    assert 0.9 <= asked.least_s <= 1.1
    assert asked.answered(0.0, calls=True) <= 1.1


def test_asking_a_slow_server_takes_a_twentieth_of_the_time_at_most_whatever_calls_there_are() -> None:
    asked = cadence()

    assert 18 <= asked.answered(1.0, calls=True) <= 22
    assert 18 <= asked.least_s <= 22


def test_one_page_that_was_stuck_does_not_keep_a_client_blind_for_minutes() -> None:
    asked = cadence()

    assert asked.answered(25.0, calls=True) == pytest.approx(30, rel=0.1)


def test_failures_double_the_pause_and_an_answer_forgives_them() -> None:
    asked = cadence()
    pauses = [asked.failed() for _ in range(7)]

    assert pauses == pytest.approx([2, 4, 8, 16, 30, 30, 30], rel=0.1)
    assert asked.answered(0.0, calls=True) <= 1.1


def test_an_interval_longer_than_the_longest_pause_is_kept() -> None:
    assert cadence(interval_s=300.0).failed() >= 270


@given(
    st.integers(0, 99), st.floats(0.05, 3600), st.lists(st.one_of(st.none(), st.floats(0, 60)), max_size=60)
)
def test_no_pause_is_shorter_than_nine_tenths_of_the_interval(
    seed: int, interval_s: float, steps: list[float | None]
) -> None:
    asked = cadence(seed, interval_s)

    for took_s in steps:
        pause_s = asked.failed() if took_s is None else asked.answered(took_s, calls=bool(seed % 2))
        assert 0.9 * interval_s <= pause_s
        assert 0.9 * interval_s <= asked.least_s <= pause_s
