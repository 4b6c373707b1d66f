"""Calls with faults, hedges, cancels, deadlines and timeouts at random leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import aclosing
from random import Random
from typing import Any

import anyio
import httpcore
import pytest

import mlbalance_client as mlb
from mlbalance_client.conduct.answer import AnswerBody, Flow
from mlbalance_client.conduct.engine import Engine, Request
from mlbalance_client.conduct.performing import Attempt, CallUnderWay
from mlbalance_client.events import AttemptStarted, Event, FailedOver, HedgeStarted, Queued, Settled
from mlbalance_client.wire import WireOptions

from ..test_client import OVERLOADED, PATH, ROLE, WORD, chat
from .virtual import BREAK, HANG, HEAD, WHOLE, answer, anyio_backend, chunk

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

AT_ONCE = 10
REPLICAS = 4
RATIO, RESERVE_CALLS = 0.1, 20
# How often, and what comes: bytes, or nothing any more, or the end of the connection.
SCRIPTS: list[tuple[int, list[bytes | str]]] = [
    (40, [WHOLE]),
    (30, [HEAD + chunk(ROLE), chunk(WORD), chunk(WORD), chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"]),
    (4, [HANG]),
    (4, [HEAD + chunk(ROLE), HANG]),
    (4, [HEAD + chunk(ROLE + WORD), HANG]),
    (4, [BREAK]),
    (4, [WHOLE[:30], BREAK]),
    (4, [HEAD + chunk(ROLE + WORD), BREAK]),
    (4, [answer(503, b"{}", b"retry-after: 0.01\r\n")]),
    (4, [answer(429, b"{}", b"retry-after-ms: 1e99\r\n")]),
    (4, [answer(500, b"x" * 100_000)]),
    (3, [HEAD + chunk(OVERLOADED) + b"0\r\n\r\n"]),
    (2, [b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE]),
    (2, [b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd"]),
    (2, [answer(400, b"{}")]),
]


class Connection(httpcore.AsyncNetworkStream):
    """One connection, in memory; each request on it is answered by a script drawn at random."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._script: Iterator[bytes | str] = iter(())
        self._closed = anyio.Event()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await anyio.lowlevel.checkpoint()
        match next(self._script, HANG):
            case bytes() as data:
                return data
            case "break":
                raise httpcore.ReadError("reset")
        with anyio.move_on_after(timeout):
            await self._closed.wait()
            raise httpcore.ReadError("closed")
        raise httpcore.ReadTimeout

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await anyio.lowlevel.checkpoint()
        if buffer.startswith(b"POST"):
            self._script = iter(self._network.draw())

    async def aclose(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._network.open -= 1

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


class Network(httpcore.AsyncNetworkBackend):
    """Connects to replicas in memory; some refuse."""

    def __init__(self, seed: int) -> None:
        self._rng = Random(seed)
        self.open = 0

    def draw(self) -> list[bytes | str]:
        return self._rng.choices([s for _, s in SCRIPTS], [weight for weight, _ in SCRIPTS])[0]

    async def connect_tcp(self, *place: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        await anyio.lowlevel.checkpoint()
        if self._rng.random() < 0.05:
            raise httpcore.ConnectError("refused")
        self.open += 1
        return Connection(self)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


async def one_call(engine: Engine, rng: Random, ends: Counter[str]) -> None:
    body = json.dumps(chat(f"{rng.random()} " * rng.choice([1, 50]), stream=rng.random() < 0.7)).encode()
    options = mlb.CallOptions(
        deadline_s=rng.choice([None, None, 0.05]), hedge=rng.choice([None, None, None, False])
    )
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    end = "cancelled"
    with anyio.move_on_after(rng.choice([0.002, 0.02, 0.3])):
        try:
            got = await engine.send(Request("POST", PATH.encode(), headers, body, options))
            leaves_after = rng.choice([0, 1, 99, 99])
            async with aclosing(got.body):  # type: ignore[type-var]
                while leaves_after and await anext(got.body, None) is not None:
                    leaves_after -= 1
            end = str(got.status)
        except mlb.BalancerError as error:
            end = type(error).__name__
    ends[end] += 1


async def scene(calls: int, seed: int) -> None:
    heard: Counter[type[Event]] = Counter()
    ends: Counter[str] = Counter()
    network = Network(seed)
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": [f"http://replica-{i}" for i in range(REPLICAS)]},
        load_reports={"kind": "none"},
        health_checks={"enabled": False},  # their connections are busy while nobody calls
        picking={"residual_s": 0.05},
        hedging={"first_guess": 1.0, "floor_s": 0.005, "saturated_at": 1e3, "reserve_tokens": 4096},
        retries={"budget_ratio": RATIO, "reserve_calls": RESERVE_CALLS, "max_wait_s": 0.05},
        http={"first_content_timeout_s": 0.1, "max_unread_s": 5.0},
        outlier_detection={"rest_base_s": 0.01},
        seed=seed,
    )
    tasks_before = asyncio.all_tasks() if _on_asyncio() else set()
    engine = Engine(settings, wire=WireOptions(network_backend=network), clock=anyio.current_time)
    engine.events.subscribe(lambda event: heard.update([type(event)]))
    rng, left = Random(seed), iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await one_call(engine, rng, ends)

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(caller)
    performer = engine._performer
    with anyio.move_on_after(10):
        while engine.snapshot().outstanding_requests or engine.open_streams or performer._seconds:
            await anyio.sleep(0.01)
    snapshot = engine.snapshot()
    assert (snapshot.outstanding_requests, snapshot.outstanding_tokens, engine.open_streams) == (0, 0, 0)
    assert engine.wire.counts()[1] == 0
    assert not performer._seconds
    assert not performer._waiting
    assert len(performer.alarms) == 0
    await engine.aclose()
    assert network.open == 0
    if _on_asyncio():
        assert not asyncio.all_tasks() - tasks_before
    gc.collect()
    assert not [o for o in gc.get_objects() if isinstance(o, Attempt | CallUnderWay | Flow | AnswerBody)]

    assert sum(ends.values()) == calls
    assert heard[AttemptStarted] == heard[Settled]
    unsent = calls + heard[FailedOver] + heard[HedgeStarted] - heard[AttemptStarted]
    assert 0 <= unsent <= heard[Queued]  # these ended while they waited for room, or as they got it
    assert heard[HedgeStarted] > 0
    assert heard[FailedOver] > 0
    assert ends["200"] > 0
    assert set(ends) <= {
        "200", "400", "429", "500", "503", "cancelled", "AttemptsExhausted", "DeadlineExceeded", "StreamInterrupted",
        "NoCapacity",
    }  # fmt: skip
    assert ends["NoCapacity"] <= calls / 100  # deadlines that could not be met


def _on_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def test_hundreds_of_calls_leave_nothing() -> None:
    await scene(300, seed=11)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_thousand_calls_leave_nothing() -> None:
    await scene(10_000, seed=12)
