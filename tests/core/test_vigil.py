"""Whom to check and when: one at a time, an interval apart, within a budget, whatever happens."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.health.vigil import Vigil
from mlbalance_client.core.model import ReplicaId


@dataclass(frozen=True)
class Settings:
    interval_s: float = 10.0
    max_tokens_per_min: int = 600


IDS = [ReplicaId(name) for name in "abcd"]
STEPS = st.lists(
    st.tuples(
        st.floats(0, 30),  # seconds until then
        st.sets(st.sampled_from(IDS)),  # of whom traffic tells nothing
        st.sets(st.sampled_from(IDS)),  # whose check ends
        st.booleans(),  # whether there was a call
        st.none() | st.integers(0, 500),  # clients
    ),
    max_size=60,
)


@given(steps=STEPS, seed=st.integers(0, 1000))
def test_checks_are_of_the_unproven_one_at_a_time_and_an_interval_apart(
    steps: list[tuple[float, set[ReplicaId], set[ReplicaId], bool, int | None]], seed: int
) -> None:
    vigil = Vigil(Settings(), Random(seed))
    now, calls = 0.0, 0
    running: set[ReplicaId] = set()
    ready_at: dict[ReplicaId, float] = defaultdict(float)
    for wait_s, unproven, ends, called, clients in steps:
        now, calls = now + wait_s, calls + called
        for id_ in ends & running:
            running.discard(id_)
            vigil.ended(id_, now, calls, clients)
            ready_at[id_] = now + max(0.9 * 10.0, 0.9 * (clients or 0))
        due = vigil.due(unproven, now, calls)
        assert set(due) <= unproven - running
        assert len(due) == len(set(due))
        for id_ in due:
            assert now >= ready_at[id_] - 1e-6
        running |= set(due)


def first_check(vigil: Vigil, begins: float = 0.0, *, calls_at: float | None = None) -> float:
    """When the one replica is due."""
    now = begins
    while not vigil.due([IDS[0]], now, int(calls_at is not None and now >= calls_at)):
        now += 0.1
        assert now < begins + 10_000
    return now


def test_many_clients_that_see_the_same_fall_do_not_check_at_once() -> None:
    moments = [first_check(Vigil(Settings(), Random(seed))) for seed in range(400)]
    a_second = [sum(second <= moment < second + 1 for moment in moments) for second in range(10)]

    assert sum(a_second) >= 395
    assert max(a_second) <= 80


def test_so_they_do_if_they_had_all_checked_long_ago() -> None:
    moments = []
    for seed in range(100):
        vigil = Vigil(Settings(), Random(seed))
        vigil.ended(IDS[0], first_check(vigil) and 10.0, 0)
        moments.append(first_check(vigil, 500.0))
    assert max(moments) - min(moments) > 8
    assert max(moments) < 511


@pytest.mark.parametrize(("clients", "least_s"), [(None, 9.0), (3, 9.0), (200, 180.0)])
def test_the_more_clients_the_less_each(clients: int | None, least_s: float) -> None:
    vigil = Vigil(Settings(), Random(1))
    ended = first_check(vigil)
    vigil.ended(IDS[0], ended, 1, clients)
    again = first_check(vigil, ended, calls_at=0.0) - ended

    assert least_s <= again <= least_s * 1.25


def test_a_client_without_calls_checks_less_until_it_has_some() -> None:
    vigil, gaps, ended = Vigil(Settings(), Random(1)), [], 0.0
    for _ in range(6):
        began, ended = ended, first_check(vigil, ended)
        gaps.append(ended - began)
        vigil.ended(IDS[0], ended, 0)

    assert gaps[1] < gaps[2] < gaps[3]
    assert 70 < gaps[-1] < 90
    assert first_check(vigil, ended, calls_at=ended + 1.0) - ended < 12


def test_who_is_gone_is_forgotten() -> None:
    vigil = Vigil(Settings(), Random(1))
    began = first_check(vigil)
    assert vigil.due([IDS[0]], began + 100, 0) == []
    vigil.keep([])
    assert first_check(vigil, began + 100) < began + 111


@given(
    asks=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 200)), max_size=80),
    a_minute=st.integers(0, 2_000),
)
def test_over_any_window_no_more_is_spent_than_it_brings_and_a_minutes_worth(
    asks: list[tuple[float, int]], a_minute: int
) -> None:
    vigil = Vigil(Settings(max_tokens_per_min=a_minute), Random(0))
    now, spent = 0.0, []
    for wait_s, tokens in asks:
        now += wait_s
        if vigil.afford(tokens, now):
            spent.append((now, tokens))
    for first in range(len(spent)):
        for last in range(first, len(spent)):
            window_s = spent[last][0] - spent[first][0]
            total = sum(tokens for _, tokens in spent[first : last + 1])
            assert total <= a_minute * (1 + window_s / 60) + 1e-6


def test_what_a_check_cost_more_is_paid_later() -> None:
    vigil = Vigil(Settings(max_tokens_per_min=60), Random(0))
    assert vigil.afford(30, 0.0)
    vigil.cost_more(90)
    assert not vigil.afford(1, 59.0)
    assert vigil.afford(1, 62.0)
    vigil.cost_more(-50)
    assert not vigil.afford(60, 63.0)
