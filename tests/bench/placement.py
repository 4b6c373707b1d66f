"""Where calls are placed on recorded conversations, beside an omniscient router: in virtual time, and over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from random import Random

import anyio
import httpx

import mlbalance_client as mlb
from mlbalance_client.config.picking import PickingConfig
from mlbalance_client.core.fingerprint import Fingerprint
from mlbalance_client.simulator.model.apis import CHAT
from mlbalance_client.simulator.model.engine import Engine
from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.http_replay import PATH, Sender, replay_http
from mlbalance_client.simulator.model.measures import CallRecord, Measures, measure
from mlbalance_client.simulator.model.replay import RouterPlacer, replay
from mlbalance_client.simulator.model.router import LeastRequestsRouter, Omniscient, RandomRouter, Router
from mlbalance_client.simulator.model.spec import EngineSpec
from mlbalance_client.simulator.model.traces import TraceCall, job_of_text, load
from mlbalance_client.simulator.world import fingerprint_of, simulate

SPEC = EngineSpec()
SEEDS = (1, 2, 3, 4, 5)
WARM = 3000
# At the recorded rate x 1.5 the omniscient router keeps eight replicas about 75 % busy.
TRACE = load("conversation").at_rate(1.5)
COMPRESSION = 4.0
WINDOW = (3000, 3600)
HEADERS = {"content-type": "application/json"}


def _mean(measured: Sequence[Measures]) -> Measures:
    return Measures(
        **{f.name: sum(getattr(m, f.name) for m in measured) / len(measured) for f in fields(Measures)}
    )


@cache
def _fingerprint(index: int) -> Fingerprint:
    return fingerprint_of(TRACE.calls[index - TRACE.calls[0].index])


def _judged(router: Callable[[Random], Router]) -> Measures:
    def once(seed: int) -> Measures:
        engines = [Engine(SPEC) for _ in range(8)]
        records = replay(TRACE, engines, RouterPlacer(router(Random(seed)), engines))
        return measure((r for r in records if r.index >= WARM), SPEC)

    return _mean([once(seed) for seed in SEEDS])


def _ours(clients: int) -> Measures:
    def once(seed: int) -> Measures:
        records, _ = simulate(
            TRACE,
            PickingConfig(),
            clients=clients,
            seed=seed,
            fingerprints=lambda call: _fingerprint(call.index),
        )
        return measure((r for r in records if r.index >= WARM), SPEC)

    return _mean([once(seed) for seed in SEEDS])


def _print(rows: dict[str, Measures]) -> None:
    best = rows["omniscient"].ttft_mean_s
    print(
        f"  {'':26}{'TTFT mean':>10}{'p50':>8}{'p99':>8}   slowdown{'p50':>7}{'p99':>8}  cached  x omniscient"
    )
    for name, m in rows.items():
        print(
            f"  {name:26}{m.ttft_mean_s:9.2f}s{m.ttft_p50_s:7.2f}s{m.ttft_p99_s:7.2f}s{m.slowdown_mean:11.2f}"
            f"{m.slowdown_p50:7.2f}{m.slowdown_p99:8.2f}{m.prefix_hits:8.0%}{m.ttft_mean_s / best:14.2f}"
            + (f"   {m.errors} errors" if m.errors else "")
        )


def virtual() -> None:
    """All of the trace, of which the first 3,000 calls only warm caches."""
    rows = {
        "random": _judged(RandomRouter),
        "least requests": _judged(LeastRequestsRouter),
        "least requests, 8 clients": _judged(lambda rng: LeastRequestsRouter(rng, 8)),
        "omniscient": _judged(Omniscient),
        "ours": _ours(1),
        "ours, 8 clients": _ours(8),
    }
    print(f"placement in virtual time: conversation trace x 1.5, 8 replicas, mean of {len(SEEDS)} seeds")
    _print(rows)
    one, eight = rows["ours"].ttft_mean_s, rows["ours, 8 clients"].ttft_mean_s
    for what, ratio, target in (
        ("1 client against random", one / rows["random"].ttft_mean_s, 0.3),
        ("1 client against least requests", one / rows["least requests"].ttft_mean_s, 0.5),
        ("1 client against omniscient", one / rows["omniscient"].ttft_mean_s, 1.2),
        ("8 clients against least requests", eight / rows["least requests, 8 clients"].ttft_mean_s, 0.6),
    ):
        print(f"  {what:34}{ratio:5.2f}   target at most {target}: {'met' if ratio <= target else 'NOT MET'}")


@dataclass
class _Http:
    """Senders that place over HTTP without the product."""

    urls: Sequence[str]
    client: httpx.AsyncClient

    @asynccontextmanager
    async def least_quote(self, call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """Ask every replica for its true seconds, then send to the least."""
        ask = CHAT.ask(json.loads(body))
        job = job_of_text(ask.text, ask.output_tokens, "quote")
        question = {
            "blocks": job.blocks,
            "block_tokens": job.block_tokens,
            "prompt_tokens": job.prompt_tokens,
        }
        scores: dict[str, float] = {}

        async def quoted(url: str) -> None:
            answer = await self.client.post(f"{url}/_sim/quote", json=question)
            scores[url] = answer.json()["score_s"]

        async with anyio.create_task_group() as tasks:
            for url in self.urls:
                tasks.start_soon(quoted, url)
        least = min(self.urls, key=lambda url: scores[url])
        async with self.client.stream("POST", least + PATH, content=body, headers=HEADERS) as response:
            response.raise_for_status()
            yield response.aiter_raw()


def _ours_over(clients: Sequence[mlb.AsyncClient]) -> Sender:
    rng = Random(1)

    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        client = rng.choice(clients)
        async with client.stream("POST", PATH, content=body, headers=HEADERS) as response:
            response.raise_for_status()
            yield response.aiter_raw()

    return send


async def _replay_http(policy: str, clients: int) -> tuple[Measures, float]:
    window = TRACE.window(*WINDOW).at_rate(COMPRESSION)
    with Fleet(8, spec=SPEC.scaled(COMPRESSION), emit_interval_s=0.05) as fleet:
        if policy == "omniscient":
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
            async with httpx.AsyncClient(timeout=600.0, limits=limits) as client:
                records, late_s = await replay_http(window, _Http(fleet.urls, client).least_quote)
        else:
            config = mlb.BalancerConfig.model_validate(
                {"discovery": {"kind": "static", "replicas": fleet.urls}, "picking": {"policy": policy}}
            )
            ours = [mlb.AsyncClient(config) for _ in range(clients)]
            try:
                records, late_s = await replay_http(window, _ours_over(ours))
            finally:
                for each in ours:
                    await each.aclose()
    return measure([_stretched(r) for r in records], SPEC), late_s


def _stretched(record: CallRecord) -> CallRecord:
    if record.ttft_s is None or record.total_s is None:
        return record
    return replace(record, ttft_s=record.ttft_s * COMPRESSION, total_s=record.total_s * COMPRESSION)


def http() -> None:
    """A window of the trace from cold caches, compressed in time, against replicas in processes of their own."""
    rows, worst_s = {}, 0.0
    for name, policy, clients in (
        ("random", "random", 1),
        ("least requests", "least_requests", 1),
        ("least requests, 8 clients", "least_requests", 8),
        ("omniscient", "omniscient", 1),
        ("ours", "prefix_tokens", 1),
        ("ours, 8 clients", "prefix_tokens", 8),
    ):
        rows[name], late_s = anyio.run(_replay_http, policy, clients)
        worst_s = max(worst_s, late_s)
    first, last = WINDOW
    print(
        f"placement over HTTP: calls {first} to {last}, cold caches, time x {COMPRESSION:.0f}, figures scaled back"
    )
    _print(rows)
    print(f"  the replay itself was late by {worst_s * COMPRESSION:.2f} s at worst")


def main() -> None:
    """Both."""
    virtual()
    http()
