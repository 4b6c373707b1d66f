"""What is learned stays finite and positive, whatever a replica says."""

import math

from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.cost import Costs, PrefillRates, TokenRatio, prefill_units

anything = st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(st.tuples(anything, anything), max_size=100))
def test_rates_stay_positive(samples: list[tuple[float, float]]) -> None:
    rates = PrefillRates()
    rates.admit(0, 1e4)
    rates.admit(1, 2e4)
    for units, took_s in samples:
        rates.learn(0, units, took_s)

    assert all(0 < rates[place] < math.inf for place in (0, 1))


@given(st.lists(st.tuples(st.integers(-10, 10**9), st.integers(-10, 10**9)), max_size=100))
def test_the_token_ratio_stays_in_bounds(samples: list[tuple[int, int]]) -> None:
    ratio = TokenRatio(4.0)
    for size, tokens in samples:
        ratio.learn(size, tokens)

    assert 0.5 <= ratio.value <= 16


def test_the_token_ratio_is_learned() -> None:
    ratio = TokenRatio(4.0)
    for _ in range(300):
        ratio.learn(3000, 1500)

    assert abs(ratio.value - 2.0) < 0.1


def test_rates_are_learned_by_replica_and_drawn_to_the_fleet() -> None:
    rates = PrefillRates()
    for place in range(3):
        rates.admit(place, 1e4)
    for _ in range(60):
        rates.learn(0, 10_000, 0.5)
        rates.learn(1, 10_000, 2.0)

    assert 1.6e4 < rates[0] <= 2e4
    assert 5e3 <= rates[1] < 8e3
    assert rates[1] < rates[2] <= rates[0] * 1.2


def test_expected_output_is_learned_by_route_and_never_above_the_limit() -> None:
    costs = Costs(4.0, 256, 3e4)
    assert costs.expected_output("m", "chat", None) == 256
    for tokens in range(100):
        costs.learn_output("m", "chat", tokens)

    assert 70 <= costs.expected_output("m", "chat", None) <= 99
    assert costs.expected_output("m", "chat", 10) == 10
    assert costs.expected_output("m", "other", None) == 256


@given(st.integers(1, 10**6), st.integers(1, 10**6))
def test_a_longer_uncached_part_costs_more(uncached: int, cached: int) -> None:
    prompt = uncached + cached

    assert 0 < prefill_units(uncached, prompt, 3e4) < prefill_units(prompt, prompt, 3e4)
