"""Leases of callers with a protocol of their own are evidence too: slow to begin, silent, given up. In virtual time."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

import mlbalance_client as mlb
from mlbalance_client.conduct.engine import Engine

from .virtual import anyio_backend

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def _virtual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlbalance_client.balancer.Engine", partial(Engine, clock=anyio.current_time))


def balancer() -> mlb.Balancer:
    return mlb.Balancer(
        mlb.BalancerConfig.model_validate(
            {
                "discovery": {"kind": "static", "replicas": [f"http://r{i}" for i in range(3)]},
                "load_reports": {"kind": "none"},
                "health_checks": {"enabled": False},
                "picking": {"policy": "round_robin", "residual_s": 0.0},
                "seed": 1,
            }
        )
    )


async def use(picking: mlb.Balancer, number: int, *, says: bool, streaming: bool, hung: str) -> None:
    call = mlb.Call(prompt=f"{number} " * 50, max_output_tokens=20, streaming=streaming)
    async with picking.acquire(call) as lease:
        if hung in lease.replica.url:
            await anyio.sleep(100)
            return
        await anyio.sleep(0.1)
        if says:
            lease.first_content()
        await anyio.sleep(0.3)
        lease.succeed(output_tokens=20)


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_replica_that_begins_no_lease_is_ejected(streaming: bool) -> None:
    async with balancer() as picking, anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(partial(use, picking, number, says=streaming, streaming=streaming, hung="r1"))
            await anyio.sleep(0.2)
        ejected = {row.id: row.ejected for row in picking.snapshot().replicas if row.ejected}
        assert list(ejected) == ["r1:80"]
        assert "it began no answer" in ejected["r1:80"]
        tasks.cancel_scope.cancel()


async def test_where_nobody_says_when_a_stream_begins_a_long_one_is_no_silence() -> None:
    async with balancer() as picking, anyio.create_task_group() as tasks:
        for number in range(60):
            tasks.start_soon(partial(use, picking, number, says=False, streaming=True, hung="r1"))
            await anyio.sleep(0.2)
        assert not [row.id for row in picking.snapshot().replicas if row.ejected]
        tasks.cancel_scope.cancel()


async def test_a_lease_that_was_given_up_before_it_began_has_left_no_prompt() -> None:
    call = mlb.Call(prompt="once upon a time " * 1000)
    async with balancer() as picking:
        index = picking._engine.fleet.index
        for says in (False, True):
            async with picking.acquire(call) as lease:
                if says:
                    lease.first_content()
            assert len(index) > 0, (
                "nobody has said before that a call has begun" if not says else "it has begun"
            )
        held = len(index)
        async with picking.acquire(mlb.Call(prompt="far far away " * 1000)):
            pass
        assert len(index) == held


async def test_no_timer_outlives_its_lease() -> None:
    async with balancer() as picking:
        for how in ("none", "content", "verdict", "error"):
            with pytest.raises(LookupError) if how == "error" else anyio.CancelScope():
                async with picking.acquire(mlb.Call(prompt="x")) as lease:
                    await anyio.sleep(20)
                    assert len(picking._engine.alarms) == 1
                    if how == "content":
                        lease.first_content()
                        assert len(picking._engine.alarms) == 0
                    if how == "verdict":
                        lease.succeed()
                    if how == "error":
                        raise LookupError
            assert len(picking._engine.alarms) == 0
