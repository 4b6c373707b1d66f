"""The open inference protocol as a real server speaks it: readiness of server and model, inference, its end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import anyio
import httpx
import pytest

import mlbalance_client as mlb

from .conftest import MlServer

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]

PATH = "/v2/models/double/infer"
BODY = {"inputs": [{"name": "x", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]}]}


def config(servers: Sequence[MlServer], kind: str = "kserve") -> mlb.BalancerConfig:
    replicas = [{"url": each.url, "labels": {"model": "double"}} for each in servers]
    return mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": replicas}, load_reports={"kind": kind, "interval_s": 0.05}
    )


class Watched:
    """What a client has been told, by number of the server."""

    def __init__(self, client: mlb.AsyncClient) -> None:
        self.client = client

    def report(self, number: int) -> dict[str, Any] | None:
        return self.client.snapshot().replicas[number].report

    def says(self, number: int, state: str, model: str) -> bool:
        told = self.report(number)
        return told is not None and (told.get("state"), told.get("models", {}).get("double")) == (
            state,
            model,
        )

    async def awake(self) -> None:
        """Reports are asked for from the first call on."""
        await self.client.post(PATH, json=BODY)

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.move_on_after(30):
            while not holds():
                await anyio.sleep(0.01)
            return
        raise AssertionError(f"still {self.client.snapshot()}")

    async def served_by(self, calls: int = 20) -> Counter[str]:
        """Which servers serve so many calls, all of which must succeed."""
        found: Counter[str] = Counter()
        for number in range(calls):
            inputs = [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [number]}]
            answer = await self.client.post(PATH, json={"inputs": inputs})
            answer.raise_for_status()
            assert answer.json()["outputs"][0]["data"] == [2 * number]
            found[answer.extensions["mlbalance"].url] += 1
        return found


@pytest.mark.parametrize("kind", ["auto", "kserve"])
async def test_a_server_and_its_model_are_seen_to_be_ready(kind: str, mlservers: list[MlServer]) -> None:
    async with mlb.AsyncClient(config(mlservers, kind)) as client:
        seen = Watched(client)
        await seen.awake()
        await seen.until(lambda: all(seen.says(number, "ready", "ready") for number in (0, 1)))
        told = seen.report(0)

    assert told is not None
    assert told["source"] == "kserve"
    assert (
        not {"running", "waiting", "prefill_tokens"} & told.keys()
    )  # the protocol tells no load: it is unknown


async def test_tensors_are_inferred_and_accounted_for(mlservers: list[MlServer]) -> None:
    async with mlb.AsyncClient(config(mlservers)) as client:
        answer = await client.post(PATH, json=BODY)
        report = answer.extensions["mlbalance"]
        left = client.snapshot().outstanding_tokens

    assert answer.json()["outputs"][0]["data"] == [2.0, 4.0, 6.0]
    assert len(report.attempts) == 1
    assert report.prompt_tokens == 3  # twelve bytes of FP32
    assert left == 0


async def test_another_client_may_send_what_was_picked(mlservers: list[MlServer]) -> None:
    call = mlb.Call(prompt=b"\0" * 12, max_output_tokens=0, model="double", streaming=False)
    async with mlb.Balancer(config(mlservers)) as balancer, httpx.AsyncClient(trust_env=False) as other:
        async with balancer.acquire(call) as lease:
            answer = await other.post(lease.replica.url + PATH, json=BODY)
            lease.succeed()
        left = balancer.snapshot().outstanding_requests

    assert answer.json()["outputs"][0]["data"] == [2.0, 4.0, 6.0]
    assert left == 0


async def test_what_the_server_refuses_comes_back_as_it_is(mlservers: list[MlServer]) -> None:
    async with mlb.AsyncClient(config(mlservers)) as client:
        answer = await client.post(PATH, json={"inputs": "nothing of the kind"})

    assert answer.status_code == 422
    assert len(answer.extensions["mlbalance"].attempts) == 1


async def test_a_server_without_the_model_gets_no_calls_until_it_has_it_again(
    mlservers: list[MlServer],
) -> None:
    without, other = mlservers
    async with mlb.AsyncClient(config(mlservers)) as client:
        seen = Watched(client)
        await seen.awake()
        await seen.until(lambda: all(seen.says(number, "ready", "ready") for number in (0, 1)))
        without.repository("unload")
        try:
            await seen.until(lambda: seen.says(0, "ready", "starting"))
            meanwhile = await seen.served_by()
        finally:
            without.repository("load")
        await seen.until(lambda: seen.says(0, "ready", "ready"))
        after = await seen.served_by(60)

    assert meanwhile == {other.url: 20}
    assert set(after) == {without.url, other.url}


async def test_a_server_that_is_loading_gets_no_calls_until_it_is_ready(mlservers: list[MlServer]) -> None:
    loading, other = mlservers
    async with mlb.AsyncClient(config(mlservers, "auto")) as client, anyio.create_task_group() as tasks:
        seen = Watched(client)
        await seen.awake()
        loading.hold(True)
        try:
            loading.repository("unload")
            tasks.start_soon(anyio.to_thread.run_sync, loading.repository, "load")
            await seen.until(lambda: seen.says(0, "starting", "starting"))
            meanwhile = await seen.served_by()
        finally:
            loading.hold(False)
        await seen.until(lambda: seen.says(0, "ready", "ready"))
        after = await seen.served_by(60)

    assert meanwhile == {other.url: 20}
    assert set(after) == {loading.url, other.url}
