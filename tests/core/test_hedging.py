"""When a call counts as slow, and when a second attempt is of use and harmless."""

from __future__ import annotations

from math import inf
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.config import HedgingConfig, PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet, Pick
from mlbalance_client.core.hedging import Hedging, RecentQuantile
from mlbalance_client.core.model import Demand, Replica, ReplicaId
from mlbalance_client.core.placement.picker import Candidate, Compared, Decision, Source

OPEN = HedgingConfig(reserve_tokens=1_000_000)


def fleet_of(count: int = 3) -> Fleet:
    fleet = Fleet(PickingConfig(), Random(1))
    fleet.update(Replica(ReplicaId(str(i)), f"http://{i}") for i in range(count))
    return fleet


def demand_of(
    fleet: Fleet, tokens: int = 1000, *, text: bytes = b"x", blind: bool = False, output: int = 100
) -> Demand:
    return fleet.demand(
        fingerprint(text * 4 * tokens), text_bytes=4 * tokens, blind=blind, output_limit=output, route="chat"
    )


def pick_of(tokens: int = 1000, **more: object) -> Pick:
    fleet = fleet_of()
    return fleet.pick(demand_of(fleet, tokens, **more), 0.0)  # type: ignore[arg-type]


def feed(hedging: Hedging, pick: Pick, multiples: list[float]) -> None:
    expected = hedging.expect(pick)
    for number, multiple in enumerate(multiples):
        hedging.answered(expected, multiple * expected.seconds, number * 0.01)


def decision(*, waiting_s: list[float], own_s: float = 0.1, hit_tokens: int = 0) -> Decision:
    hits = dict.fromkeys(range(len(waiting_s)), (hit_tokens, Source.NONE))
    compared = Compared(hits, waiting_s, [own_s] * len(waiting_s), waiting_s, 1.0)
    chosen = Candidate(0, hit_tokens, Source.NONE, waiting_s[0], own_s, 0.0)
    return Decision(chosen, compared, "prefix_tokens", None)  # type: ignore[arg-type]


def test_a_long_prompt_is_not_hedged_for_being_long() -> None:
    hedging = Hedging(OPEN)
    short, long = pick_of(100), pick_of(10_000)

    assert hedging.slow_after_s(hedging.expect(long)) > 5 * hedging.slow_after_s(hedging.expect(short))


def test_nor_one_that_waits_in_a_queue_that_was_known() -> None:
    fleet, hedging = fleet_of(1), Hedging(OPEN)
    first, second = (
        hedging.expect(fleet.pick(demand_of(fleet, 10_000, text=text), 0.0)) for text in (b"x", b"y")
    )

    assert second.seconds > 1.5 * first.seconds
    assert hedging.slow_after_s(second) > hedging.slow_after_s(first)


def test_before_there_are_samples_a_guess_serves_and_then_the_quantile() -> None:
    hedging, pick = Hedging(OPEN), pick_of()
    expected = hedging.expect(pick)
    assert hedging.slow_after_s(expected) == pytest.approx(OPEN.first_guess * expected.seconds)
    feed(hedging, pick, [1.0] * 19)
    assert hedging.slow_after_s(expected) == pytest.approx(OPEN.first_guess * expected.seconds)
    feed(hedging, pick, [1.0] * 100)

    assert hedging.slow_after_s(expected) == pytest.approx(OPEN.margin * expected.seconds, rel=0.03)


def test_two_stalls_in_a_hundred_do_not_move_it() -> None:
    hedging, pick = Hedging(OPEN), pick_of()
    feed(hedging, pick, ([1.0] * 49 + [15.0]) * 20)

    assert hedging.slow_after_s(hedging.expect(pick)) == pytest.approx(
        OPEN.margin * hedging.expect(pick).seconds, rel=0.03
    )


@pytest.mark.parametrize("factor", [5.0, 10.0])
def test_one_slow_replica_of_eight_is_not_taken_for_usual(factor: float) -> None:
    """Neither when its calls are answered, nor when they are hedged away at the delay."""
    hedging, fleet = Hedging(OPEN), fleet_of(8)
    picks = [
        fleet.pick(demand_of(fleet), 0.0, {ReplicaId(str(j)) for j in range(8) if j != i}) for i in range(8)
    ]
    for number in range(1600):
        which, now = number % 8, number * 0.05
        expected = hedging.expect(picks[which])
        delay_s = hedging.slow_after_s(expected)
        if which == 0 and number % 16:
            hedging.cut_short(expected, delay_s + expected.seconds, now)
        else:
            hedging.answered(expected, (factor if which == 0 else 1.0) * expected.seconds, now)

    expected = hedging.expect(picks[0])
    assert hedging.slow_after_s(expected) <= 1.1 * OPEN.margin * expected.seconds


def test_a_fleet_that_is_slower_than_predicted_altogether_is_usual() -> None:
    hedging, fleet = Hedging(OPEN), fleet_of(8)
    picks = [
        fleet.pick(demand_of(fleet), 0.0, {ReplicaId(str(j)) for j in range(8) if j != i}) for i in range(8)
    ]
    for number in range(4000):
        expected = hedging.expect(picks[number % 8])
        hedging.answered(expected, (1.0 if number < 1000 else 5.0) * expected.seconds, number * 0.01)

    assert hedging.slow_after_s(expected) == pytest.approx(5 * OPEN.margin * expected.seconds, rel=0.05)


def test_losers_keep_it_from_drifting_down() -> None:
    """Every 10th call is slow, and is hedged away at the delay: what is left is fast alone."""
    kept, left_out = Hedging(OPEN), Hedging(OPEN)
    pick = pick_of()
    expected = kept.expect(pick)
    feed(kept, pick, [1.0] * 9 + [5.0])
    feed(kept, pick, ([1.0] * 9 + [5.0]) * 9)
    feed(left_out, pick, ([1.0] * 9 + [5.0]) * 10)
    before = kept.slow_after_s(expected)
    for number in range(5000):
        now = 1.0 + number * 0.01
        for hedging in (kept, left_out):
            if number % 10:
                hedging.answered(hedging.expect(pick), expected.seconds, now)
        if not number % 10:
            kept.cut_short(expected, kept.slow_after_s(expected) + expected.seconds, now)

    assert left_out.slow_after_s(left_out.expect(pick)) < before / 2
    assert kept.slow_after_s(expected) >= before * 0.95


def test_what_was_cut_short_early_says_nothing() -> None:
    hedging, pick = Hedging(OPEN), pick_of()
    feed(hedging, pick, [1.0] * 100)
    before = hedging.slow_after_s(hedging.expect(pick))
    for number in range(2000):
        hedging.cut_short(hedging.expect(pick), 0.001, float(number))

    assert hedging.slow_after_s(hedging.expect(pick)) == before


def test_old_samples_are_forgotten() -> None:
    known = RecentQuantile(0.95)
    for number in range(1000):
        known.add(9.0, number * 0.01)
    for number in range(3000):
        known.add(1.0, 10 + number * 0.01)

    assert known.value() == pytest.approx(1.0, rel=0.03)


def test_calls_that_are_not_streamed_have_a_model_of_their_own() -> None:
    hedging = Hedging(OPEN)
    short, long = pick_of(blind=True, output=10), pick_of(blind=True, output=1000)
    streamed = pick_of()
    assert hedging.slow_after_s(hedging.expect(long)) > hedging.slow_after_s(hedging.expect(short))
    for number in range(300):
        expected = hedging.expect(pick_of(blind=True, output=100))
        hedging.answered(expected, 0.1 + 100 * 0.05, number * 0.1, output_tokens=100)

    assert 0.05 * 200 < hedging.expect(long).seconds < 0.05 * 300  # 256 tokens are expected at most
    assert hedging.expect(streamed).seconds < 1.0


@pytest.mark.parametrize(
    ("settings", "wish", "hedged"),
    [
        ({}, None, True),
        ({}, False, False),
        ({"enabled": False}, None, False),
        ({"enabled": False}, True, True),
    ],
)
def test_whom_it_is_for(settings: dict, wish: bool | None, hedged: bool) -> None:
    hedging, demand = Hedging(HedgingConfig(**settings)), pick_of().demand
    hedging.sent(pick_of())

    assert bool(hedging.why_not(decision(waiting_s=[0.0] * 5), demand, stood_s=1.0, wish=wish)) is not hedged
    assert hedging.slow_after_s(hedging.expect(pick_of())) < inf


def test_when_it_may_be_done() -> None:
    hedging, demand = Hedging(OPEN), pick_of().demand
    hedging.sent(pick_of())
    idle = decision(waiting_s=[0.0] * 5)

    assert not hedging.why_not(idle, demand, stood_s=1.0)
    assert hedging.why_not(idle, demand, stood_s=0.05), "the other would not be sooner"
    assert hedging.why_not(idle, demand, stood_s=1.0, left_s=0.05), "the deadline comes before"
    assert hedging.why_not(decision(waiting_s=[0.0, 0.0, 9.0, 9.0, 9.0]), demand, stood_s=1.0), "saturated"
    assert not hedging.why_not(decision(waiting_s=[0.0, 0.0, 0.0, 9.0, 9.0]), demand, stood_s=1.0)


def test_answers_that_do_not_tell_their_length_are_hedged_by_what_they_take() -> None:
    """Nobody knows how many tokens the answer has, if any: 256 are expected, of 20 ms each."""
    hedging, pick = Hedging(OPEN), pick_of(10, blind=True, output=1000)
    expected = hedging.expect(pick)
    assert expected.seconds > 5
    for number in range(200):
        hedging.answered(expected, 0.02, number * 0.1)
    delay_s = hedging.slow_after_s(hedging.expect(pick))

    assert delay_s <= 0.1
    assert not hedging.why_not(decision(waiting_s=[0.0] * 5, own_s=0.001), pick.demand, stood_s=delay_s)
    assert hedging.why_not(decision(waiting_s=[100.0] * 5, own_s=0.001), pick.demand, stood_s=delay_s)


def test_what_takes_longer_than_predicted_takes_that_long_at_the_other_too() -> None:
    hedging, pick = Hedging(OPEN), pick_of()
    hedging.sent(pick)
    feed(hedging, pick, [10.0] * 100)
    idle = decision(waiting_s=[0.0] * 5)

    assert hedging.why_not(idle, pick.demand, stood_s=1.0)
    assert not hedging.why_not(idle, pick.demand, stood_s=2.0)


def test_a_fleet_of_calls_that_cost_nearly_nothing_is_not_saturated_by_some_of_them() -> None:
    hedging, pick = Hedging(OPEN), pick_of(1)
    hedging.sent(pick)
    assert pick.decision.chosen.own_s < OPEN.floor_s / 100
    waiting_s = (OPEN.saturated_at - 0.1) * OPEN.floor_s

    assert not hedging.why_not(decision(waiting_s=[waiting_s] * 5, own_s=0.001), pick.demand, stood_s=1.0)
    assert hedging.why_not(decision(waiting_s=[2 * waiting_s] * 5, own_s=0.001), pick.demand, stood_s=0.4)


def test_the_bound_counts_what_is_not_cached() -> None:
    hedging, demand = Hedging(OPEN), pick_of(20_000).demand

    assert hedging.why_not(decision(waiting_s=[0.0]), demand, stood_s=99.0)
    assert not hedging.why_not(decision(waiting_s=[0.0], hit_tokens=10_000), demand, stood_s=99.0)
    assert not hedging.why_not(decision(waiting_s=[0.0]), demand, stood_s=99.0, wish=True)


@given(st.lists(st.tuples(st.integers(1, 20_000), st.booleans(), st.booleans()), max_size=40))
def test_tokens_of_hedges_stay_within_the_budget(calls: list[tuple[int, bool, bool]]) -> None:
    settings = HedgingConfig(max_prefill_tokens=100_000, budget_ratio=0.05, reserve_tokens=8192)
    hedging, fleet = Hedging(settings), fleet_of()
    sent, spent = [0], [0]
    for tokens, blind, slow in calls:
        pick = fleet.pick(demand_of(fleet, tokens, blind=blind), 0.0)
        hedging.sent(pick)
        cost = pick.demand.prompt_tokens + (pick.demand.output_tokens if blind else 0)
        hedged = slow and not hedging.why_not(decision(waiting_s=[0.0]), pick.demand, stood_s=1e9)
        if hedged:
            hedging.begun(pick.demand)
        sent.append(sent[-1] + cost)
        spent.append(spent[-1] + cost * hedged)
    for start in range(len(sent)):
        for end in range(start, len(sent)):
            assert spent[end] - spent[start] <= 0.05 * (sent[end] - sent[start]) + 8192 + 1e-6


def test_work_that_is_soon_done_keeps_no_call_from_being_hedged_that_hangs() -> None:
    hedging, demand = Hedging(OPEN), pick_of().demand
    busy = decision(waiting_s=[1.0] * 5, own_s=0.001)
    assert hedging.why_not(busy, demand, stood_s=3.5)
    assert not hedging.why_not(busy, demand, stood_s=4.5)
