"""Whom to ask before a call is placed: its likeliest replicas, for at most a twentieth of its own prefill."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.placement.freshening import whom_to_ask
from mlbalance_client.core.placement.picker import NO_HIT, Compared, Decision, Hit, Source
from mlbalance_client.core.placement.pool import Pool


def decision(scores: list[float], own_s: float = 1.0, best: Hit = NO_HIT) -> Decision:
    hits = dict.fromkeys(range(len(scores)), NO_HIT)
    hits[scores.index(min(scores))] = best
    count = len(scores)
    compared = Compared(hits, [0.0] * count, [own_s] * count, scores, 2.0)
    least = min(compared.candidates(), key=lambda each: each.score_s)
    return Decision(least, compared, "prefix_tokens", Pool({}, {}))


def test_the_eight_likeliest_are_asked() -> None:
    scores = [5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0]

    asked = whom_to_ask(decision(scores), 10_000, 2_000, lambda _: 0.001)
    assert asked == [1, 3, 4, 2, 0, 8, 7, 6]


def test_those_of_which_enough_is_known_or_that_cannot_be_asked_are_not() -> None:
    cost_s = {0: 0.0, 1: inf, 2: 0.001}

    assert whom_to_ask(decision([1.0, 2.0, 3.0]), 10_000, 2_000, cost_s.__getitem__) == [2]


def test_a_call_of_few_uncached_tokens_asks_nobody() -> None:
    cached = decision([1.0, 2.0], best=(9_000, Source.RECORD))

    assert whom_to_ask(cached, 10_000, 2_000, lambda _: 0.001) == []
    assert whom_to_ask(decision([1.0]), 1_999, 2_000, lambda _: 0.001) == []


@pytest.mark.parametrize(("takes_s", "asked"), [(0.02, [0, 1]), (0.05, [0]), (0.051, [])])
def test_asking_takes_a_twentieth_of_the_calls_own_time_at_most(takes_s: float, asked: list[int]) -> None:
    assert whom_to_ask(decision([1.0, 2.0, 3.0]), 10_000, 2_000, lambda _: takes_s) == asked


@given(
    st.lists(st.floats(0, 100), min_size=1, max_size=9),
    st.floats(0, 100),
    st.lists(st.one_of(st.just(0.0), st.just(inf), st.floats(0, 10)), min_size=9, max_size=9),
)
def test_whatever_asking_costs_its_bounds_hold(
    scores: list[float], own_s: float, takes_s: list[float]
) -> None:
    asked = whom_to_ask(decision(scores, own_s), 10_000, 1, takes_s.__getitem__)

    assert len(asked) == len(set(asked)) <= 8
    assert sum(takes_s[place] for place in asked) <= own_s / 20 + 1e-9
