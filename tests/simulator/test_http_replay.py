"""Replay over HTTP: open loop, measures that add up, errors counted."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import httpx
import pytest

from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.http_replay import PATH, Sender, chat_body, replay_http
from mlbalance_client.simulator.model.measures import CallRecord, measure
from mlbalance_client.simulator.model.traces import Trace, TraceCall, prompt_text

pytestmark = pytest.mark.anyio

CONTENT = b'data: {"choices":[{"index":0,"delta":{"content":"tok "}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens_details":{"cached_tokens":1234}}}\n\n'
DONE = b"data: [DONE]\n\n"
BUSY = b'data: {"error":{"message":"busy","code":503}}\n\n'


def trace(count: int, every_s: float = 0.0, tokens: int = 1100, output: int = 4) -> Trace:
    """Calls that all share their first two blocks."""
    calls = [TraceCall(i, i * every_s, tokens, output, (7, 8)[: tokens // 512]) for i in range(count)]
    return Trace("made", tuple(calls))


def scripted(*answers: Sequence[bytes]) -> Sender:
    """Answers call n with the n-th list of chunks; the last one for all that follow."""

    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            for chunk in answers[min(call.index, len(answers) - 1)]:
                await anyio.lowlevel.checkpoint()
                yield chunk

        yield chunks()

    return send


async def one(*chunks: bytes) -> CallRecord:
    records, _ = await replay_http(trace(1), scripted(chunks))
    return records[0]


def over_http(fleet: Fleet, client: httpx.AsyncClient) -> Sender:
    """In turn to the replicas of a fleet, with nothing of the product between."""

    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        url = fleet.urls[call.index % len(fleet.urls)] + PATH
        async with client.stream("POST", url, content=body) as response:
            response.raise_for_status()
            yield response.aiter_raw()

    return send


async def through(fleet: Fleet, what: Trace) -> list[CallRecord]:
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=20) as client:
        records, _ = await replay_http(what, over_http(fleet, client))
    return records


# -- open loop ------------------------------------------------------------------------------------------------------


async def test_a_call_is_sent_when_it_is_due_whatever_has_become_of_those_before() -> None:
    last_arrived = anyio.Event()

    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            await last_arrived.wait()
            yield CONTENT

        if call.index == 9:
            last_arrived.set()
        yield chunks()

    with anyio.fail_after(20):
        records, late_s = await replay_http(trace(10, every_s=0.01), send)

    assert [r.error for r in records] == [None] * 10
    assert late_s >= 0


async def test_a_hanging_replica_does_not_hold_up_the_others(fleet: Fleet) -> None:
    fleet.set_faults(0, hanging=True)
    sent: list[int] = []
    async with httpx.AsyncClient(trust_env=False, verify=False, timeout=20) as client:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:

                def progress(started: int, ended: int) -> None:
                    sent.append(ended)
                    if ended == 8:  # all but the four of the replica that hangs
                        tasks.cancel_scope.cancel()

                async def run() -> None:
                    await replay_http(
                        trace(12, every_s=0.005), over_http(fleet, client), on_progress=progress
                    )

                tasks.start_soon(run)

    assert sent == list(range(1, 9))


async def test_times_count_from_when_the_call_was_due() -> None:
    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            yield CONTENT
            await anyio.sleep(0.05)
            yield DONE

        await anyio.sleep(0.05)
        yield chunks()

    records, _ = await replay_http(trace(3, every_s=0.02), send)

    for record in records:
        assert record.ttft_s is not None
        assert record.total_s is not None
        assert 0.04 < record.ttft_s < record.ttft_s + 0.04 < record.total_s


# -- measures -------------------------------------------------------------------------------------------------------


async def test_what_is_measured_is_what_the_replicas_did(fleet: Fleet) -> None:
    before = fleet.states()
    records = await through(fleet, trace(30, every_s=0.005))
    after = fleet.states()

    def grown(name: str) -> int:
        return sum(int(new[name]) - int(old[name]) for new, old in zip(after, before, strict=True))

    assert [r.error for r in records] == [None] * 30
    assert [r.index for r in records] == list(range(30))
    assert grown("finished") == grown("seen") == 30
    assert grown("prompt_tokens") == sum(r.prompt_tokens for r in records) == 30 * 1100
    assert grown("cached_tokens") == sum(r.cached_tokens for r in records) > 0
    assert all(0 < (r.ttft_s or 0) <= (r.total_s or 0) for r in records)
    measures = measure(records, fleet.spec)
    assert (measures.calls, measures.errors) == (30, 0)
    assert measures.prefix_hits == pytest.approx(grown("cached_tokens") / 33_000)


async def test_progress_tells_of_every_end() -> None:
    told: list[tuple[int, int]] = []
    await replay_http(
        trace(6), scripted([CONTENT], []), on_progress=lambda sent, ended: told.append((sent, ended))
    )

    assert [ended for _, ended in told] == [1, 2, 3, 4, 5, 6]
    assert all(sent >= ended for sent, ended in told)
    assert told[-1] == (6, 6)


async def test_a_trace_without_calls_is_over_at_once() -> None:
    assert await replay_http(Trace("none", ()), scripted([])) == ([], 0.0)


async def test_cached_tokens_are_read_from_the_end() -> None:
    assert (await one(CONTENT, USAGE, DONE)).cached_tokens == 1234
    assert (await one(CONTENT, DONE)).cached_tokens == 0
    assert (await one(CONTENT + USAGE + DONE)).cached_tokens == 1234


@pytest.mark.parametrize("size", [1, 7, 64])
async def test_chunks_may_be_cut_anywhere(size: int) -> None:
    whole = CONTENT + USAGE + DONE
    record = await one(*(whole[i : i + size] for i in range(0, len(whole), size)))

    assert (record.error, record.cached_tokens) == (None, 1234)
    assert record.ttft_s is not None


async def test_content_cut_before_a_large_chunk_is_seen() -> None:
    cut = CONTENT.index(b"tok")
    record = await one(CONTENT[:cut], CONTENT[cut:] + b": " + b"-" * 2000 + b"\n\n" + USAGE + DONE)

    assert record.error is None


def test_a_call_becomes_a_streamed_chat_request_of_its_size() -> None:
    call = trace(1).calls[0]
    body = json.loads(chat_body(call, "m"))

    assert (body["model"], body["max_tokens"], body["stream"]) == ("m", 4, True)
    assert body["messages"][0]["content"] == prompt_text(call)
    assert len(prompt_text(call)) == 4400


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ({"failing": 1.0}, "500"),
        ({"reject_status": 429}, "429"),
        ({"reject_in_band": True}, "busy"),
        ({"loading": True}, "503"),
        ({"break_after": 1}, "RemoteProtocolError"),
    ],
)
async def test_a_replica_that_fails_is_counted_and_hurts_no_other(
    fleet: Fleet, faults: dict[str, object], said: str
) -> None:
    fleet.set_faults(1, **faults)
    records = await through(fleet, trace(9, output=50))

    for record in records:
        if record.index % 3 == 1:
            assert said in (record.error or "")
        else:
            assert record.error is None
    measures = measure(records, fleet.spec)
    assert (measures.calls, measures.errors) == (9, 3)


async def test_a_refused_connection_is_counted() -> None:
    with Fleet(1) as fleet:
        fleet.kill(0)
        records = await through(fleet, trace(3))

    assert all("ConnectError" in (r.error or "") for r in records)
    assert all(r.ttft_s is None for r in records)


@pytest.mark.parametrize("chunks", [[], [DONE], [BUSY, DONE], [b"\xff" * 3000]])
async def test_an_answer_without_content_is_an_error(chunks: list[bytes]) -> None:
    record = await one(*chunks)

    assert "no content" in (record.error or "")
    assert (record.ttft_s, record.total_s) == (None, None)


async def test_an_error_after_content_is_an_error() -> None:
    """An engine that dies ends its streams cleanly, with an error event (vLLM does)."""
    record = await one(CONTENT, BUSY, DONE)

    assert "busy" in (record.error or "")


async def test_cancelling_the_replay_cancels_its_calls() -> None:
    left: list[int] = []

    @asynccontextmanager
    async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        async def chunks() -> AsyncIterator[bytes]:
            if call.index == 2:
                scope.cancel()
            await anyio.sleep_forever()
            yield b""

        try:
            yield chunks()
        finally:
            left.append(call.index)

    with anyio.CancelScope() as scope:
        await replay_http(trace(3), send)

    assert scope.cancelled_caught
    assert sorted(left) == [0, 1, 2]
