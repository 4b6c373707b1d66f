"""What is under way lies between two counts of an engine's: admitted, and prefilled."""

from __future__ import annotations

from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.core.load.standing import Work
from mlbalance_client.core.load.under_way import UnderWay

RATE = 10_000.0


class Replica:
    """Counts as vLLM does; a token is a unit of work."""

    def __init__(self) -> None:
        self.seen = UnderWay()
        self.queries = self.hits = self.prefilled = 0
        self.running = 0

    def admit(self, tokens: int, cached: int = 0) -> None:
        self.queries += tokens
        self.hits += cached
        self.running += 1

    def look(self, at: float) -> float | None:
        report = LoadReport(
            source="vllm",
            at=at,
            running=self.running,
            prefix_queries=self.queries,
            prefix_hits=self.hits,
            prefilled_tokens=self.prefilled,
        )
        return self.seen.hear(report, Work(), RATE)


@pytest.fixture
def replica() -> Replica:
    made = Replica()
    made.look(0.0)
    return made


def test_what_was_admitted_and_is_not_prefilled_is_under_way(replica: Replica) -> None:
    replica.admit(30_000, cached=10_000)

    assert replica.look(0.1) == pytest.approx(2.0 - 0.05)
    assert replica.look(0.6) == pytest.approx(2.0 - 0.55)
    replica.prefilled += 30_000
    assert replica.look(0.7) == 0.0


def test_what_may_have_begun_at_any_moment_is_half_done(replica: Replica) -> None:
    replica.admit(10_000)

    assert replica.look(5.0) == pytest.approx(0.5)


def test_prompts_prefilled_since_count_no_more(replica: Replica) -> None:
    replica.admit(50_000)
    replica.prefilled += 50_000
    replica.admit(4_000)

    assert replica.look(3.0) == pytest.approx(0.2)


def test_a_cancelled_prompt_is_forgotten_when_nothing_runs_or_after_a_minute(replica: Replica) -> None:
    replica.admit(20_000)
    replica.running = 0
    assert replica.look(1.0) == 0.0
    replica.running = 1
    assert replica.look(2.0) == 0.0

    replica.queries += 20_000  # cancelled too, while others run
    for at in range(3, 70):
        replica.look(float(at))
    replica.admit(5_000)
    assert replica.look(70.1) == pytest.approx(0.25)


def test_who_does_not_count_tells_nothing() -> None:
    seen = UnderWay()
    for at in (0.0, 1.0):
        assert seen.hear(LoadReport(source="vllm", at=at, running=1, waiting=2), Work(), RATE) is None


def test_counts_that_fall_are_anothers(replica: Replica) -> None:
    replica.admit(90_000)
    replica.look(1.0)
    replica.queries = replica.hits = 0

    assert replica.look(2.0) is None
    replica.admit(10_000)
    assert replica.look(2.1) == pytest.approx(0.95)


counts = st.integers(0, 10**15)


@given(st.lists(st.tuples(st.floats(0, 1e9), counts, counts, counts, st.integers(0, 9)), max_size=8))
def test_whatever_is_counted_seconds_are_finite_and_not_negative(
    told: list[tuple[float, int, int, int, int]],
) -> None:
    replica = Replica()
    for at, replica.queries, replica.hits, replica.prefilled, replica.running in told:
        seconds = replica.look(at)
        assert seconds is None or (isfinite(seconds) and 0.0 <= seconds <= 60.0)
