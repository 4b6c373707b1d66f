"""Calls do not wait for room where nobody but this client has anything to do, in virtual time."""

from __future__ import annotations

import anyio
import pytest

import mlbalance_client as mlb
from mlbalance_client import events
from mlbalance_client.conduct.engine import Engine
from mlbalance_client.core.load.report import LoadReport

from ..test_client import PATH
from .virtual import STREAM, Network, Step, after, anyio_backend, engine_of, read, request

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

SLOW: list[Step] = [after(1.0), *STREAM]


async def burst(engine: Engine, calls: int, options: mlb.CallOptions | None = None) -> float:
    """How long so many small calls take that are sent at once."""

    async def call(number: int) -> None:
        await read(await engine.send(request(f"{number}", options, stream=True)))

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for number in range(calls):
            tasks.start_soon(call, number)
    return anyio.current_time() - began


async def test_bursts_of_short_prompts_do_not_queue() -> None:
    engine = engine_of(Network(SLOW), replicas=1, hedging={"enabled": False})
    assert [await burst(engine, 40) for _ in range(20)] == pytest.approx([1.0] * 20, abs=0.5)
    await engine.aclose()


async def test_a_deadline_that_idle_replicas_can_meet_is_met() -> None:
    engine = engine_of(Network([after(0.1), *STREAM]), replicas=1, hedging={"enabled": False})
    for _ in range(20):
        assert await burst(engine, 10, mlb.CallOptions(deadline_s=2.0)) < 1.0
    await engine.aclose()


async def test_leases_whose_first_content_nobody_tells_do_not_shut_the_fleet() -> None:
    balancer = mlb.Balancer("static://r0,r1")
    engine = balancer._engine = engine_of(Network(STREAM), replicas=2)
    began = anyio.current_time()

    async def lease() -> None:
        async with balancer.acquire(mlb.Call(prompt="x")) as lease:
            await anyio.sleep(10.0)
            lease.succeed()

    async with balancer, anyio.create_task_group() as tasks:
        for _ in range(3):
            for _ in range(40):
                tasks.start_soon(lease)
            await anyio.sleep(10.5)
        assert engine.snapshot().queued == 0
    assert anyio.current_time() - began == pytest.approx(31.5, abs=1.0)


async def test_ordinary_calls_leave_room_where_urgent_ones_come() -> None:
    """Less work than is a full queue stands, but more than is let stand before urgent calls."""
    engine = engine_of(Network(STREAM), replicas=1, hedging={"enabled": False})
    told: list[events.Event] = []
    engine.events.subscribe(told.append)

    def stands(seconds: float) -> None:
        report = LoadReport(source="vllm", at=anyio.current_time(), expected_wait_s=seconds)
        engine.fleet.hear(engine.fleet.replicas[0].id, report)

    stands(2.0)
    assert await burst(engine, 1) < 0.5
    stands(2.0)
    assert await burst(engine, 1, mlb.CallOptions(priority=1)) < 0.5
    stands(2.0)
    assert await burst(engine, 1) > 0.5
    assert [type(event) for event in told if isinstance(event, (events.Queued, events.Pulled))] == [
        events.Queued,
        events.Pulled,
    ]
    await engine.aclose()


async def test_an_urgent_lease_keeps_room_too() -> None:
    balancer = mlb.Balancer("static://r0")
    engine = balancer._engine = engine_of(Network(STREAM), replicas=1)
    async with balancer:
        async with balancer.acquire(mlb.Call(prompt="x", options=mlb.CallOptions(priority=1))) as lease:
            lease.succeed()
        report = LoadReport(source="vllm", at=anyio.current_time(), expected_wait_s=2.0)
        engine.fleet.hear(engine.fleet.replicas[0].id, report)
        began = anyio.current_time()
        async with balancer.acquire(mlb.Call(prompt="x")) as lease:
            assert anyio.current_time() - began > 0.5
            lease.succeed()


@pytest.mark.parametrize(
    ("shown", "words", "then_words", "then_s", "deadline_s"),
    [
        pytest.param([0.5] * 15, 800, 24_000, 3.0, 5.0, id="short ones wait for the network above all"),
        pytest.param([0.8] * 15, 6_400, 80_000, 0.3, 2.0, id="others have left its prefix there"),
        pytest.param([0.2] * 10 + [8.0] * 20, 1_500, 1_500, 0.2, 2.0, id="what was slow has ended"),
    ],
)
async def test_whom_nobody_need_wait_for_is_asked_however_late_it_is_predicted_to_answer(
    shown: list[float], words: int, then_words: int, then_s: float, deadline_s: float
) -> None:
    """A call that is refused shows nothing, so that a wrong prediction would refuse its like for ever."""
    scripts: list[list[Step]] = [[after(seconds), *STREAM] for seconds in [*shown, then_s]]
    engine = engine_of(Network(*scripts), replicas=2, hedging={"enabled": False})
    for number in range(len(shown)):
        await read(await engine.send(request(f"{number} {'word ' * words}", stream=True)))
    await anyio.sleep(60.0)
    options = mlb.CallOptions(deadline_s=deadline_s)
    late = request("late " + "word " * then_words, options, stream=True)
    assert isinstance(late.body, bytes)
    predicted = engine.explain(PATH, late.body, options).candidates
    assert min(each.waiting_s + each.own_s for each in predicted) > 2.0 * deadline_s

    began = anyio.current_time()
    await read(await engine.send(late))
    assert anyio.current_time() - began == pytest.approx(then_s, abs=0.1)
    await engine.aclose()
