"""What load reports are worth in placement: by kind over HTTP, and signal by signal in virtual time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import anyio

from mlbalance_client.config.picking import PickingConfig
from mlbalance_client.core.load_report import LoadReport
from mlbalance_client.simulator.model.engine import Engine
from mlbalance_client.simulator.model.measures import Measures, measure
from mlbalance_client.simulator.model.router import Omniscient, TwoChoicesRouter
from mlbalance_client.simulator.world import Told, simulate

from .placement import (
    COMPRESSION,
    SPEC,
    TRACE,
    WARM,
    WINDOW,
    fingerprint_at,
    judged,
    print_rows,
    replay_over_http,
)

REPORTER = ("mlbalance_client.reporter.LoadReporter",)
# A part of the trace is enough to tell signals apart.
PART = TRACE.window(2000, 5500)
# Seconds of compressed time between two askings by one client: 64 clients asking 8 replicas share this machine.
INTERVAL_S = {16: 0.5, 64: 1.0}
TARGETS = {
    "vllm, 16 clients": 1.6,
    "sglang, 16 clients": 1.3,
    "stream, 16 clients": 1.15,
    "stream, 64 clients": 1.25,
}


# As load_reports.on_demand_tokens.
ASKS_TOKENS = 2_048


def counts(engine: Engine, now: float) -> LoadReport:
    """What most engines tell."""
    return LoadReport(source="counts", at=now, running=engine.running, waiting=engine.waiting)


def vllm(engine: Engine, now: float) -> LoadReport:
    """What stock vLLM tells."""
    return LoadReport(
        source="vllm",
        at=now,
        running=engine.running,
        waiting=engine.waiting,
        kv_used=engine.kv_used_tokens / engine.spec.kv_tokens,
        prefix_queries=engine.prefix_queries_total,
        prefix_hits=engine.prefix_hits_total,
        prefilled_tokens=engine.prompt_tokens_total,
    )


def waiting_tokens(engine: Engine, now: float) -> LoadReport:
    """What SGLang tells beyond it."""
    tokens = engine.waiting_uncached_tokens
    return LoadReport(
        source="sglang", at=now, running=engine.running, waiting=engine.waiting, waiting_tokens=tokens
    )


def work(engine: Engine, now: float) -> LoadReport:
    """What the load stream tells."""
    return LoadReport(source="stream", at=now, prefill_tokens=engine.prefill_tokens_outstanding)


def gpu(engine: Engine, now: float) -> LoadReport:
    """What is left where only the GPU is watched: 1 under any load."""
    return LoadReport(source="gpu", at=now, gpu_utilization=1.0 if engine.running or engine.waiting else 0.0)


def _ours(clients: int, told: Told | None) -> Measures:
    records, _ = simulate(
        PART,
        PickingConfig(),
        clients=clients,
        seed=1,
        fingerprints=lambda call: fingerprint_at(call.index),
        told=told,
    )
    return measure((r for r in records if r.index >= WARM), SPEC)


def virtual() -> None:
    """The ablation: which signal rules, and how old it is."""
    rows = {
        "omniscient": judged(Omniscient, PART),
        "two choices, 64 clients": judged(lambda rng: TwoChoicesRouter(rng, 64), PART),
    }
    tells: list[tuple[str, Callable[[Engine, float], LoadReport], float, dict[str, Any]]] = [
        ("GPU utilization", gpu, 0.1, {}),
        ("counts", counts, 0.1, {}),
        ("counts", counts, 1.0, {}),
        ("vLLM", vllm, 0.1, {}),
        ("vLLM", vllm, 1.0, {}),
        ("vLLM, asked too", vllm, 1.0, {"asks_tokens": ASKS_TOKENS}),
        ("waiting tokens", waiting_tokens, 0.1, {}),
        ("waiting tokens", waiting_tokens, 1.0, {}),
        ("waiting tokens, asked too", waiting_tokens, 1.0, {"asks_tokens": ASKS_TOKENS}),
        ("all tokens", work, 0.1, {}),
        ("all tokens", work, 0.5, {}),
        ("all tokens", work, 1.0, {}),
        ("tokens + prefixes", work, 0.1, {"prefixes": True}),
        ("tokens + prefixes", work, 0.5, {"prefixes": True}),
        ("tokens + prefixes", work, 1.0, {"prefixes": True}),
    ]
    rows["16: nothing"] = _ours(16, None)
    for name, tell, every_s, more in tells:
        rows[f"16: {name}, {every_s:g} s"] = _ours(16, Told(tell, every_s, **more))
    rows["64: tokens + prefixes, 0.1 s"] = _ours(64, Told(work, 0.1, prefixes=True))
    rows["64: tokens, 1 s, in phase"] = _ours(64, Told(work, 1.0, jittered=False))
    print(
        "placement by reports in virtual time: calls 2000 to 5500 of the trace x 1.5, the first 1,000 warm caches"
    )
    print_rows(rows)


def http() -> None:
    """By kind, over HTTP, against the omniscient router in the same run."""
    rows, late_s = {}, {}
    rows["omniscient"], late_s["omniscient"] = anyio.run(replay_over_http, "omniscient", 1)
    for clients in (16, 64):
        for kind in ("none", "vllm", "sglang", "stream"):
            name = f"{kind}, {clients} clients"
            reports = {"kind": kind, "interval_s": INTERVAL_S[clients]}
            middleware = REPORTER if kind == "stream" else ()
            rows[name], late_s[name] = anyio.run(
                replay_over_http, "prefix_tokens", clients, reports, middleware
            )
    first, last = WINDOW
    print(f"placement by reports over HTTP: calls {first} to {last}, cold caches, time x {COMPRESSION:.0f}")
    print(
        "  asked every",
        ", ".join(f"{s * COMPRESSION:g} s by each of {n} clients" for n, s in INTERVAL_S.items()),
    )
    print_rows(rows)
    for name, target in TARGETS.items():
        ratio = rows[name].ttft_mean_s / rows["omniscient"].ttft_mean_s
        print(f"  {name:26}{ratio:5.2f}   target at most {target}: {'met' if ratio <= target else 'NOT MET'}")
    print("  the replay itself was late by at worst", ", ".join(f"{s:.2f} s" for s in late_s.values()))


def main() -> None:
    """Both."""
    http()
    virtual()
