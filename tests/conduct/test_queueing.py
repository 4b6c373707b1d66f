"""Calls that wait for room, live: they get it in order, and leave nothing behind whatever becomes of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest

import mlbalance_client as mlb
from mlbalance_client.events import Event, Pulled, Queued, Shed

from ..scripted import Exchange, Scripted

PIECE = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
CHAT = "/v1/chat/completions"


def body(name: str = "") -> dict[str, Any]:
    """Long, and its prefix nobody else's."""
    return {
        "model": "m",
        "stream": True,
        "messages": [{"role": "user", "content": f"{name} " + "long " * 40_000}],
    }


class Slow:
    """A replica that shows content only when it is told to."""

    def __init__(self) -> None:
        self.go = threading.Semaphore(0)
        self.order: list[str | None] = []

    def __call__(self, exchange: Exchange) -> None:
        self.order.append(exchange.header("x-name"))
        exchange.start_stream()
        assert self.go.acquire(timeout=20)
        exchange.chunk(PIECE)
        exchange.chunk(b"data: [DONE]\n\n")
        exchange.end_stream()


@pytest.fixture
def slow() -> Iterator[tuple[Slow, Scripted]]:
    replica = Slow()
    with Scripted(replica) as server:
        yield replica, server
        replica.go.release(100)


def config(server: Scripted, **admission: Any) -> mlb.BalancerConfig:
    """A replica is full as soon as it has one prompt of ours."""
    return mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": [f"http://{server.address}"]},
        load_reports={"kind": "none"},
        admission={"engine_queue_s": 0.1, **admission},
    )


async def ask(client: mlb.AsyncClient, name: str = "", **options: Any) -> mlb.CallReport:
    response = await client.post(
        CHAT,
        json=body(name),
        headers={"x-name": name},
        extensions={"mlbalance": mlb.CallOptions(**options)},
    )
    report: mlb.CallReport = response.extensions["mlbalance"]
    return report


async def until_queued(client: mlb.AsyncClient, count: int) -> None:
    with anyio.fail_after(10):
        while client.snapshot().queued != count:
            await anyio.sleep(0.005)


async def until_sent(replica: Slow, count: int) -> None:
    with anyio.fail_after(10):
        while len(replica.order) != count:
            await anyio.sleep(0.005)


@pytest.mark.anyio
async def test_calls_wait_in_order_of_priority_and_tell_of_it(slow: tuple[Slow, Scripted]) -> None:
    replica, server = slow
    events: list[Event] = []
    reports: dict[str, mlb.CallReport] = {}
    async with mlb.AsyncClient(config(server)) as client:
        client.subscribe(events.append)

        async def call(name: str, priority: int) -> None:
            reports[name] = await ask(client, name, priority=priority)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, "first", 0)
            await until_sent(replica, 1)
            tasks.start_soon(call, "usual", 0)
            await until_queued(client, 1)
            tasks.start_soon(call, "urgent", 5)
            await until_queued(client, 2)
            window = client.snapshot().replicas[0].window
            assert window
            assert window.full
            assert client.explain(body("more")).queued.startswith("it would wait")
            for sent in (2, 3):
                replica.go.release()
                await until_sent(replica, sent)
            replica.go.release()
        assert client.snapshot().outstanding_requests == client.snapshot().queued == 0
        assert client.explain(body("more")).queued == ""

    assert replica.order == ["first", "urgent", "usual"]
    assert reports["first"].queued_s == 0.0
    assert reports["usual"].queued_s > 0.0
    assert "it waited" in str(reports["usual"].explain())
    assert "had enough to do" in reports["usual"].explain().queued
    assert not reports["first"].explain().queued
    assert [e.waiting for e in events if isinstance(e, Queued)] == [1, 2]
    assert [e.priority for e in events if isinstance(e, Pulled)] == [5, 0]


@pytest.mark.anyio
async def test_a_cancelled_call_leaves_nothing_behind(slow: tuple[Slow, Scripted]) -> None:
    replica, server = slow
    async with mlb.AsyncClient(config(server)) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, client, "first")
        await until_sent(replica, 1)
        scope = anyio.CancelScope()

        async def call() -> None:
            with scope:
                await ask(client, "second")

        tasks.start_soon(call)
        await until_queued(client, 1)
        scope.cancel()
        await until_queued(client, 0)

        assert client.snapshot().outstanding_requests == 1
        replica.go.release()
    assert replica.order == ["first"]


@pytest.mark.anyio
async def test_closing_the_client_ends_those_who_wait(slow: tuple[Slow, Scripted]) -> None:
    replica, server = slow
    client = mlb.AsyncClient(config(server))
    ends: list[type[BaseException]] = []

    async def call() -> None:
        try:
            await ask(client)
        except mlb.ClientClosed as error:
            ends.append(type(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await until_sent(replica, 1)
        tasks.start_soon(call)
        await until_queued(client, 1)
        await client.aclose()

    assert len(ends) == 2


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("admission", "options", "error"),
    [
        ({"queue_max_calls": 0}, {}, mlb.NoCapacity),
        ({"queue_timeout_s": 0.05}, {}, mlb.QueueTimeout),
    ],
)
async def test_who_cannot_wait_hears_so(
    slow: tuple[Slow, Scripted], admission: Any, options: Any, error: type[Exception]
) -> None:
    replica, server = slow
    events: list[Event] = []
    async with mlb.AsyncClient(config(server, **admission)) as client, anyio.create_task_group() as tasks:
        client.subscribe(events.append)
        tasks.start_soon(ask, client, "first")
        await until_sent(replica, 1)

        with pytest.raises(error) as raised:
            await ask(client, **options)

        assert isinstance(raised.value, httpx.PoolTimeout)
        assert [e.error for e in events if isinstance(e, Shed)] == [error.__name__]
        assert client.snapshot().queued == 0
        replica.go.release()


@pytest.mark.anyio
@pytest.mark.parametrize("admission", [{"queue_max_calls": 0}, {"queue_timeout_s": 0.05}])
async def test_an_sdk_is_told_when_to_come_back(slow: tuple[Slow, Scripted], admission: Any) -> None:
    replica, server = slow
    async with mlb.AsyncClient(config(server, **admission)) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(ask, client, "first")
        await until_sent(replica, 1)

        refused = await client.post(CHAT, json=body("sdk"), headers={"x-stainless-retry-count": "0"})

        assert refused.status_code == 503
        assert refused.headers["x-should-retry"] == "false"
        assert int(refused.headers["retry-after"]) >= 1
        replica.go.release()


@pytest.mark.anyio
async def test_a_lease_waits_too(slow: tuple[Slow, Scripted]) -> None:
    _, server = slow
    call = mlb.Call(prompt="long " * 40_000)
    got = anyio.Event()
    async with mlb.Balancer(config(server)) as balancer, anyio.create_task_group() as tasks:

        async def second() -> None:
            async with balancer.acquire(call) as lease:
                assert lease.report.queued_s > 0
                got.set()

        async with balancer.acquire(call) as lease:
            tasks.start_soon(second)
            with anyio.fail_after(10):
                while balancer.snapshot().queued != 1:
                    await anyio.sleep(0.005)
            lease.first_content()
            with anyio.fail_after(10):
                await got.wait()


@pytest.mark.anyio
async def test_a_call_that_waits_goes_to_a_replica_that_joins(
    slow: tuple[Slow, Scripted], tmp_path: Any
) -> None:
    replica, server = slow
    newcomer = Slow()
    newcomer.go.release(100)
    listed = tmp_path / "replicas.json"
    listed.write_text(f'["http://{server.address}"]')
    own = config(server).model_copy(
        update={"discovery": mlb.BalancerConfig.from_target(f"file://{listed}").discovery}
    )
    with Scripted(newcomer) as other:
        async with mlb.AsyncClient(own) as client, anyio.create_task_group() as tasks:
            tasks.start_soon(ask, client, "first")
            await until_sent(replica, 1)
            tasks.start_soon(ask, client, "second")
            await until_queued(client, 1)
            listed.write_text(f'["http://{server.address}", "http://{other.address}"]')
            await until_sent(newcomer, 1)
            replica.go.release()

    assert newcomer.order == ["second"]


def test_threads_wait_in_the_same_queue(slow: tuple[Slow, Scripted]) -> None:
    replica, server = slow
    statuses: list[int] = []
    with mlb.Client(config(server)) as client:

        def call() -> None:
            statuses.append(client.post(CHAT, json=body()).status_code)

        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        replica.go.release(4)
        for thread in threads:
            thread.join(20)

    assert statuses == [200] * 4
