"""Retries move on at once, stay within the budget, and heed what replicas say of them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import pytest
from tenacity import stop_after_attempt, wait_fixed

import mlbalance_client as mlb

from ..scripted import Exchange, Scripted
from ..test_client import PATH, chat, config, ok, refuse, settled

pytestmark = pytest.mark.anyio


def refusing(status: int = 503, headers: str = "") -> Any:
    return lambda exchange: exchange.answer(status, b"{}", headers)


def first(headers: str, status: int = 503) -> Any:
    """Refuses once, then answers."""
    asked: list[Exchange] = []

    def script(exchange: Exchange) -> None:
        asked.append(exchange)
        (refusing(status, headers) if len(asked) == 1 else ok)(exchange)

    return script


async def test_an_outage_of_all_is_not_multiplied() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Scripted(refuse)) for _ in range(8)]
        async with mlb.AsyncClient(config(*servers, picking={})) as client:
            calls = 150
            for number in range(calls):
                answer = await client.post(PATH, json=chat(f"{number} " * 100))
                assert answer.status_code == 503
                assert answer.headers["x-should-retry"] == "false"
                assert 1 <= int(answer.headers["retry-after"]) <= 30
            assert sum(len(server.exchanges) for server in servers) <= 1.2 * calls
            assert settled(client)


@pytest.mark.parametrize("status", [500, 502])
async def test_failures_that_are_no_pushback_are_retried_within_the_budget(status: int) -> None:
    with Scripted(refusing(status)) as one, Scripted(refusing(status)) as two:
        settings = config(one, two, retries={"budget_ratio": 0.1, "reserve_calls": 5})
        async with mlb.AsyncClient(settings) as client:
            for _ in range(50):
                answer = await client.post(PATH, json=chat())
                assert answer.status_code == status
            assert "retries.reserve_calls" in str(answer.extensions["mlbalance"].explain())
        attempts = len(one.exchanges) + len(two.exchanges)
        assert 55 <= attempts <= 50 + 5 + 5


@pytest.mark.parametrize(
    "headers", ["retry-after: 0.1\r\n", "retry-after-ms: 100\r\n", "grpc-retry-pushback-ms: 100\r\n"]
)
async def test_a_fleet_that_names_a_short_time_is_waited_for(headers: str) -> None:
    with Scripted(first(headers)) as only:
        async with mlb.AsyncClient(config(only)) as client:
            answer = await client.post(PATH, json=chat())
            one, two = answer.extensions["mlbalance"].attempts

            assert (answer.status_code, one.status, two.status) == (200, 503, 200)
            assert two.started_s >= one.ended_s + 0.1
            assert settled(client)


@pytest.mark.parametrize(
    "headers",
    [
        "",
        "retry-after: 20\r\n",
        "retry-after: 1e99\r\n",
        "retry-after: Fri, 31 Dec 9999 23:59:59 GMT\r\n",
        "retry-after: nan\r\n",
        "retry-after: -1\r\n",
        "grpc-retry-pushback-ms: -1\r\n",
        "retry-after: 0.1\r\nx-should-retry: false\r\n",
    ],
)
async def test_else_its_answer_comes_at_once(headers: str) -> None:
    with Scripted(first(headers)) as only:
        async with mlb.AsyncClient(config(only)) as client:
            answer = await client.post(PATH, json=chat())

            assert (answer.status_code, len(only.exchanges)) == (503, 1)
            assert "retry-after" in answer.headers
            assert client.snapshot().replicas[0].rests_s <= 30.0


async def test_a_time_in_the_past_is_now() -> None:
    with Scripted(first("retry-after: Thu, 01 Jan 1970 00:00:00 GMT\r\n")) as only:
        async with mlb.AsyncClient(config(only)) as client:
            assert (await client.post(PATH, json=chat())).status_code == 200


async def test_no_wait_goes_beyond_the_deadline() -> None:
    with Scripted(first("retry-after: 0.9\r\n")) as only:
        async with mlb.AsyncClient(config(only)) as client:
            options = mlb.CallOptions(deadline_s=0.5)
            answer = await client.post(PATH, json=chat(), extensions={"mlbalance": options})

            assert (answer.status_code, len(only.exchanges)) == (503, 1)


@pytest.mark.parametrize(
    ("said", "status", "tried"), [("false", 503, 1), ("true", 409, 2), ("maybe", 503, 2)]
)
async def test_a_replica_says_whether_it_is_of_use(said: str, status: int, tried: int) -> None:
    with ExitStack() as stack:
        script = refusing(status, f"x-should-retry: {said}\r\n")
        servers = [stack.enter_context(Scripted(script)) for _ in range(2)]
        async with mlb.AsyncClient(config(*servers)) as client:
            answer = await client.post(PATH, json=chat())

            assert (answer.status_code, answer.headers["x-should-retry"]) == (status, "false")
            assert sum(len(server.exchanges) for server in servers) == tried


async def test_one_that_pushes_back_costs_callers_nothing() -> None:
    with ExitStack() as stack:
        busy = stack.enter_context(Scripted(refusing(429, "retry-after: 30\r\n")))
        servers = [stack.enter_context(Scripted(ok)) for _ in range(3)]
        async with mlb.AsyncClient(config(busy, *servers)) as client:
            for _ in range(20):
                assert (await client.post(PATH, json=chat())).status_code == 200
        assert len(busy.exchanges) == 1


async def test_one_without_the_model_is_asked_for_that_model_no_more() -> None:
    def without(exchange: Exchange) -> None:
        missing = {"error": {"message": "The model `sim` does not exist.", "code": 404}}
        exchange.answer(404, missing) if b'"sim"' in exchange.body else ok(exchange)

    with Scripted(without) as one, Scripted(ok) as two:
        resting = {"rest_base_s": 60.0, "rest_max_s": 60.0}
        async with mlb.AsyncClient(config(one, two, outlier_detection=resting)) as client:
            for _ in range(20):
                assert (await client.post(PATH, json=chat())).status_code == 200
            assert len(one.exchanges) == 1

            for _ in range(4):
                assert (await client.post(PATH, json=chat() | {"model": "another"})).status_code == 200
            assert len(one.exchanges) == 3
            assert settled(client)


async def test_strategies_of_tenacitys_rule() -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(Scripted(refusing(500))) for _ in range(4)]
        retries = {"stop": stop_after_attempt(3), "wait": wait_fixed(0.05)}
        async with mlb.AsyncClient(config(*servers, retries=retries)) as client:
            report = (await client.post(PATH, json=chat())).extensions["mlbalance"]

            assert len(report.attempts) == 3
            for before, after in zip(report.attempts, report.attempts[1:], strict=False):
                assert after.started_s >= before.ended_s + 0.05


async def test_closing_the_client_ends_a_call_that_waits_to_be_tried_again() -> None:
    import anyio

    with Scripted(first("retry-after: 0.9\r\n")) as only:
        client = mlb.AsyncClient(config(only, http={"drain_s": 0}))
        caught: list[BaseException] = []

        async def call() -> None:
            try:
                await client.post(PATH, json=chat())
            except mlb.ClientClosed as error:
                caught.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            with anyio.fail_after(10):
                while not client.balancer.engine._performer._waiting:
                    await anyio.sleep(0.005)
            await client.aclose()
        assert len(caught) == 1
        assert len(only.exchanges) == 1


async def test_under_an_sdk_it_hears_when_to_come_again() -> None:
    with Scripted(Exchange.reset) as one, Scripted(Exchange.reset) as two:
        async with mlb.AsyncClient(config(one, two)) as client:
            answer = await client.post(PATH, json=chat(), headers={"x-stainless-retry-count": "0"})

            assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
            assert int(answer.headers["retry-after"]) >= 1
