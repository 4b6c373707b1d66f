"""Ten times the load for ten seconds, in virtual time: short queues, busy replicas, urgent calls served, soon over."""

from __future__ import annotations

import pytest

from mlbalance_client.config import AdmissionConfig
from mlbalance_client.simulator.world import Told

from ..bench.admission import burst, mean, steady, stream

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("clients", "recovered_s"), [(1, 10.0), (16, 20.0)])
def test_a_burst_is_bounded_and_soon_over(clients: int, recovered_s: float) -> None:
    bursts = [burst(clients, lambda: Told(stream, 0.1), seed=seed) for seed in (1, 2, 3)]
    seen = mean(bursts)

    assert max(each.most_waiting for each in bursts) < 100, "of 511 calls that come in ten seconds"
    assert seen.refused < seen.calls
    assert seen.mean_busy >= 0.95
    assert seen.least_busy >= 0.88
    assert seen.urgent_refused == 0
    assert seen.urgent_burst_s <= 1.5 * seen.urgent_calm_s
    assert seen.recovered_s <= recovered_s, "the trace has bursts of its own"


def test_without_a_queue_all_wait_for_all() -> None:
    seen = burst(1, lambda: Told(stream, 0.1), None)

    assert seen.urgent_burst_s > 10 * seen.urgent_calm_s
    assert seen.recovered_s > 30.0


def test_the_queue_is_hardly_entered_where_none_is_needed() -> None:
    without, _ = steady(16, lambda: Told(stream, 0.1), None)
    queued, share = steady(16, lambda: Told(stream, 0.1), AdmissionConfig())

    assert share <= 0.02
    assert queued <= 1.05 * without
