"""Plays a scene through our clients or the omniscient router, in virtual time or over HTTP, and keeps what was seen."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from random import Random
from types import MappingProxyType
from typing import Any

import anyio
import anyio.to_thread

import mlbalance_client as mlb
from mlbalance_client import events
from mlbalance_client.conduct.engine import Engine, Request
from mlbalance_client.simulator.model import http_replay
from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.http_replay import PATH, Sender, replay_http
from mlbalance_client.simulator.model.judge import Judge
from mlbalance_client.simulator.model.measures import CallRecord
from mlbalance_client.simulator.model.scenes import RATE, REPLICAS, Scene, play
from mlbalance_client.simulator.model.spec import EngineSpec
from mlbalance_client.simulator.model.traces import Trace, TraceCall, load
from mlbalance_client.simulator.model.virtual_fleet import VirtualFleet
from mlbalance_client.simulator.model.virtual_time import run
from mlbalance_client.wire import WireOptions

SPEC = EngineSpec()
FIRST = 3000
# Tokens of a stream come no closer, to spare the machine.
EMIT_INTERVAL_S = 1.0
_LOOK_S = 1.0
# Before that, caches fill.
WARM_S = 20.0
# Of callers who wait while a fleet has more work than it can do: under the omniscient router too they do for minutes.
PATIENT: dict[str, Any] = {
    "admission": {"queue_timeout_s": 3600},
    "http": {"first_content_timeout_s": 3600},
}
URGENT = 5
_QUIET = {"kind": "none"}
_TOLD = (
    events.AttemptStarted, events.AttemptEnded, events.FailedOver, events.HedgeStarted, events.HedgeEnded,
    events.ReplicaEjected, events.ReplicaReturned, events.PanicChanged,
)  # fmt: skip

body_of = cache(http_replay.chat_body)


def conversations(calls: int) -> Trace:
    """A window of the recorded conversations that keeps eight replicas 70 % busy."""
    return load("conversation").window(FIRST, FIRST + calls).at_rate(RATE)


@dataclass(slots=True)
class Seen:
    """What became of a scene. Times in seconds of the modelled engine, from the scene's start.

    ``work``: now and then, how many seconds engines have worked by then, all together.
    """

    scene: Scene
    records: list[CallRecord]
    due: dict[int, float]
    told: list[tuple[float, events.Event]]
    states: list[dict[str, Any]]
    late_s: float
    calls: Sequence[TraceCall]
    urls: Sequence[str]
    left: dict[str, int] = field(default_factory=dict)
    work: list[tuple[float, float]] = field(default_factory=list)

    def since(self, start_s: float) -> list[CallRecord]:
        """Calls that arrived later."""
        return [r for r in self.records if self.due[r.index] >= start_s]

    @property
    def changed_s(self) -> float:
        """When the first thing happened."""
        return min((change.at_s for change in self.scene.changes), default=0.0)

    @property
    def failed(self) -> list[CallRecord]:
        """Calls that ended in an error before any content came."""
        return [r for r in self.records if r.error is not None and r.ttft_s is None]

    @property
    def broken(self) -> list[CallRecord]:
        """Calls whose answer broke off."""
        return [r for r in self.records if r.error is not None and r.ttft_s is not None]

    @property
    def errors(self) -> Counter[str]:
        """What callers got instead of answers."""
        return Counter((r.error or "")[:60] for r in self.records if r.error is not None)

    def of(self, kind: type, since_s: float = 0.0, until_s: float = float("inf")) -> list[tuple[float, Any]]:
        """Events of one kind, with their times."""
        return [(t, e) for t, e in self.told if isinstance(e, kind) and since_s <= t < until_s]

    def calls_to(self, replica: int, since_s: float, until_s: float = float("inf")) -> list[float]:
        """When attempts were sent to one replica."""
        url = self.urls[replica]
        return [t for t, e in self.of(events.AttemptStarted, since_s, until_s) if e.url == url]

    def urgent(self, record: CallRecord) -> bool:
        """Whether the call was."""
        return _priority(self.scene, record.index) > 0

    def three_hedge_delays(self, replica: int, since_s: float) -> float:
        """When so many are over since the first call there, each as long as any stood until it went elsewhere."""
        url = self.urls[replica]
        sent = {e.call: t for t, e in self.of(events.AttemptStarted, since_s) if e.url == url}
        delays = [
            t - sent[e.call]
            for kind in (events.HedgeStarted, events.FailedOver)
            for t, e in self.of(kind, since_s)
            if e.call in sent and url.endswith(f"/{e.from_replica}")
        ]
        return min(sent.values(), default=0.0) + 3 * max(delays, default=float("inf"))

    @property
    def extra_tokens(self) -> float:
        """Tokens sent beyond those of the calls themselves, as a share of these; by what replicas have read."""
        asked = sum(len(body_of(call)) for call in self.calls)
        return sum(state["seen_bytes"] for state in self.states) / asked - 1

    def busy(self, since_s: float, until_s: float) -> float:
        """The share of their time that engines worked."""
        looks = [(t, worked) for t, worked in self.work if since_s <= t <= until_s]
        (first, before), (last, after) = looks[0], looks[-1]
        return (after - before) / (last - first) / REPLICAS

    def total(self, counter: str) -> int:
        """A counter over all replicas."""
        return sum(state[counter] for state in self.states)


class HttpStage:
    """Replicas as processes, whose counters outlive them."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.urls = fleet.urls
        self._before: list[Counter[str]] = [Counter() for _ in fleet.urls]

    async def set_faults(self, number: int, **faults: Any) -> None:
        await anyio.to_thread.run_sync(partial(self._fleet.set_faults, number, **faults))

    async def kill(self, number: int) -> None:
        await self._remember(number)
        await anyio.to_thread.run_sync(self._fleet.kill, number)

    async def drain(self, number: int) -> None:
        await self._remember(number)
        await anyio.to_thread.run_sync(self._fleet.terminate, number)

    async def start(self, number: int, **faults: Any) -> None:
        await anyio.to_thread.run_sync(partial(self._fleet.restart, number, **faults))

    def states(self) -> list[dict[str, Any]]:
        """The true state of all that live, counters over all lives."""
        return [self._state(number) for number in range(len(self._before))]

    def _state(self, number: int) -> dict[str, Any]:
        try:
            now = self._fleet.state(number)
        except RuntimeError:
            now = {**dict.fromkeys(_COUNTERS, 0), "in_flight": 0}
        return {**now, **{name: now[name] + self._before[number][name] for name in _COUNTERS}}

    async def _remember(self, number: int) -> None:
        state = await anyio.to_thread.run_sync(self._fleet.state, number)
        self._before[number].update({name: state[name] for name in _COUNTERS})


_COUNTERS = ("seen", "seen_bytes", "refused", "finished", "aborted", "prompt_tokens", "prefilled_tokens")


def _priority(scene: Scene, index: int) -> int:
    """One call in ten is urgent where that is what it is about; the others pay for it, so nowhere else."""
    return URGENT if scene.burst is not None and index % 10 == 0 else 0


def _request(call: TraceCall, body: bytes, priority: int) -> Request:
    headers = [(b"Content-Type", b"application/json"), (b"Content-Length", str(len(body)).encode())]
    return Request("POST", PATH.encode(), headers, body, mlb.CallOptions(priority=priority))


class Refused(Exception):
    """The caller got an answer with an error status."""


def ours(scene: Scene, engines: Sequence[Engine], rng: Random) -> Sender:
    """Each call through a random one of our clients."""

    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        answer = await rng.choice(engines).send(_request(call, body, _priority(scene, call.index)))
        try:
            if answer.status >= 400:
                raise Refused(f"{answer.status}")
            yield answer.body
        finally:
            await answer.body.aclose()

    return send


def faced(scene: Scene, clients: Sequence[mlb.AsyncClient], rng: Random) -> Sender:
    """The same through the public face."""

    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        priority = str(_priority(scene, call.index))
        headers = {"content-type": "application/json", "x-mlbalance-priority": priority}
        async with rng.choice(clients).stream("POST", PATH, content=body, headers=headers) as response:
            if response.status_code >= 400:
                raise Refused(f"{response.status_code}")
            yield response.aiter_raw()

    return send


def config(urls: Sequence[str], sections: Mapping[str, Any], seed: int) -> mlb.BalancerConfig:
    """Of a client of the fleet."""
    given = {"discovery": {"kind": "static", "replicas": list(urls)}, "load_reports": _QUIET, "seed": seed}
    return mlb.BalancerConfig.model_validate({**given, **sections})


async def _staged(
    scene: Scene, trace: Trace, send: Sender, stage: Any, told: list[tuple[float, events.Event]], scale: float
) -> Seen:
    before = await _states(stage)
    start = anyio.current_time()
    quick = scene.compressed(scale)
    arrivals = quick.arrivals(trace.at_rate(scale))
    work: list[tuple[float, float]] = []

    async def watch() -> None:
        while True:
            found = await _states(stage)
            work.append(((anyio.current_time() - start) * scale, sum(s["work_s"] for s in found) * scale))
            await anyio.sleep(_LOOK_S / scale)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(play, quick, stage, start)
        if scene.burst is not None:
            tasks.start_soon(watch)
        records, late_s = await replay_http(arrivals, send)
        tasks.cancel_scope.cancel()
    for record in records:
        record.ttft_s = None if record.ttft_s is None else record.ttft_s * scale
        record.total_s = None if record.total_s is None else record.total_s * scale
    due = {call.index: call.t_s * scale for call in arrivals.calls}
    when = [((t - start) * scale, event) for t, event in told]
    states = [
        {**now, **{name: now[name] - then[name] for name in _COUNTERS}}
        for now, then in zip(await _states(stage), before, strict=True)
    ]
    return Seen(scene, records, due, when, states, late_s * scale, trace.calls, stage.urls, work=work)


async def _states(stage: Any) -> list[dict[str, Any]]:
    return await anyio.to_thread.run_sync(stage.states) if isinstance(stage, HttpStage) else stage.states()


def _listening(told: list[tuple[float, events.Event]]) -> Callable[[events.Event], None]:
    def hear(event: events.Event) -> None:
        if isinstance(event, _TOLD):
            told.append((event.at, event))

    return hear


def virtually(
    scene: Scene,
    trace: Trace,
    sections: Mapping[str, Any] = MappingProxyType({}),
    *,
    clients: int = 1,
    seed: int = 1,
    emit_interval_s: float = EMIT_INTERVAL_S,
) -> Seen:
    """Our clients in virtual time: all of them, down to their HTTP."""

    async def main() -> Seen:
        fleet = VirtualFleet(REPLICAS, spec=SPEC, emit_interval_s=emit_interval_s, seed=seed)
        told: list[tuple[float, events.Event]] = []
        engines = [
            Engine(
                config(fleet.urls, sections, seed * 1000 + number),
                wire=WireOptions(network_backend=fleet.network),
                clock=anyio.current_time,
            )
            for number in range(clients)
        ]
        for engine in engines:
            engine.events.subscribe(_listening(told))
        seen = await _staged(scene, trace, ours(scene, engines, Random(seed)), fleet, told, 1.0)
        await anyio.sleep(120)
        left: Counter[str] = Counter()
        for engine in engines:
            engine.fleet.ledger.sweep(anyio.current_time())
            left["tokens"] += engine.fleet.ledger.tokens
            left["streams"] += engine.open_streams
            await engine.aclose()
            left["connections of the wire"] += sum(engine.wire.counts())
        left["connections"] = fleet.network.open
        seen.left = dict(left)
        return seen

    return run(main)


def judged_virtually(
    scene: Scene, trace: Trace, *, seed: int = 1, emit_interval_s: float = EMIT_INTERVAL_S
) -> Seen:
    """The omniscient router on the same degraded fleet."""

    async def main() -> Seen:
        fleet = VirtualFleet(REPLICAS, spec=SPEC, emit_interval_s=emit_interval_s, seed=seed)
        quotes = partial(fleet.quote, sees_cold=not scene.blind_to_cold)
        async with Judge(fleet.urls, quotes, network=fleet.network) as judge:
            return await _staged(scene, trace, judge.send, fleet, [], 1.0)

    return run(main)


def http_fleet(compression: float, middleware: Sequence[str] = ()) -> Fleet:
    """Eight replicas as processes, so many times as fast as those of the model."""
    return Fleet(
        REPLICAS,
        spec=SPEC.scaled(compression),
        emit_interval_s=EMIT_INTERVAL_S / compression,
        drain_s=60,
        middleware=middleware,
    )


async def over_http(
    scene: Scene,
    trace: Trace,
    fleet: Fleet,
    sections: Mapping[str, Any] = MappingProxyType({}),
    *,
    compression: float,
    judged: bool = False,
    clients: int = 1,
    seed: int = 1,
) -> Seen:
    """Our clients, or the omniscient router, over HTTP; time compressed, figures scaled back."""
    async with AsyncExitStack() as stack:
        told: list[tuple[float, events.Event]] = []
        send: Sender
        if judged:
            judge = await stack.enter_async_context(Judge(fleet.urls, sees_cold=not scene.blind_to_cold))
            send = judge.send
        else:
            ways = [
                await stack.enter_async_context(
                    mlb.AsyncClient(config(fleet.urls, sections, seed * 1000 + number), timeout=600.0)
                )
                for number in range(clients)
            ]
            for way in ways:
                way.subscribe(_listening(told))
            send = faced(scene, ways, Random(seed))
        return await _staged(scene, trace, send, HttpStage(fleet), told, compression)
