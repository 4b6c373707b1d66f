"""Replicas in memory that play scripts, one for each attempt, in virtual time on asyncio and trio.

The second attempt always arrives second, and a second passes when nobody has anything to do: nothing depends on how
fast the machine is. A test module uses ``anyio_backend`` of here.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import httpcore
import pytest
import sniffio
import trio.testing

import mlbalance_client as mlb
from mlbalance_client.conduct.engine import Answer, Engine, Request
from mlbalance_client.simulator.model.virtual_time import VirtualLoop
from mlbalance_client.wire import WireOptions

from ..test_client import PATH, ROLE, WORD, chat

Step = bytes | str | Callable[[], Awaitable[object]]
HANG, BREAK, REFUSE = "hang", "break", "refuse"
DONE = b"data: [DONE]\n\n"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Every async test runs on both, in virtual time."""
    if request.param == "asyncio":
        return "asyncio", {"loop_factory": VirtualLoop}
    return "trio", {"clock": trio.testing.MockClock(autojump_threshold=0)}


def chunk(data: bytes) -> bytes:
    """One piece of a stream."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def answer(status: int, body: bytes, headers: bytes = b"") -> bytes:
    """A whole answer."""
    head = b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%s\r\n"
    return head % (status, len(body), headers) + body


def whole(prompt_tokens: int = 5) -> bytes:
    """A whole answer as engines give it."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1}
    return answer(200, json.dumps({"choices": [], "usage": usage}).encode())


WHOLE = whole()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
STREAM = [HEAD + chunk(ROLE), chunk(WORD), chunk(DONE) + b"0\r\n\r\n"]


def after(seconds: float) -> Step:
    """Let the time pass."""
    return lambda: anyio.sleep(seconds)


def stand_still(seconds: float) -> None:
    """Let the time pass while this process does nothing."""
    if sniffio.current_async_library() == "trio":
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(seconds)
    else:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        loop.jump(seconds)


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
        with anyio.move_on_after(timeout):
            await self._closed.wait()
            raise httpcore.ReadError("closed")
        raise httpcore.ReadTimeout

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await anyio.lowlevel.checkpoint()
        if buffer.startswith(b"POST"):
            self._number, self._script = self._network.arrive()

    async def aclose(self) -> None:
        network = self._network
        if not self._closed.is_set():
            self._closed.set()
            network.closing.append(self._number)
            network.event(f"closing {self._number}").set()
            try:
                if self._number in network.closes_after:
                    await network.event(network.closes_after[self._number]).wait()
            finally:  # whoever gives up on it, as he has to, drops it
                network.open -= 1

    def get_extra_info(self, info: str) -> Any:
        return False if info == "is_readable" else None


class Network(httpcore.AsyncNetworkBackend):
    """``scripts``: of each attempt in its turn, the last one's for all later ones; one that is ``[REFUSE]`` does not
    get a connection. ``closes_after``: by attempt, the event for which the end of its connection waits."""

    def __init__(self, *scripts: list[Step], closes_after: dict[int, str] | None = None) -> None:
        self.scripts = list(scripts)
        self.closes_after = closes_after or {}
        self.arrived = 0
        self.open = 0
        self.closing: list[int] = []
        self.asked: list[str] = []
        self._events: dict[str, anyio.Event] = {}

    def event(self, name: str) -> anyio.Event:
        """``arrived 1``, ``closing 2``, or any other name that a test sets."""
        return self._events.setdefault(name, anyio.Event())

    def until(self, name: str) -> Step:
        """Wait for an event."""
        return lambda: self.event(name).wait()

    def tell(self, name: str) -> Step:
        """Let others go on who wait for an event, when this one has."""

        async def told() -> None:
            self.event(name).set()

        return told

    def cling(self, name: str) -> Step:
        """Hang, and when cancelled go on hanging until an event."""

        async def clings() -> None:
            try:
                await anyio.sleep_forever()
            finally:
                self.event("cancelled").set()
                with anyio.CancelScope(shield=True):
                    await self.event(name).wait()

        return clings

    def insist(self, name: str) -> Step:
        """Wait for an event, cancelled or not: what comes then was on its way before."""

        async def insists() -> None:
            self.event("insists").set()
            with anyio.CancelScope(shield=True):
                await self.event(name).wait()

        return insists

    def arrive(self) -> tuple[int, Iterator[Step]]:
        """The next attempt's number, and what is to happen to it."""
        script = self._next()
        self.arrived += 1
        self.event(f"arrived {self.arrived}").set()
        return self.arrived, iter(script)

    def _next(self) -> list[Step]:
        return self.scripts[min(self.arrived, len(self.scripts) - 1)]

    async def connect_tcp(self, host: str, port: int, *more: Any, **options: Any) -> Connection:
        await anyio.lowlevel.checkpoint()
        self.asked.append(host)
        if self._next() == [REFUSE]:
            self.arrived += 1
            raise httpcore.ConnectError("refused")
        self.open += 1
        return Connection(self)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


EAGER = {"first_guess": 1.0, "floor_s": 0.05, "saturated_at": 1e3}


def engine_of(
    network: Network, replicas: int = 3, clock: Callable[[], float] = anyio.current_time, **sections: Any
) -> Engine:
    """A client of so many replicas, which hedges early; ``hedging`` and the like change that."""
    given: dict[str, Any] = {
        "discovery": {"kind": "static", "replicas": [f"http://r{i}" for i in range(replicas)]},
        "load_reports": {"kind": "none"},
        "health_checks": {"enabled": False},
        "picking": {"residual_s": 0.0, "policy": "round_robin"},
        "seed": 4,
        **sections,
        "hedging": EAGER | sections.get("hedging", {}),
    }
    return Engine(
        mlb.BalancerConfig.model_validate(given),
        wire=WireOptions(network_backend=network),
        clock=clock,
    )


def request(text: str = "x", options: mlb.CallOptions | None = None, **wants: Any) -> Request:
    """A call of a chat."""
    body = json.dumps(chat(text, **wants)).encode()
    headers = [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
    return Request("POST", PATH.encode(), headers, body, options or mlb.CallOptions())


async def read(got: Answer) -> bytes:
    """All of an answer."""
    return b"".join([piece async for piece in got.body])


async def rest(seconds: float = 1.0) -> None:
    """Let everything happen that is under way."""
    await anyio.sleep(seconds)


async def nothing_is_left(engine: Engine, network: Network) -> None:
    """Neither charges nor tasks nor connections of a call, and after the client is closed none at all."""
    await rest()
    snapshot = engine.snapshot()
    assert (snapshot.outstanding_requests, snapshot.outstanding_tokens, engine.open_streams) == (0, 0, 0)
    assert engine.wire.counts()[1] == 0
    performer = engine._performer
    assert not performer._seconds
    assert not performer._waiting
    assert len(performer.alarms) == 0
    await engine.aclose()
    assert network.open == 0
