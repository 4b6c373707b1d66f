"""A second attempt beside a slow first one, over real connections; all else about them is in ``test_two_attempts``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import anyio
import httpx
import pytest

import mlbalance_client as mlb
from mlbalance_client.simulator.model.fleet import Fleet

from ..scripted import Exchange, Scripted
from ..test_client import PATH, chat, config, settled

pytestmark = pytest.mark.anyio

EAGER = {"first_guess": 1.0, "floor_s": 0.05, "saturated_at": 100.0}


async def eventually(condition: Callable[[], bool]) -> bool:
    """Poll until it holds, while the loop goes on; False if it does not in 10 s."""
    with anyio.move_on_after(10):
        while not condition():
            await anyio.sleep(0.01)
    return condition()


class HangsOnce:
    """Whichever request arrives first never gets an answer; ``left``: its client has closed the connection."""

    def __init__(self) -> None:
        self._first = threading.Lock()
        self.left = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        if self._first.acquire(blocking=False) and exchange.wait_gone():
            self.left.set()
        else:
            exchange.answer(200, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})


async def test_one_of_two_answers_and_the_other_is_left() -> None:
    script = HangsOnce()
    with Scripted(script) as one, Scripted(script) as other:
        async with mlb.AsyncClient(config(one, other, hedging=EAGER)) as client:
            answer = await client.post(PATH, json=chat())

            assert answer.json()["choices"] == []
            assert answer.extensions["mlbalance"].hedged
            assert await eventually(script.left.is_set)
            assert await eventually(lambda: settled(client))


@pytest.mark.parametrize("said", ["true", "false"])
async def test_a_header_says_whether_to_hedge(said: str) -> None:
    second = threading.Event()
    arrived: list[Exchange] = []

    def slow(exchange: Exchange) -> None:
        arrived.append(exchange)
        if len(arrived) > 1:
            second.set()
        second.wait(10 if said == "true" else 0.3)
        exchange.answer(200, {"choices": []})

    with Scripted(slow) as one, Scripted(slow) as other:
        settings = config(one, other, hedging=EAGER | {"enabled": said == "false"})
        async with mlb.AsyncClient(settings) as client:
            answer = await client.post(PATH, json=chat(), headers={"x-mlbalance-hedge": said})
            assert answer.extensions["mlbalance"].hedged is (said == "true")
            assert len(arrived) == (2 if said == "true" else 1)


def test_the_sync_client_hedges_too() -> None:
    script = HangsOnce()
    with Scripted(script) as one, Scripted(script) as other:
        with mlb.Client(config(one, other, hedging=EAGER)) as client:
            assert client.post(PATH, json=chat()).extensions["mlbalance"].hedged


async def test_what_begins_nowhere_is_a_timeout_of_the_library() -> None:
    with Scripted(Exchange.wait_gone) as one, Scripted(Exchange.wait_gone) as other:
        settings = config(one, other, hedging={"enabled": False}, http={"first_content_timeout_s": 0.1})
        async with mlb.AsyncClient(settings) as client:
            with pytest.raises(httpx.ReadTimeout) as caught:
                await client.post(PATH, json=chat(stream=True))
            assert isinstance(caught.value, mlb.AttemptsExhausted)
            assert len(caught.value.attempts) == 2
            assert await eventually(lambda: settled(client))


async def test_a_slow_call_is_not_given_up_where_nobody_else_is_though_its_replica_is_ejected() -> None:
    """An engine that has just started: it is out since it refused connections, and its first answer takes long."""

    def slow(exchange: Exchange) -> None:
        time.sleep(0.5)
        exchange.answer(200, {"choices": []})

    with Scripted(slow) as only:
        port = int(only.address.rpartition(":")[2])
    async with mlb.AsyncClient(config(only, hedging=EAGER)) as client:
        for _ in range(3):
            with pytest.raises(mlb.AttemptsExhausted):
                await client.post(PATH, json=chat())
        assert client.snapshot().replicas[0].ejected is not None
        with Scripted(slow, port=port):
            answer = await client.post(PATH, json=chat())

    assert (answer.status_code, len(answer.extensions["mlbalance"].attempts)) == (200, 1)


# -- simulated replicas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_hanging_replica_delays_nobody_for_long(fleet: Fleet, streaming: bool) -> None:
    fleet.set_faults(0, hanging=True)
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls},
        hedging=EAGER,
        load_reports={"kind": "none"},
        picking={"policy": "round_robin"},  # homes go by ports, and may all be elsewhere
    )
    async with mlb.AsyncClient(settings) as client:
        hedged = 0
        for number in range(12):
            with anyio.fail_after(10):
                answer = await client.post(PATH, json=chat(f"{number} " * 300, stream=streaming))
            assert answer.status_code == 200
            hedged += answer.extensions["mlbalance"].hedge_won
        assert hedged >= 1
        assert await eventually(lambda: all(state["in_flight"] == 0 for state in fleet.states()))


async def test_what_stands_at_a_replica_that_is_ejected_leaves_it_though_no_hedge_can_be_paid(
    fleet: Fleet,
) -> None:
    fleet.set_faults(0, hanging=True)
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls},
        hedging=EAGER
        | {"reserve_tokens": 0, "floor_s": 0.8},  # the healthy ones answer sooner on any machine
        load_reports={"kind": "none"},
        picking={"policy": "round_robin", "residual_s": 0.0},
    )
    answers: list[httpx.Response] = []
    async with mlb.AsyncClient(settings) as client:

        async def call(number: int) -> None:
            answers.append(await client.post(PATH, json=chat(f"{number} " * 50, stream=True)))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(call, number)
        reports = [answer.extensions["mlbalance"] for answer in answers]
        assert {answer.status_code for answer in answers} == {200}
        assert not any(report.hedged for report in reports)
        left = [report for report in reports if report.attempts[0].failure == "silent"]
        assert left
        assert all("began no answer" in report.attempts[0].detail for report in left)
        assert all("was silent for too long" in str(report.explain()) for report in left)
        assert await eventually(lambda: settled(client))


async def test_a_losers_abort_is_seen_at_its_replica(fleet: Fleet) -> None:
    aborted = fleet.state(0)["aborted"]
    fleet.set_faults(0, slow=2000)
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls},
        hedging=EAGER,
        load_reports={"kind": "none"},
        picking={"policy": "round_robin", "residual_s": 0.3},
    )
    async with mlb.AsyncClient(settings) as client:
        for number in range(3):
            answer = await client.post(PATH, json=chat(f"{number} " * 300, stream=True))
            assert answer.status_code == 200
        assert await eventually(lambda: fleet.state(0)["aborted"] > aborted)
        assert await eventually(lambda: client.snapshot().outstanding_tokens == 0)
