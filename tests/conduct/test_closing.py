"""Closing while a call does what closing cannot see: it asks for reports, or it connects."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import mlbalance_client as mlb
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.dialects.watches import BlindWatch
from mlbalance_client.errors import ClientClosed, StreamInterrupted

from ..test_client import ROLE, WORD
from .virtual import HANG, HEAD, WHOLE, Network, anyio_backend, chunk, engine_of, request

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio


class _SlowToConnect(Network):
    async def connect_tcp(self, *args: Any, **options: Any) -> Any:
        await anyio.sleep(3)
        return await super().connect_tcp(*args, **options)


async def test_a_call_that_is_connecting_is_not_sent_afterwards() -> None:
    network = _SlowToConnect([HANG])
    engine = engine_of(network, replicas=1, http={"drain_s": 0.0})

    async def call() -> None:
        with pytest.raises(ClientClosed):
            await engine.send(request())

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.sleep(1)
            await engine.aclose()
    assert network.arrived == 0
    assert network.open == 0


async def test_a_call_that_asks_for_reports_enters_no_queue_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = engine_of(Network([WHOLE]), replicas=2, http={"drain_s": 0.0})

    async def freshen(demand: object) -> None:
        await anyio.sleep(0.25)

    monkeypatch.setattr(engine.reporting, "freshens", lambda demand: True)
    monkeypatch.setattr(engine.reporting, "freshen", freshen)

    async def call() -> None:
        with pytest.raises(ClientClosed):
            await engine.send(request(options=mlb.CallOptions(deadline_s=5.0)))

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.sleep(0.1)
            for replica in engine.fleet.replicas:
                full = LoadReport(source="vllm", at=anyio.current_time(), expected_wait_s=30.0)
                engine.fleet.hear(replica.id, full)
            await engine.aclose()


async def test_a_stream_that_its_caller_closes_under_a_reader_speaks_against_nobody() -> None:
    replicas = [
        {"url": f"http://r{number}", "labels": {"model": model}}
        for number, model in enumerate(("sim", "another", "another"))
    ]
    network = Network([HEAD + chunk(ROLE) + chunk(WORD), HANG])
    engine = engine_of(network, discovery={"kind": "static", "replicas": replicas})

    async def read(body: Any) -> None:
        with pytest.raises(StreamInterrupted):
            async for _ in body:
                pass

    for _ in range(10):
        answer = await engine.send(request(stream=True))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read, answer.body)
            await anyio.sleep(1)
            await answer.body.aclose()
    assert not engine.fleet.fitness.outliers.out
    await engine.aclose()


async def test_a_stream_whose_dialect_fails_midway_is_closed() -> None:
    class Failing(BlindWatch):
        def passed(self, chunk: bytes) -> None:
            raise ZeroDivisionError

    network = Network([HEAD + chunk(WORD), chunk(WORD), HANG])
    engine = engine_of(network, replicas=1)
    answer = await engine.send(request(stream=True))
    answer.body._flow._watch = Failing()

    with pytest.raises(ZeroDivisionError):
        async for _ in answer.body:
            pass

    assert not engine.open_streams
    assert not engine.fleet.ledger.requests
    with pytest.raises(StopAsyncIteration):
        await anext(answer.body)
    await engine.aclose()
