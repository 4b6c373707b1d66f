"""Real llama.cpp's server, as our client sees it."""

from __future__ import annotations

import anyio
import pytest

from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.spec import EngineSpec

from .engine import MODEL, SLOTS, LlamaServer
from .using import (
    CHAT,
    ENDLESS,
    Start,
    agreement,
    bare,
    body,
    client,
    post_endless,
    prose,
    streams,
    told,
    until,
    until_said,
    until_told,
    went_well,
)

pytestmark = [pytest.mark.engines, pytest.mark.timeout(3600)]

ENGINE = LlamaServer


def test_calls_fail_clearly_while_it_loads_and_go_there_once_it_has(started: Start) -> None:
    print(f"llama.cpp starting: states {started.states}, calls {started.outcomes}")

    went_well(started, {"connect", 503})  # the latter while it loads


def test_auto_finds_out_what_it_is(started: Start) -> None:
    assert started.report["source"] == "llama_cpp"
    assert started.report["models"] == {MODEL: "ready"}
    assert started.report["batch_limit"] == SLOTS


async def test_its_load_is_told_as_it_is_for_it_refuses_nobody(engine: LlamaServer) -> None:
    async with client(engine.url) as using, bare(engine.url) as filling:
        await using.post(CHAT, json=body())
        async with streams(filling, SLOTS + 6):
            report = await until_told(using, engine, SLOTS, 6)
        await until_told(using, engine, 0, 0)
        left = using.snapshot().outstanding_tokens
    print(f"llama.cpp busy ({SLOTS} running, 6 waiting): {report}")

    assert report["batch_limit"] == SLOTS
    assert left == 0


async def test_what_is_too_much_for_it_waits_in_the_client(engine: LlamaServer) -> None:
    async with client(engine.url) as using:
        await using.post(CHAT, json=body())
        await until_told(using, engine, 0, 0)
        async with streams(using, SLOTS + 6):
            await until(lambda: using.snapshot().queued > 0, using.snapshot)
            loads = [await anyio.to_thread.run_sync(engine.load) for _ in range(10)]
    print(f"llama.cpp, {SLOTS + 6} streams of a client that knows its slots: running and waiting {loads}")

    # One beyond its slots; and once more what was on its way there when it was asked, of which it says nothing.
    assert max(running + waiting for running, waiting in loads) <= 2 * (SLOTS + 1) - 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_it_gives_up_a_call_that_is_given_up(streamed: bool, engine: LlamaServer) -> None:
    """It looks whether the caller of a plain answer is still there only after a second in which it has answered nobody
    anything: whoever asks for its pages more often, as we do elsewhere, puts that off until the answer is done.
    """
    await until_said(engine.load, (0, 0))
    before = engine.metrics()["llamacpp:tokens_predicted_total"]
    async with client(engine.url, kind="none") as using:
        async with anyio.create_task_group() as tasks:
            if streamed:
                async with using.stream("POST", CHAT, json=ENDLESS) as answer:
                    await anext(answer.aiter_raw())
                    running = engine.load()
            else:
                tasks.start_soon(post_endless, using)
                await until_said(engine.load, (1, 0))
                running = engine.load()
                tasks.cancel_scope.cancel()
        await until_said(engine.load, (0, 0), every_s=2.5)
        generated = engine.metrics()["llamacpp:tokens_predicted_total"] - before
        snapshot = using.snapshot()
    print(f"llama.cpp, a call {'that streams' if streamed else 'that does not stream'}: {generated:g} tokens")

    assert running == (1, 0)
    assert generated < ENDLESS["max_tokens"]
    assert (snapshot.outstanding_requests, snapshot.outstanding_tokens) == (0, 0)


async def test_what_the_client_remembers_is_what_it_has_cached(engine: LlamaServer) -> None:
    async with client(engine.url) as using:
        seen = await agreement(using, using, [prose(100), prose(100), prose(101), prose(100)])
    print(f"llama.cpp, the client's own record: {seen}; by call {seen.pairs}")

    assert seen.found > 0
    assert abs(seen.predicted - seen.found) <= seen.found / 10


async def test_auto_sees_that_it_has_taken_another_engines_place(engine: LlamaServer) -> None:
    engine.kill()
    async with client(engine.url) as using:
        with Fleet(1, spec=EngineSpec().scaled(20), model=MODEL, port=engine.port):
            await using.post(CHAT, json=body())
            await until(lambda: told(using).get("source") == "vllm", using.snapshot)
        engine.start()
        await until(lambda: told(using).get("source") == "llama_cpp", using.snapshot)
        await until(lambda: told(using).get("state") == "ready", using.snapshot)
        answer = await using.post(CHAT, json=body())

    assert answer.status_code == 200
