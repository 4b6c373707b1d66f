"""Real vLLM, as our client sees it: three lives of one engine, in this order, for each start takes its time.

Plain; with our reporter as its middleware; with that following its KV cache events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio
import httpx
import pytest

import mlbalance_client as mlb
from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.spec import EngineSpec

from .engine import BATCH, BLOCK_TOKENS, BLOCKS, MODEL, QUEUE, Vllm
from .using import (
    CHAT,
    ENDLESS,
    WITHIN_S,
    Agreement,
    Start,
    agreement,
    bare,
    body,
    client,
    events,
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


ENGINE = Vllm


# -- plain --------------------------------------------------------------------------------------------------------


def test_calls_fail_clearly_before_it_serves_and_go_there_once_it_does(started: Start) -> None:
    print(f"vLLM starting: states {started.states}, calls {started.outcomes}")

    went_well(started, {"connect"})  # its port is closed until it serves


def test_auto_finds_out_what_it_is(started: Start) -> None:
    report = started.report

    assert report["source"] == "vllm"
    assert report["models"] == {MODEL: "ready"}
    assert report["kv_capacity_tokens"] == BLOCKS * BLOCK_TOKENS
    assert float(report["epoch"]) > 0
    assert not {"doubts", "partial"} & report.keys()


async def test_its_load_is_told_as_it_is(engine: Vllm) -> None:
    async with client(engine.url) as using, bare(engine.url) as filling:
        await using.post(CHAT, json=body())
        async with streams(filling, BATCH + 5):
            report = await until_told(using, engine, BATCH, 5)
        await until_told(using, engine, 0, 0)
        left = using.snapshot().outstanding_tokens
    print(f"vLLM busy ({BATCH} running, 5 waiting): {report}")

    assert 0 < report["kv_used"] <= 1
    assert left == 0


@asynccontextmanager
async def full(filling: httpx.AsyncClient, engine: Vllm) -> AsyncIterator[None]:
    """Its batch and its queue are full; not at once, or calls are refused that would soon be in the batch."""
    async with streams(filling, BATCH):
        await until_said(engine.load, (BATCH, 0))
        async with streams(filling, QUEUE):
            await until_said(engine.load, (BATCH, QUEUE))
            yield


def _in_band(answer: httpx.Response) -> bool:
    """Whether it is a 200 whose first event is an error."""
    return answer.status_code == 200 and "error" in (events(answer.content) or [{}])[0]


async def _refused(using: mlb.AsyncClient, *, stream: bool) -> httpx.Response:
    """The answer to a call that comes while there is no room; there is a moment of it whenever a stream ends."""
    with anyio.fail_after(WITHIN_S):
        while (answer := await using.post(CHAT, json=body(stream=stream))).is_success and not _in_band(
            answer
        ):
            pass
    return answer


async def test_what_it_says_when_it_is_full_comes_back_if_there_is_nobody_else(engine: Vllm) -> None:
    async with bare(engine.url) as filling, client(engine.url, kind="none") as using:
        async with full(filling, engine):
            plain = await _refused(using, stream=False)
            streamed = await _refused(using, stream=True)
        left = using.snapshot().outstanding_requests
    print(f"vLLM full: plain {plain.status_code} {plain.text}; stream {streamed.status_code} {streamed.text}")

    assert plain.status_code == 503
    assert plain.headers["x-should-retry"] == "false"
    assert len(plain.extensions["mlbalance"].attempts) >= 1
    assert streamed.status_code == 503 or _in_band(streamed)
    assert left == 0


async def test_a_call_that_it_refuses_is_served_elsewhere(engine: Vllm) -> None:
    with Fleet(1, spec=EngineSpec().scaled(20), model=MODEL) as other:
        urls = (engine.url, *other.urls)
        async with (
            bare(engine.url) as filling,
            client(*urls, kind="none", policy="round_robin") as using,
        ):
            async with full(filling, engine):
                answers = [await using.post(CHAT, json=body(stream=True)) for _ in range(4)]
    reports = [answer.extensions["mlbalance"] for answer in answers]
    print(f"vLLM full, with another: {[[str(each) for each in report.attempts] for report in reports]}")

    assert [answer.status_code for answer in answers] == [200] * 4
    assert not [event for answer in answers for event in events(answer.content) if "error" in event]
    assert {report.url for report in reports} == set(other.urls)
    assert max(len(report.attempts) for report in reports) == 2


async def test_a_burst_that_it_takes_in_part_is_served_elsewhere_for_the_rest(engine: Vllm) -> None:
    """All at once: some are refused only after the head of the answer, as the first event of a 200."""
    await until_said(engine.load, (0, 0))
    refused = Counter[str]()
    found: list[httpx.Response] = []
    with Fleet(1, spec=EngineSpec().scaled(20), model=MODEL) as other:
        async with client(engine.url) as alone, client(engine.url, *other.urls, kind="none") as using:

            async def call(by: mlb.AsyncClient, into: list[httpx.Response], number: int) -> None:
                into.append(await by.post(CHAT, json=body(prose(number, 50), 200, stream=True)))

            for by, into in ((alone, by_itself := []), (using, found)):
                async with anyio.create_task_group() as tasks:
                    for number in range(40):
                        tasks.start_soon(call, by, into, number)
    for answer in by_itself:
        refused[f"{answer.status_code}{' with an error as its first event' if _in_band(answer) else ''}"] += 1
    print(f"vLLM, 40 streams at once: {dict(refused)}; with another: {Counter(a.status_code for a in found)}")

    assert refused["200"] >= BATCH
    assert {answer.status_code for answer in found} == {200}
    assert not [event for answer in found for event in events(answer.content) if "error" in event]


async def test_a_model_that_it_does_not_have_is_served_elsewhere(engine: Vllm) -> None:
    asked = body() | {"model": "another"}
    with Fleet(1, spec=EngineSpec().scaled(20), model="another") as other:
        async with client(engine.url, *other.urls, kind="none", policy="round_robin") as using:
            answers = [await using.post(CHAT, json=asked) for _ in range(4)]
        async with client(engine.url, kind="none") as alone:
            unknown = await alone.post(CHAT, json=asked)
    attempts = [answer.extensions["mlbalance"].attempts for answer in answers]
    print(
        f"vLLM without a model: {unknown.text}; with another: {[[str(a) for a in each] for each in attempts]}"
    )

    assert {answer.status_code for answer in answers} == {200}
    assert (404, 200) in {tuple(attempt.status for attempt in each) for each in attempts}
    assert unknown.status_code == 404


@pytest.mark.parametrize("way", ["left", "cancelled", "timed out", "not streamed"])
async def test_it_gives_up_a_call_that_is_given_up(way: str, engine: Vllm) -> None:
    await until_said(engine.load, (0, 0))
    before = engine.finished()
    async with client(engine.url) as using:
        with anyio.move_on_after(None) as scope:
            async with anyio.create_task_group() as tasks:
                if way == "not streamed":
                    tasks.start_soon(post_endless, using)
                    await until_said(engine.load, (1, 0))
                    scope.cancel()
                else:
                    await _stream(using, way, scope)
        await until_said(engine.load, (0, 0))
        calls, tokens = (after - at_first for after, at_first in zip(engine.finished(), before, strict=True))
        snapshot = using.snapshot()
    print(f"vLLM, a call that is {way}: given up after {tokens:g} of {ENDLESS['max_tokens']} tokens")

    assert (
        calls == 0
    )  # it did not end by itself; 0.32 counts no call as aborted, although it has a counter for that
    assert tokens < ENDLESS["max_tokens"]
    assert (snapshot.outstanding_requests, snapshot.outstanding_tokens) == (0, 0)


async def _stream(using: mlb.AsyncClient, way: str, scope: anyio.CancelScope) -> None:
    """Read a little of an endless answer, then end it in this way."""
    limit_s = 0.001 if way == "timed out" else 60
    try:
        async with using.stream("POST", CHAT, json=ENDLESS) as answer:
            chunks = answer.aiter_raw()
            await anext(chunks)
            if way == "left":
                return
            if way == "cancelled":
                scope.cancel()
            with anyio.fail_after(limit_s):
                async for _ in chunks:
                    pass
    except TimeoutError:
        assert way == "timed out"


async def test_what_the_client_remembers_is_what_it_has_cached(engine: Vllm) -> None:
    async with client(engine.url) as using:
        before = engine.metrics()
        seen = await agreement(using, using, [prose(100), prose(100), prose(101), prose(100)])
        after = engine.metrics()
    hits = after["vllm:prefix_cache_hits_total"] - before["vllm:prefix_cache_hits_total"]
    print(f"vLLM, the client's own record: {seen}, hits counted by the engine {hits:g}")

    assert seen.found == hits
    assert seen.found > 0
    _agrees(seen)


# -- with the reporter ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def restarted(installed: Vllm, started: Start) -> dict[str, Any]:
    """Killed and started again with our middleware, under the eyes of a client that has another replica too."""
    return anyio.run(_restart, installed)


async def _restart(vllm: Vllm) -> dict[str, Any]:
    served: list[str] = []
    with Fleet(1, spec=EngineSpec().scaled(20), model=MODEL) as other:
        async with client(vllm.url, *other.urls) as using:

            async def call(count: int) -> None:
                for number in range(count):
                    answer = await using.post(CHAT, json=body(prose(number, 20)))
                    served.append(f"{answer.status_code} {answer.extensions['mlbalance'].url}")

            await call(1)
            await until(lambda: told(using).get("state") == "ready", using.snapshot)
            before = told(using)
            vllm.kill()
            await call(20)
            vllm.start(reporter="llm-7")
            await until(lambda: told(using).get("source") == "stream", using.snapshot)
            with anyio.fail_after(WITHIN_S):
                while f"200 {vllm.url}" not in served[21:]:
                    await call(5)
            return {"served": served, "before": before, "after": told(using), "url": vllm.url}


def test_auto_sees_that_another_life_has_begun(restarted: dict[str, Any]) -> None:
    before, after = restarted["before"], restarted["after"]
    print(f"vLLM started again: before {before}, after {after}")

    assert before["source"] == "vllm"
    assert after["source"] in ("stream", "answer")  # whichever spoke last
    assert before["epoch"] != after["epoch"]
    assert after["replica"] == "llm-7"
    assert {served.split()[0] for served in restarted["served"]} == {"200"}  # nobody noticed
    assert not [served for served in restarted["served"][1:21] if restarted["url"] in served]


@pytest.fixture
def reporting(installed: Vllm, restarted: dict[str, Any]) -> Vllm:
    return installed


async def test_the_middleware_tells_the_engines_load_and_each_call_once(reporting: Vllm) -> None:
    async with client(reporting.url, kind="stream") as using, bare(reporting.url) as filling:
        for _ in range(3):
            await using.post(CHAT, json=body())
            await until(lambda: told(using).get("source") == "stream", using.snapshot)
        async with streams(filling, BATCH + 3):
            report = await until_told(using, reporting, BATCH, 3)
        await until_told(using, reporting, 0, 0)
    print(f"vLLM's middleware while it is busy ({BATCH} running, 3 waiting): {report}")

    assert report["state"] == "ready"
    assert report["kv_capacity_tokens"] == BLOCKS * BLOCK_TOKENS  # read from the engine, inside its process
    assert report["batch_limit"] == BATCH
    assert report["acked"] == 3  # all of this client's


async def test_what_is_too_much_for_it_waits_in_the_client(reporting: Vllm) -> None:
    async with client(reporting.url, kind="stream") as using:
        await using.post(CHAT, json=body())
        await until_told(using, reporting, 0, 0)
        async with streams(using, BATCH + 6):
            await until(lambda: using.snapshot().queued > 0, using.snapshot)
            loads = [await anyio.to_thread.run_sync(reporting.load) for _ in range(10)]
    print(f"vLLM, {BATCH + 6} streams of a client that pulls: running and waiting {loads}")

    assert max(running + waiting for running, waiting in loads) <= BATCH + 1


async def test_published_prefixes_are_what_the_engine_finds(reporting: Vllm) -> None:
    await _published(reporting, "without KV events")


async def test_published_prefixes_follow_kv_cache_events(reporting: Vllm) -> None:
    reporting.kill()
    reporting.start(reporter="llm-7", kv_events=True)
    async with client(reporting.url, kind="stream") as using:
        with anyio.fail_after(WITHIN_S):
            while told(using).get("state") != "ready":
                assert reporting.runs, reporting.said()
                try:
                    await using.post(CHAT, json=body())
                except mlb.AttemptsExhausted:
                    await anyio.sleep(0.5)

    await _published(reporting, "with KV events")


async def _published(engine: Vllm, how: str) -> None:
    """Prompts that do not all fit into the cache, asked for again and again, by one client; another one hears of it."""
    chance = Random(7)
    prompts = [prose(chance.choice(range(200, 224)), 1000) for _ in range(30)]
    async with client(engine.url, kind="stream") as observer, client(engine.url, kind="none") as caller:
        for number in range(8):  # it learns how many bytes a token has
            await observer.post(CHAT, json=body(prose(number, 1000)))
        await until(lambda: told(observer).get("source") == "stream", observer.snapshot)
        before = await anyio.to_thread.run_sync(engine.metrics)
        seen = await agreement(observer, caller, prompts)
        after = await anyio.to_thread.run_sync(engine.metrics)
        published = observer.snapshot().replicas[0].published_prefixes
    hits, queries = (
        after[f"vllm:prefix_cache_{name}_total"] - before[f"vllm:prefix_cache_{name}_total"]
        for name in ("hits", "queries")
    )
    print(
        f"vLLM's published prefixes, {how}: {seen}; the engine counted {hits:g} hits of {queries:g} tokens; "
        f"{published} chains published; by call {seen.pairs}"
    )

    assert hits == seen.found
    assert 0 < hits < queries
    _agrees(seen)


def _agrees(seen: Agreement) -> None:
    """Within a block of the engine and one of text for each call, and a tenth on the whole."""
    assert abs(seen.predicted - seen.found) <= seen.found / 10 + BLOCK_TOKENS
