"""Where calls are placed on recorded conversations, beside an omniscient router: in virtual time, and over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields, replace
from functools import cache
from random import Random
from types import MappingProxyType
from typing import Any

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
from mlbalance_client.simulator.model.traces import Trace, TraceCall, job_of_text, load
from mlbalance_client.simulator.world import fingerprint_of, simulate

SPEC = EngineSpec()
SEEDS = (1, 2, 3, 4, 5)
WARM = 3000
# At the recorded rate x 1.5 the omniscient router keeps eight replicas about 75 % busy.
TRACE = load("conversation").at_rate(1.5)
COMPRESSION = 2.0
# A full prefill step takes 81 ms at this compression: tokens must come closer than that for their pace to show it.
EMIT_INTERVAL_S = 0.015
UNLIMITED = httpx.Limits(max_connections=None, max_keepalive_connections=None)
WINDOW = (3000, 3600)
HEADERS = {"content-type": "application/json"}


def mean(measured: Sequence[Measures]) -> Measures:
    """Of each figure."""
    return Measures(
        **{f.name: sum(getattr(m, f.name) for m in measured) / len(measured) for f in fields(Measures)}
    )


@cache
def fingerprint_at(index: int) -> Fingerprint:
    """Of the call with this index, made once."""
    return fingerprint_of(TRACE.calls[index - TRACE.calls[0].index])


def judged(router: Callable[[Random], Router], trace: Trace = TRACE) -> Measures:
    """A router of the model in virtual time."""

    def once(seed: int) -> Measures:
        engines = [Engine(SPEC) for _ in range(8)]
        records = replay(trace, engines, RouterPlacer(router(Random(seed)), engines))
        return measure((r for r in records if r.index >= WARM), SPEC)

    return mean([once(seed) for seed in SEEDS])


def _ours(clients: int) -> Measures:
    def once(seed: int) -> Measures:
        records, _ = simulate(
            TRACE,
            PickingConfig(),
            clients=clients,
            seed=seed,
            fingerprints=lambda call: fingerprint_at(call.index),
        )
        return measure((r for r in records if r.index >= WARM), SPEC)

    return mean([once(seed) for seed in SEEDS])


def print_rows(rows: Mapping[str, Measures]) -> None:
    """Side by side, against the row ``omniscient``."""
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
        "random": judged(RandomRouter),
        "least requests": judged(LeastRequestsRouter),
        "least requests, 8 clients": judged(lambda rng: LeastRequestsRouter(rng, 8)),
        "omniscient": judged(Omniscient),
        "ours": _ours(1),
        "ours, 8 clients": _ours(8),
    }
    print(f"placement in virtual time: conversation trace x 1.5, 8 replicas, mean of {len(SEEDS)} seeds")
    print_rows(rows)
    one, eight = rows["ours"].ttft_mean_s, rows["ours, 8 clients"].ttft_mean_s
    for what, ratio, target in (
        ("1 client against random", one / rows["random"].ttft_mean_s, 0.3),
        ("1 client against least requests", one / rows["least requests"].ttft_mean_s, 0.5),
        ("1 client against omniscient", one / rows["omniscient"].ttft_mean_s, 1.2),
        ("8 clients against least requests", eight / rows["least requests, 8 clients"].ttft_mean_s, 0.6),
    ):
        print(f"  {what:34}{ratio:5.2f}   target at most {target}: {'met' if ratio <= target else 'NOT MET'}")


def _omniscient_over(clients: Mapping[str, httpx.AsyncClient]) -> Sender:
    """Ask every replica for its true seconds, then send to the least. A client a replica: see ``cost``."""

    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        ask = CHAT.ask(json.loads(body))
        job = job_of_text(ask.text, ask.output_tokens, "quote")
        question = json.dumps(
            {"blocks": job.blocks, "block_tokens": job.block_tokens, "prompt_tokens": job.prompt_tokens}
        )
        scores: dict[str, float] = {}

        async def quoted(url: str, client: httpx.AsyncClient) -> None:
            scores[url] = (await client.post(f"{url}/_sim/quote", content=question)).json()["score_s"]

        async with anyio.create_task_group() as tasks:
            for url, client in clients.items():
                tasks.start_soon(quoted, url, client)
        least = min(clients, key=lambda url: scores[url])
        async with clients[least].stream("POST", least + PATH, content=body, headers=HEADERS) as response:
            response.raise_for_status()
            yield response.aiter_raw()

    return send


def _ours_over(clients: Sequence[mlb.AsyncClient]) -> Sender:
    rng = Random(1)

    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        client = rng.choice(clients)
        async with client.stream("POST", PATH, content=body, headers=HEADERS) as response:
            response.raise_for_status()
            yield response.aiter_raw()

    return send


async def replay_over_http(
    policy: str,
    clients: int,
    reports: Mapping[str, Any] = MappingProxyType({"kind": "none"}),
    middleware: Sequence[str] = (),
    compression: float = COMPRESSION,
) -> tuple[Measures, float]:
    """The window through the omniscient router or so many clients; and by how much the replay was late at worst."""
    window = TRACE.window(*WINDOW).at_rate(compression)
    async with AsyncExitStack() as stack:
        fleet = stack.enter_context(
            Fleet(8, spec=SPEC.scaled(compression), emit_interval_s=EMIT_INTERVAL_S, middleware=middleware)
        )
        if policy == "omniscient":
            send = _omniscient_over(
                {
                    url: await stack.enter_async_context(httpx.AsyncClient(timeout=600.0, limits=UNLIMITED))
                    for url in fleet.urls
                }
            )
        else:
            config = mlb.BalancerConfig.model_validate(
                {
                    "discovery": {"kind": "static", "replicas": fleet.urls},
                    "picking": {"policy": policy},
                    "load_reports": dict(reports),
                }
            )
            send = _ours_over(
                [await stack.enter_async_context(mlb.AsyncClient(config)) for _ in range(clients)]
            )
        records, late_s = await replay_http(window, send)
    return measure([_stretched(r, compression) for r in records], SPEC), late_s * compression


def _stretched(record: CallRecord, compression: float) -> CallRecord:
    if record.ttft_s is None or record.total_s is None:
        return record
    return replace(record, ttft_s=record.ttft_s * compression, total_s=record.total_s * compression)


def http() -> None:
    """A window of the trace from cold caches, compressed in time, against replicas in processes of their own."""
    rows, late_s = {}, {}
    for name, policy, clients in (
        ("random", "random", 1),
        ("least requests", "least_requests", 1),
        ("least requests, 8 clients", "least_requests", 8),
        ("omniscient", "omniscient", 1),
        ("ours", "prefix_tokens", 1),
        ("ours, 8 clients", "prefix_tokens", 8),
    ):
        rows[name], late_s[name] = anyio.run(replay_over_http, policy, clients)
    first, last = WINDOW
    print(
        f"placement over HTTP: calls {first} to {last}, cold caches, time x {COMPRESSION:.0f}, figures scaled back"
    )
    print_rows(rows)
    print("  the replay itself was late by at worst", ", ".join(f"{s:.2f} s" for s in late_s.values()))


def main() -> None:
    """Both."""
    virtual()
    http()
