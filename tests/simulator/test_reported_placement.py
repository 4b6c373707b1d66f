"""Placement by load reports on recorded conversations in virtual time: near to omniscience, and no herds."""

from __future__ import annotations

from functools import cache
from random import Random

import pytest

from mlbalance_client.config import PickingConfig
from mlbalance_client.core.fingerprint import Fingerprint
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.simulator.model.engine import Engine
from mlbalance_client.simulator.model.measures import measure
from mlbalance_client.simulator.model.replay import RouterPlacer, replay
from mlbalance_client.simulator.model.router import Omniscient, Router, TwoChoicesRouter
from mlbalance_client.simulator.model.spec import EngineSpec
from mlbalance_client.simulator.model.traces import load
from mlbalance_client.simulator.world import Told, fingerprint_of, simulate

from ..bench.reports import waiting_tokens, work

SPEC = EngineSpec()
WARM = 3000
# Recorded rate x 1.5: the omniscient router then keeps eight replicas about 75 % busy.
TRACE = load("conversation").at_rate(1.5).window(2000, 5500)
# A dozen small calls a second, in bursts: many fall between two reports.
CODE = load("code").at_rate(4.0).window(0, 3000)
CODE_WARM = 1000

pytestmark = pytest.mark.slow


@cache
def fingerprint(index: int) -> Fingerprint:
    return fingerprint_of(TRACE.calls[index - TRACE.calls[0].index])


def counts(engine: Engine, now: float) -> LoadReport:
    return LoadReport(source="vllm", at=now, running=engine.running, waiting=engine.waiting)


def vllm(engine: Engine, now: float) -> LoadReport:
    return LoadReport(
        source="vllm",
        at=now,
        running=engine.running,
        waiting=engine.waiting,
        prefix_queries=engine.prefix_queries_total,
        prefix_hits=engine.prefix_hits_total,
        prefilled_tokens=engine.prompt_tokens_total,
    )


@cache
def judged(router: type[Router], clients: int = 0) -> float:
    made = router(Random(1), clients) if clients else router(Random(1))  # type: ignore[call-arg]
    engines = [Engine(SPEC) for _ in range(8)]
    records = replay(TRACE, engines, RouterPlacer(made, engines))
    return measure((r for r in records if r.index >= WARM), SPEC).ttft_mean_s


def ours(clients: int, told: Told) -> float:
    records, _ = simulate(
        TRACE,
        PickingConfig(),
        clients=clients,
        seed=1,
        fingerprints=lambda call: fingerprint(call.index),
        told=told,
    )
    return measure((r for r in records if r.index >= WARM), SPEC).ttft_mean_s


@pytest.mark.parametrize(("clients", "most"), [(16, 1.15), (64, 1.25)])
@pytest.mark.timeout(400)
def test_work_and_prefixes_bring_strangers_close_to_omniscience(clients: int, most: float) -> None:
    assert ours(clients, Told(work, 0.1, prefixes=True)) <= most * judged(Omniscient)


def test_stock_vllm_metrics_each_second_and_before_long_calls_do() -> None:
    assert ours(16, Told(vllm, 1.0, asks_tokens=2_048)) <= 1.6 * judged(Omniscient)


def test_sglangs_uncached_tokens_twice_a_second_and_before_long_calls_do() -> None:
    assert ours(16, Told(waiting_tokens, 0.5, asks_tokens=2_048)) <= 1.4 * judged(Omniscient)


@pytest.mark.parametrize("tell", [counts, work])
def test_reports_a_second_old_and_all_in_phase_make_no_herd(tell: object) -> None:
    told = Told(tell, 1.0, jittered=False)  # type: ignore[arg-type]

    assert ours(64, told) <= judged(TwoChoicesRouter, 64)


def reports_on_code(tell: object) -> float:
    fingerprints = cache(fingerprint_of)
    told = Told(tell, 1.0, jittered=False)  # type: ignore[arg-type]
    records, _ = simulate(CODE, PickingConfig(), clients=64, seed=1, fingerprints=fingerprints, told=told)
    return measure((r for r in records if r.index >= CODE_WARM), SPEC).ttft_mean_s


@cache
def two_choices_on_code() -> float:
    engines = [Engine(SPEC) for _ in range(8)]
    records = replay(CODE, engines, RouterPlacer(TwoChoicesRouter(Random(1), 64), engines))
    return measure((r for r in records if r.index >= CODE_WARM), SPEC).ttft_mean_s


@pytest.mark.parametrize("tell", [counts, work])
def test_nor_do_they_where_many_small_calls_fall_between_two_reports(tell: object) -> None:
    assert reports_on_code(tell) <= two_choices_on_code()
