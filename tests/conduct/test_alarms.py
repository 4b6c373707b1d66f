"""Timers of calls: who is due rings, whoever else fails; what is cancelled leaves nothing."""

from __future__ import annotations

import anyio
import pytest

from mlbalance_client.conduct.alarms import Alarms

from .virtual import anyio_backend, stand_still

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio


async def test_they_ring_in_their_order_though_one_of_them_fails() -> None:
    alarms, rung = Alarms(anyio.current_time), list[int]()
    now = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        alarms.set(now + 5, lambda: rung.append(5))
        tasks.start_soon(alarms.tend)
        await anyio.sleep(1)
        alarms.set(now + 3, lambda: rung.append(3))
        alarms.set(now + 4, lambda: 1 // 0)
        gone = alarms.set(now + 4.5, lambda: rung.append(4))
        alarms.cancel(gone)
        alarms.cancel(gone)
        assert len(alarms) == 3
        await anyio.sleep(3.5)
        assert rung == [3]
        await anyio.sleep(1)
        assert rung == [3, 5]
        assert len(alarms) == 0
        tasks.cancel_scope.cancel()


async def test_one_may_set_another_when_it_rings() -> None:
    alarms, rung = Alarms(anyio.current_time), list[float]()

    def again() -> None:
        rung.append(anyio.current_time())
        alarms.set(anyio.current_time() + 10, again)

    began = anyio.current_time()
    alarms.set(began + 10, again)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(alarms.tend)
        await anyio.sleep(35)
        tasks.cancel_scope.cancel()
    assert rung == [began + 10, began + 20, began + 30]


def test_what_is_cancelled_takes_no_room() -> None:
    alarms = Alarms(lambda: 0.0)
    kept = [alarms.set(1000.0 + number, print) for number in range(10)]
    for number in range(10_000):
        alarms.cancel(alarms.set(3600.0 + number, print))

    assert len(alarms) == 10
    assert len(alarms._heap) < 200
    assert alarms._heap[0] == kept[0]


async def test_who_rings_late_says_so_for_a_while() -> None:
    alarms = Alarms(anyio.current_time)
    began = anyio.current_time()
    for second in range(1, 30):
        alarms.set(began + second, lambda: None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(alarms.tend)
        await anyio.sleep(2.5)
        assert alarms.late_s(anyio.current_time()) == 0.0
        stand_still(3.0)
        await anyio.sleep(0.01)
        now = anyio.current_time()
        assert alarms.late_s(now) >= 2.5
        assert alarms.seen_at(now - 0.5, 1.0, now) >= now + 0.25
        assert alarms.seen_at(now - 60, 1.0, now) == now - 59
        await anyio.sleep(6)
        assert alarms.late_s(anyio.current_time()) == 0.0
        tasks.cancel_scope.cancel()


async def test_who_has_no_timers_to_be_late_with_forgets_how_late_it_was() -> None:
    alarms = Alarms(anyio.current_time)
    alarms.set(anyio.current_time() + 1, lambda: None)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(alarms.tend)
        await anyio.sleep(0.5)
        stand_still(3.0)
        await anyio.sleep(0.01)
        assert alarms.late_s(anyio.current_time()) >= 2.0
        await anyio.sleep(60)
        assert alarms.late_s(anyio.current_time()) == 0.0
        tasks.cancel_scope.cancel()
