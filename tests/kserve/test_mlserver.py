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


def config(servers: Sequence[MlServer], kind: str = "kserve", *, model: str = "double") -> mlb.BalancerConfig:
    replicas = [{"url": each.url, "labels": {"model": model}} for each in servers]
    return mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": replicas},
        load_reports={"kind": kind, "interval_s": 0.05},
        outlier_detection={"rest_base_s": 0.5, "rest_max_s": 0.5},
    )


class Watched:
    """What a client has been told, by number of the server."""

    def __init__(self, client: mlb.AsyncClient) -> None:
        self.client = client
        self.attempts: list[tuple[mlb.AttemptReport, ...]] = []

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
            report = answer.extensions["mlbalance"]
            self.attempts.append(report.attempts)
            found[report.url] += 1
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


async def _until_refused(server: MlServer, status: int) -> None:
    """Until a server itself says so of the model."""
    async with httpx.AsyncClient(trust_env=False) as other:
        with anyio.fail_after(30):
            while (await other.post(server.url + PATH, json=BODY)).status_code != status:
                await anyio.sleep(0.01)


@pytest.mark.parametrize(("loads", "says"), [(False, 404), (True, 400)], ids=["unloaded", "loading"])
async def test_what_a_server_without_the_model_refuses_is_served_by_one_that_has_it(
    loads: bool, says: int, mlservers: list[MlServer]
) -> None:
    """Nobody tells the client: it finds out by its calls, and tries again now and then."""
    without, other = mlservers
    async with mlb.AsyncClient(config(mlservers, "none")) as client, anyio.create_task_group() as tasks:
        seen = Watched(client)
        before = await seen.served_by()
        without.hold(loads)
        without.repository("unload")
        try:
            if loads:
                tasks.start_soon(anyio.to_thread.run_sync, without.repository, "load")
            await _until_refused(without, says)
            meanwhile = await seen.served_by(20)
            refused = [attempt for attempt in seen.attempts[-20:] if len(attempt) > 1]
        finally:
            without.hold(False)
            if not loads:
                without.repository("load")
        with anyio.fail_after(60):
            while without.url not in await seen.served_by(5):
                pass

    assert set(before) == {without.url, other.url}
    assert meanwhile == {other.url: 20}
    assert {tuple(attempt.status for attempt in attempts) for attempts in refused} == {(says, 200)}
    assert len(refused) < 20  # it rests, for this model's calls


async def test_a_model_that_nobody_has_is_refused_as_it_is(mlservers: list[MlServer]) -> None:
    async with mlb.AsyncClient(config(mlservers, "none", model="unknown")) as client:
        first = await client.post("/v2/models/unknown/infer", json=BODY)
        answer = await client.post("/v2/models/unknown/infer", json=BODY)

    assert [len(each.extensions["mlbalance"].attempts) for each in (first, answer)] == [2, 1]
    assert answer.status_code == 404
    assert answer.json() == {"error": "Model unknown not found"}
    assert "x-should-retry" not in answer.headers
