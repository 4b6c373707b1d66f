"""Placement on recorded conversations in virtual time, against those who judge it in the same run."""

from functools import cache
from random import Random

import pytest

from mlbalance_client.config import PickingConfig
from mlbalance_client.core.fingerprint import Fingerprint
from mlbalance_client.simulator.model.engine import Engine
from mlbalance_client.simulator.model.measures import Measures, measure
from mlbalance_client.simulator.model.replay import RouterPlacer, replay
from mlbalance_client.simulator.model.router import LeastRequestsRouter, Omniscient, RandomRouter, Router
from mlbalance_client.simulator.model.spec import EngineSpec
from mlbalance_client.simulator.model.traces import Trace, TraceCall, load
from mlbalance_client.simulator.world import fingerprint_of, simulate

SPEC = EngineSpec()
WARM = 3000
# Recorded rate x 1.5: the omniscient router then keeps eight replicas about 75 % busy.
TRACE = load("conversation").at_rate(1.5)

pytestmark = pytest.mark.slow


@cache
def fingerprints(index: int) -> Fingerprint:
    return fingerprint_of(TRACE.calls[index - TRACE.calls[0].index])


def of_call(call: TraceCall) -> Fingerprint:
    return fingerprints(call.index)


def judged(router: Router, trace: Trace = TRACE) -> tuple[Measures, float]:
    engines = [Engine(SPEC) for _ in range(8)]
    records = replay(trace, engines, RouterPlacer(router, engines))
    busy = sum(e.work_s for e in engines) / 8 / trace.duration_s
    return measure((r for r in records if r.index >= WARM), SPEC), busy


def ours(clients: int, seed: int, **picking: object) -> Measures:
    records, _ = simulate(TRACE, PickingConfig(**picking), clients=clients, seed=seed, fingerprints=of_call)
    return measure((r for r in records if r.index >= WARM), SPEC)


def mean_ttft_s(clients: int, **picking: object) -> float:
    return sum(ours(clients, seed, **picking).ttft_mean_s for seed in (1, 2, 3)) / 3


def test_the_fleet_is_about_as_busy_as_it_should_be() -> None:
    _, busy = judged(Omniscient(Random(1)))

    assert 0.70 <= busy <= 0.80


def test_one_client_by_own_knowledge_is_close_to_omniscience() -> None:
    mean_s = mean_ttft_s(1)

    assert mean_s <= 0.3 * judged(RandomRouter(Random(1)))[0].ttft_mean_s
    assert mean_s <= 0.5 * judged(LeastRequestsRouter(Random(1)))[0].ttft_mean_s
    assert mean_s <= 1.2 * judged(Omniscient(Random(1)))[0].ttft_mean_s


@pytest.mark.parametrize("clients", [8, 64])
def test_clients_that_share_nothing_beat_least_requests(clients: int) -> None:
    assert mean_ttft_s(clients) <= 0.6 * judged(LeastRequestsRouter(Random(1), clients))[0].ttft_mean_s


def test_eight_clients_find_each_others_prefixes() -> None:
    hits = ours(8, 1).prefix_hits

    assert hits > 1.4 * ours(8, 1, prior_confidence=0.0).prefix_hits


def test_the_omniscient_router_is_a_bar_that_is_worth_the_name() -> None:
    best = judged(Omniscient(Random(1)))[0].ttft_mean_s

    for weight in (1.0, 3.0):
        assert best <= 1.05 * judged(Omniscient(Random(1), weight))[0].ttft_mean_s


def test_virtual_replays_are_repeatable() -> None:
    window = TRACE.window(3000, 3200)

    def once() -> list[object]:
        return [(r.replica, r.ttft_s) for r in simulate(window, PickingConfig(), clients=4, seed=9)[0]]

    assert once() == once()
