"""What load reports are worth in placement: by kind over HTTP, and signal by signal in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import anyio

from mlbalance_client.config.picking import PickingConfig
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.simulator.model.engine import Engine
from mlbalance_client.simulator.model.measures import Measures, measure
from mlbalance_client.simulator.model.router import Omniscient, TwoChoicesRouter
from mlbalance_client.simulator.model.spec import EngineSpec
from mlbalance_client.simulator.world import Told, simulate

from .placement import (
    SPEC,
    TRACE,
    WARM,
    WINDOW,
    fingerprint_at,
    judged,
    mean,
    print_rows,
    replay_over_http,
)

REPORTER = ("mlbalance_client.reporter.LoadReporter",)
# A part of the trace is enough to tell signals apart.
PART = TRACE.window(2000, 5500)
# By number of clients: seconds between two askings by one of them.
INTERVAL_S = {16: 0.5, 64: 1.0}
TARGETS = {
    "vllm, 16 clients": 1.6,
    "sglang, 16 clients": 1.3,
    "stream, 16 clients": 1.15,
    "stream, 64 clients": 1.25,
}


# As load_reports.on_demand_tokens.
ASKS_TOKENS = 2_048
GPU_BYTES = 80 * 10**9
SMALL_KV_TOKENS = 400_000
SEEDS = (1, 2, 3)


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
    """What SGLang tells beyond it: all but the step that is under way."""
    tokens = engine.waiting_uncached_tokens + engine.chunked_uncached_tokens
    return LoadReport(
        source="sglang", at=now, running=engine.running, waiting=engine.waiting, prefill_tokens=tokens
    )


def work(engine: Engine, now: float) -> LoadReport:
    """What the load stream tells."""
    return LoadReport(source="stream", at=now, prefill_tokens=engine.prefill_tokens_outstanding)


def expected(engine: Engine, now: float) -> LoadReport:
    """How long a call would wait, by the engine's own formula, and nothing else."""
    return LoadReport(source="expected", at=now, expected_wait_s=engine.backlog_s(now))


def queue(engine: Engine, now: float) -> LoadReport:
    """The depth of the queue, and nothing else."""
    return LoadReport(source="queue", at=now, waiting=engine.waiting)


def batch(engine: Engine, now: float) -> LoadReport:
    """The size of the batch, and nothing else."""
    return LoadReport(source="batch", at=now, running=engine.running)


def gpu(engine: Engine, now: float) -> LoadReport:
    """Whether the GPU is busy, seen by one who looks at this moment alone."""
    return LoadReport(source="gpu", at=now, gpu_utilization=1.0 if engine.running or engine.waiting else 0.0)


class Gpu:
    """As NVML tells it: the share of the last second in which the GPU was busy, and the memory that is taken.

    ``memory``: the server takes memory as it needs it, beside a fifth for weights; engines that take all at their
    start are always at 90 %. ``utilization``: told too.
    """

    def __init__(self, *, utilization: bool = True, memory: bool = False, all_at_start: bool = False) -> None:
        self._utilization, self._memory, self._all_at_start = utilization, memory, all_at_start
        self._seen: dict[int, deque[tuple[float, float]]] = {}

    def __call__(self, engine: Engine, now: float) -> LoadReport:
        """What it tells of an engine."""
        used = 0.9 if self._all_at_start else 0.2 + 0.8 * engine.kv_used_tokens / engine.spec.kv_tokens
        return LoadReport(
            source="gpu",
            at=now,
            gpu_utilization=self._busy(engine, now) if self._utilization else None,
            gpu_memory_used_bytes=int(GPU_BYTES * min(1.0, used)) if self._memory else None,
            gpu_memory_total_bytes=GPU_BYTES if self._memory else None,
        )

    def _busy(self, engine: Engine, now: float) -> float:
        seen = self._seen.setdefault(id(engine), deque())
        seen.append((now, engine.busy_s))
        while len(seen) > 1 and seen[1][0] <= now - 1.0:
            seen.popleft()
        at, busy_s = seen[0]
        return min(1.0, (engine.busy_s - busy_s) / (now - at)) if now > at else 1.0


def _ours(clients: int, told: Told | None, spec: EngineSpec = SPEC, seed: int = 1) -> tuple[Measures, int]:
    records, engines = simulate(
        PART,
        PickingConfig(),
        clients=clients,
        seed=seed,
        spec=spec,
        fingerprints=lambda call: fingerprint_at(call.index),
        told=told,
    )
    preemptions = sum(engine.preemptions_total for engine in engines)
    return measure((r for r in records if r.index >= WARM), spec), preemptions


def virtual() -> None:
    """The ablation: which signal rules, and how old it is."""
    rows = {
        "omniscient": judged(Omniscient, PART),
        "two choices, 64 clients": judged(lambda rng: TwoChoicesRouter(rng, 64), PART),
    }
    tells: list[tuple[str, Callable[[Engine, float], LoadReport], float, dict[str, Any]]] = [
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
    rows["16: nothing"] = _ours(16, None)[0]
    for name, tell, every_s, more in tells:
        rows[f"16: {name}, {every_s:g} s"] = _ours(16, Told(tell, every_s, **more))[0]
    rows["64: tokens + prefixes, 0.1 s"] = _ours(64, Told(work, 0.1, prefixes=True))[0]
    rows["64: tokens, 1 s, in phase"] = _ours(64, Told(work, 1.0, jittered=False))[0]
    print(
        "placement by reports in virtual time: calls 2000 to 5500 of the trace x 1.5, the first 1,000 warm caches"
    )
    print_rows(rows)


def signals() -> None:
    """Each signal alone: none may be worse than to know nothing. With small caches: near the limit of memory."""
    tells: list[tuple[str, Callable[[], Callable[[Engine, float], LoadReport]]]] = [
        ("GPU busy now", lambda: gpu),
        ("GPU utilization", Gpu),
        ("GPU memory", lambda: Gpu(utilization=False, memory=True)),
        ("GPU both", lambda: Gpu(memory=True)),
        ("GPU both, all taken", lambda: Gpu(memory=True, all_at_start=True)),
        ("batch size", lambda: batch),
        ("queue depth", lambda: queue),
        ("expected time", lambda: expected),
    ]
    for spec, what in (
        (SPEC, ""),
        (replace(SPEC, kv_tokens=SMALL_KV_TOKENS), f", caches of {SMALL_KV_TOKENS:,} tokens"),
    ):
        print(
            f"signals alone, 16 clients{what}: mean TTFT of seeds {SEEDS}, against no report, and preemptions"
        )
        nothing_s = _signal("nothing", lambda: None, spec, None)
        for name, tell in tells:
            for every_s in (0.1, 1.0):
                _signal(f"{name}, {every_s:g} s", lambda t=tell, s=every_s: Told(t(), s), spec, nothing_s)


def _signal(name: str, told: Callable[[], Told | None], spec: EngineSpec, nothing_s: float | None) -> float:
    runs = [_ours(16, told(), spec, seed) for seed in SEEDS]
    ttft_s = mean([measured for measured, _ in runs]).ttft_mean_s
    preempted = sum(preemptions for _, preemptions in runs) / len(runs)
    print(f"  {name:28}{ttft_s:6.2f}s {ttft_s / (nothing_s or ttft_s):5.2f} {preempted:6.0f}", flush=True)
    return ttft_s


def http() -> None:
    """By kind, over HTTP in real time, against the omniscient router in the same run.

    Not compressed: that ages reports, and 64 clients in one process would read a thousand events of load streams a
    second beside the replay, which alone makes calls seconds late.
    """
    first, last = WINDOW
    in_real_time = partial(replay_over_http, compression=1.0)
    for clients, interval_s in INTERVAL_S.items():
        rows, late_s = {}, {}
        rows["omniscient"], late_s["omniscient"] = anyio.run(partial(in_real_time, "omniscient", 1))
        for kind in ("none", "vllm", "sglang", "stream"):
            name = f"{kind}, {clients} clients"
            reports = {"kind": kind, "interval_s": interval_s}
            middleware = REPORTER if kind == "stream" else ()
            rows[name], late_s[name] = anyio.run(
                partial(in_real_time, "prefix_tokens", clients, reports, middleware)
            )
        print(
            f"placement by reports over HTTP: calls {first} to {last}, cold caches, asked every {interval_s:g} s"
        )
        print_rows(rows)
        for name, target in TARGETS.items():
            if name in rows:
                ratio = rows[name].ttft_mean_s / rows["omniscient"].ttft_mean_s
                met = "met" if ratio <= target else "NOT MET"
                print(f"  {name:26}{ratio:5.2f}   target at most {target}: {met}")
        print("  the replay itself was late by at worst", ", ".join(f"{s:.2f} s" for s in late_s.values()))


def main() -> None:
    """All."""
    http()
    virtual()
    signals()
