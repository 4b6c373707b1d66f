"""What happens between two attempts at the very moments when one is being closed, over connections in memory."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import httpcore
import pytest

import mlbalance_client as mlb
from mlbalance_client.engine import Engine, Request
from mlbalance_client.wire import WireOptions

from ..test_client import PATH, ROLE, WORD, chat
from .test_hedging import eventually
from .test_random_calls import STREAM, WHOLE, answer, chunk

pytestmark = pytest.mark.anyio

Step = bytes | str | Callable[[], Awaitable[object]]
HANG, BREAK = "hang", "break"


class Connection(httpcore.AsyncNetworkStream):
    """Plays the script of the request that arrived on it; closing it takes as long as its network says."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._script: Iterator[Step] = iter(())
        self._number = 0
        self._closed = anyio.Event()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await anyio.lowlevel.checkpoint()
        for step in self._script:
            if isinstance(step, bytes):
                return step
            if callable(step):
                await step()
            elif step == BREAK:
                raise httpcore.ReadError("reset")
            else:
                break
        await self._closed.wait()
        raise httpcore.ReadError("closed")

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await anyio.lowlevel.checkpoint()
        if buffer.startswith(b"POST"):
            self._network.arrived += 1
            self._number = self._network.arrived
            self._network.event(f"arrived {self._number}").set()
            scripts = self._network.scripts
            self._script = iter(scripts[min(self._number, len(scripts)) - 1])

    async def aclose(self) -> None:
        if not self._closed.is_set():
            self._closed.set()
            self._network.event(f"closing {self._number}").set()
            if self._number in self._network.closes_after:
                await self._network.event(self._network.closes_after[self._number]).wait()

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


class Network(httpcore.AsyncNetworkBackend):
    """``scripts`` by the order of arrival; ``closes_after``: the event for which the end of a connection waits."""

    def __init__(self, *scripts: list[Step], closes_after: dict[int, str] | None = None) -> None:
        self.scripts = list(scripts)
        self.closes_after = closes_after or {}
        self.arrived = 0
        self._events: dict[str, anyio.Event] = {}

    def event(self, name: str) -> anyio.Event:
        return self._events.setdefault(name, anyio.Event())

    def until(self, name: str) -> Step:
        return lambda: self.event(name).wait()

    async def connect_tcp(self, *place: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        await anyio.lowlevel.checkpoint()
        return Connection(self)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


def engine_of(network: Network, **more: Any) -> Engine:
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": [f"http://r{i}" for i in range(3)]},
        load_reports={"kind": "none"},
        picking={"residual_s": 0.0, "policy": "round_robin"},
        hedging={"first_guess": 1.0, "floor_s": 0.02, "saturated_at": 1e3},
        **more,
    )
    return Engine(settings, wire=WireOptions(network_backend=network))


def request(**wants: Any) -> Request:
    body = json.dumps(chat("x", **wants)).encode()
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    return Request("POST", PATH.encode(), headers, body)


@pytest.mark.parametrize("last", [WHOLE, answer(500, b"{}")])
async def test_a_second_that_fails_while_the_first_is_being_closed_is_heard(last: bytes) -> None:
    """The first gets an answer too large to hold; the second breaks while the first's connection is being closed."""
    network = Network(closes_after={1: "closing 2"})
    network.scripts = [
        [network.until("arrived 2"), answer(500, b"x" * 100_000)],
        [network.until("closing 1"), BREAK],
        [last],
    ]
    engine = engine_of(network)
    try:
        with anyio.fail_after(10):
            got = await engine.send(request())
        assert (got.status, network.arrived) == (int(last[9:12]), 3)
        assert [told.status or told.failure for told in got.report.attempts] == [500, "read", got.status]
        await got.body.aclose()
    finally:
        await engine.aclose()
    assert engine.snapshot().outstanding_requests == 0


@pytest.mark.parametrize("failing", [[answer(503, b"{}")], [BREAK], [answer(500, b"x" * 100_000)]])
async def test_a_second_that_fails_is_replaced_while_the_first_hangs(failing: list[Step]) -> None:
    engine = engine_of(network := Network([HANG], failing, [WHOLE]))
    try:
        with anyio.fail_after(10):
            got = await engine.send(request())
        assert (got.status, network.arrived) == (200, 3)
        assert got.report.hedge_won
        await got.body.aclose()
    finally:
        await engine.aclose()


async def test_an_answer_that_the_client_closed_before_it_was_delivered_is_not_taken_for_whole() -> None:
    network = Network(
        [HANG], [STREAM + chunk(ROLE + WORD), HANG], [HANG], closes_after={1: "the client is closed"}
    )
    engine = engine_of(network, http={"drain_s": 0.0})
    raised: list[Exception] = []

    async def call() -> None:
        try:
            got = await engine.send(request(stream=True))
            async for _ in got.body:
                pass
        except mlb.BalancerError as error:
            raised.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await network.event("closing 1").wait()
            tasks.start_soon(engine.aclose)
            assert await eventually(lambda: engine.open_streams == 0)
            network.event("the client is closed").set()
    assert len(raised) == 1
    assert isinstance(raised[0], mlb.ClientClosed | mlb.StreamInterrupted)


@pytest.mark.parametrize("hint", [b"retry-after-ms: 0.001\r\n", b"retry-after: 0\r\n"])
async def test_a_wait_that_is_over_when_it_begins_is_no_error(hint: bytes) -> None:
    engine = engine_of(network := Network(*[[answer(503, b"{}", hint)]] * 3, [WHOLE]))
    try:
        got = await engine.send(request())
        assert got.status in (200, 503)
        assert network.arrived > 1
        await got.body.aclose()
    finally:
        await engine.aclose()
