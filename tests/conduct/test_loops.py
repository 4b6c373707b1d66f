"""Background loops end when they are told, never raise; a synchronous client's thread serves any number of others."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar

import anyio
import pytest

from mlbalance_client.conduct.tending import EventLoop, Loop
from mlbalance_client.errors import ClientClosed
from mlbalance_client.loop_thread import LoopThread

from ..conftest import eventually


@pytest.mark.anyio
async def test_a_loop_runs_until_it_is_closed_by_any_task() -> None:
    started, ended = anyio.Event(), anyio.Event()

    async def body() -> None:
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            ended.set()

    loop = Loop("test", body)
    await started.wait()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop.aclose)
        tasks.start_soon(loop.aclose)
    assert ended.is_set()


@pytest.mark.anyio
async def test_a_loop_that_fails_is_logged_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        raise LookupError("gone")

    loop = Loop("test", body)
    with caplog.at_level(logging.ERROR):
        while not caplog.records:
            await anyio.lowlevel.checkpoint()
    await loop.aclose()
    assert "'test'" in caplog.text
    assert "gone" in caplog.text


class Owner:
    """Something that can be weakly referenced."""


@pytest.mark.anyio
async def test_a_loop_whose_owner_is_collected_ends() -> None:
    ended = anyio.Event()

    async def body() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    owner = Owner()
    loop = weakref.ref(Loop("test", body, owner))
    await anyio.wait_all_tasks_blocked()
    gc.collect()
    assert loop() is not None
    del owner
    with anyio.fail_after(10):
        await ended.wait()


request: ContextVar[object] = ContextVar("request")


@pytest.mark.anyio
async def test_a_loop_does_not_see_the_context_of_whoever_starts_it() -> None:
    found: list[object] = []

    async def body() -> None:
        found.append(request.get(None))
        found.append(await anyio.to_thread.run_sync(request.get, None))
        done.set()

    done = anyio.Event()
    request.set("the first caller's")
    loop = Loop("test", body)
    with anyio.fail_after(10):
        await done.wait()
    await loop.aclose()
    assert found == [None, None]


@pytest.mark.anyio
async def test_the_loop_can_be_called_from_other_threads() -> None:
    called = anyio.Event()
    loop = EventLoop()
    await anyio.to_thread.run_sync(loop.call_soon, called.set)
    with anyio.fail_after(10):
        await called.wait()


async def nothing() -> None:
    return None


async def answer(value: int) -> int:
    await anyio.lowlevel.checkpoint()
    return value


async def fail() -> None:
    raise LookupError("from the loop")


def test_many_threads_call_into_one_loop() -> None:
    thread = LoopThread("test", nothing)
    with ThreadPoolExecutor(16) as pool:
        assert sorted(pool.map(lambda n: thread.call(answer(n)), range(200))) == list(range(200))
    with pytest.raises(LookupError, match="from the loop"):
        thread.call(fail())
    thread.stop()
    thread.join()


def test_the_last_work_is_done_and_the_thread_ends() -> None:
    done: list[str] = []

    async def last() -> None:
        await anyio.lowlevel.checkpoint()
        done.append("last")

    thread = LoopThread("test of the end", last)
    thread.call(nothing())
    thread.stop()
    thread.stop()
    thread.join()
    assert done == ["last"]
    assert "test of the end" not in {each.name for each in threading.enumerate()}


def test_a_stopped_loop_refuses_and_leaves_no_coroutine() -> None:
    thread = LoopThread("test", nothing)
    thread.stop()
    work = answer(1)
    with pytest.raises(RuntimeError, match="closed"):
        thread.call(work)
    del work
    gc.collect()


def test_a_call_that_waits_when_the_loop_ends_is_not_left_waiting() -> None:
    thread = LoopThread("test", nothing)
    began = threading.Event()
    outcome: list[BaseException] = []

    async def forever() -> None:
        began.set()
        await anyio.sleep_forever()

    def wait() -> None:
        try:
            thread.call(forever())
        except BaseException as error:
            outcome.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert began.wait(10)
    thread.stop()
    assert eventually(lambda: not waiting.is_alive())
    assert [type(error) for error in outcome] == [ClientClosed]
    thread.join()


def test_threads_that_call_while_the_loop_ends_are_all_told() -> None:
    outcome: list[BaseException] = []
    calling = threading.Event()

    def call_until_told(thread: LoopThread) -> None:
        while True:
            try:
                thread.call(nothing())
            except BaseException as error:
                outcome.append(error)
                return
            calling.set()

    for _ in range(50):
        thread = LoopThread("test", nothing)
        calling.clear()
        callers = [threading.Thread(target=call_until_told, args=(thread,), daemon=True) for _ in range(4)]
        for caller in callers:
            caller.start()
        assert calling.wait(10)
        thread.stop()
        thread.join()
        for caller in callers:
            caller.join(10)
            assert not caller.is_alive()
    assert {type(error) for error in outcome} == {ClientClosed}
    assert len(outcome) == 200


@pytest.mark.parametrize("ended", [True, False])
def test_a_finalizer_that_stops_the_loop_amid_a_call_leaves_nothing_waiting(
    ended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    thread = LoopThread("test", nothing)
    thread.call(nothing())
    hand_over = asyncio.run_coroutine_threadsafe

    def stop_first(work: Coroutine[None, None, int], loop: asyncio.AbstractEventLoop) -> Future[int]:
        thread.stop()
        if ended:  # the loop has done its last work, all but closing
            assert eventually(lambda: not loop.is_running())
        return hand_over(work, loop)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", stop_first)
    outcome: list[object] = []

    def call() -> None:
        try:
            outcome.append(thread.call(answer(1)))
        except ClientClosed:
            outcome.append(1)

    caller = threading.Thread(target=call, daemon=True)
    caller.start()
    caller.join(10)
    assert outcome == [1]
    thread.join()
    gc.collect()


def test_a_call_from_the_loops_own_thread_is_refused_and_joining_there_is_nothing() -> None:
    thread = LoopThread("test", nothing)

    async def call_itself() -> None:
        with pytest.raises(RuntimeError, match="subscribers"):
            thread.call(nothing())
        thread.join()

    assert not thread.inside
    thread.call(call_itself())
    thread.stop()
    thread.join()
