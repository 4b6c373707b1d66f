"""Virtual time passes only when nobody has anything to do, and the fleet in it is what it is over real HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpcore
import pytest

from mlbalance_client.simulator.model.faults import Faults
from mlbalance_client.simulator.model.spec import EngineSpec
from mlbalance_client.simulator.model.virtual_fleet import VirtualFleet
from mlbalance_client.simulator.model.virtual_time import run

from .test_server import CHAT, LONG, asked

SPEC = EngineSpec()


def virtually(test: Callable[..., Awaitable[Any]]) -> Callable[[], None]:
    """Run a test in virtual time."""

    def wrapped() -> None:
        run(test)

    wrapped.__name__ = test.__name__
    wrapped.__doc__ = test.__doc__
    return wrapped


@asynccontextmanager
async def pool(fleet: VirtualFleet) -> AsyncIterator[httpcore.AsyncConnectionPool]:
    async with httpcore.AsyncConnectionPool(network_backend=fleet.network, keepalive_expiry=100) as made:
        yield made


async def post(client: httpcore.AsyncConnectionPool, url: str, body: dict[str, Any]) -> httpcore.Response:
    headers = {"content-type": "application/json"}
    return await client.request("POST", url + CHAT, headers=headers, content=json.dumps(body).encode())


@virtually
async def test_time_passes_at_once_and_in_order() -> None:
    told: list[tuple[int, float]] = []
    start, real = anyio.current_time(), time.monotonic()

    async def after(hours: int) -> None:
        await anyio.sleep(hours * 3600)
        told.append((hours, round((anyio.current_time() - start) / 3600, 6)))

    async with anyio.create_task_group() as tasks:
        for hours in (3, 1, 2):
            tasks.start_soon(after, hours)

    assert told == [(1, 1), (2, 2), (3, 3)]
    assert time.monotonic() - real < 3600


def test_waiting_for_what_never_comes_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="deadlock"):
        run(anyio.sleep_forever)


@virtually
async def test_a_call_takes_what_the_engine_says() -> None:
    fleet = VirtualFleet(1)
    start = anyio.current_time()
    async with pool(fleet) as client:
        answer = await post(client, fleet.urls[0], asked(CHAT, output=1))

    prompt = json.loads(answer.content)["usage"]["prompt_tokens"]
    assert anyio.current_time() - start == pytest.approx(SPEC.prefill_s(prompt))
    assert fleet.network.open == 0


@virtually
async def test_a_killed_replica_breaks_its_streams_and_refuses() -> None:
    fleet = VirtualFleet(2, faults=Faults(slow=100))
    replica = fleet.replicas[0]
    async with pool(fleet) as client:

        async def kill() -> None:
            await anyio.sleep(0.5)
            replica.kill()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill)
            with pytest.raises(httpcore.ReadError):
                await post(client, replica.url, asked(CHAT, output=LONG))
        with pytest.raises(httpcore.ConnectError):
            await post(client, replica.url, asked(CHAT))
        assert [port for _, port in fleet.network.refused] == [replica.port]
        assert not replica.listens

        replica.start(cold_calls=3)
        assert (await post(client, replica.url, asked(CHAT))).status == 200
        state = replica.state()
        assert (state["seen"], state["finished"], state["faults"]["cold_calls"]) == (2, 1, 3)
        assert (await post(client, fleet.urls[1], asked(CHAT))).status == 200


@virtually
async def test_a_draining_replica_finishes_what_it_has_and_takes_nothing_more() -> None:
    fleet = VirtualFleet(1, faults=Faults(slow=10))
    replica = fleet.replicas[0]
    async with pool(fleet) as client:
        answers: list[httpcore.Response] = []

        async def call() -> None:
            answers.append(await post(client, replica.url, asked(CHAT, output=200, stream=True)))

        await post(client, replica.url, asked(CHAT, output=1))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.sleep(0.05)
            tasks.start_soon(replica.drain)
            await anyio.sleep(0.05)
            with pytest.raises(httpcore.ConnectError):
                await post(client, replica.url, asked(CHAT))
            assert not answers

    assert [answer.status for answer in answers] == [200]
    assert answers[0].content.endswith(b"[DONE]\n\n")
    assert fleet.network.open == 0


@virtually
async def test_a_caller_who_leaves_is_noticed() -> None:
    fleet = VirtualFleet(1, faults=Faults(hanging=True))
    async with pool(fleet) as client:
        with anyio.move_on_after(5):
            await post(client, fleet.urls[0], asked(CHAT))
        fleet.replicas[0].set_faults(slow=1000)
        with anyio.move_on_after(5):
            await post(client, fleet.urls[0], asked(CHAT))
        await anyio.sleep(1000)

    state = fleet.replicas[0].state()
    assert (state["seen"], state["in_flight"], state["aborted"], state["finished"]) == (2, 0, 1, 0)


@virtually
async def test_stalls_come_by_chance_and_delay_their_own_call() -> None:
    fleet = VirtualFleet(1, faults=Faults(stall_share=0.5, stall_factor=10), seed=3)
    took = []
    async with pool(fleet) as client:
        for _ in range(40):
            start = anyio.current_time()
            await post(client, fleet.urls[0], asked(CHAT, output=1))
            took.append(anyio.current_time() - start)

    usual_s = min(took)
    assert {round(s / usual_s) for s in took} == {1, 10}
    assert 10 <= sum(s > 5 * usual_s for s in took) <= 30
