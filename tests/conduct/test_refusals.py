"""Answers that are errors: what becomes of a call whose first attempt got one, in virtual time."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import pytest
from tenacity import wait_fixed

import mlbalance_client as mlb
from mlbalance_client.conduct.engine import Request

from ..test_client import OVERLOADED, PATH, ROLE, WORD
from .virtual import (
    BREAK,
    DONE,
    HANG,
    HEAD,
    STREAM,
    WHOLE,
    Network,
    Step,
    after,
    anyio_backend,
    chunk,
    engine_of,
    nothing_is_left,
    read,
    request,
)

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

QUIET = mlb.CallOptions(hedge=False)
STALLED: list[Step] = [b"HTTP/1.1 503 X\r\ncontent-length: 10\r\n\r\nbu", HANG]


async def test_an_error_whose_text_does_not_come_is_moved_on_from() -> None:
    engine = engine_of(network := Network(STALLED, [WHOLE]))
    began = anyio.current_time()
    got = await engine.send(request(options=QUIET))

    assert (got.status, network.arrived) == (200, 2)
    assert anyio.current_time() - began < 5
    assert [told.status for told in got.report.attempts] == [503, 200]
    await read(got)
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(
    ("head", "status"), [(b"503 X", 503), (b"400 X", 400), (b"500 X\r\nx-should-retry: false", 500)]
)
async def test_where_nobody_is_left_it_comes_with_what_there_is_of_its_text(head: bytes, status: int) -> None:
    stalled: list[Step] = [b"HTTP/1.1 " + head + b"\r\ncontent-length: 10\r\n\r\nbu", HANG]
    engine = engine_of(network := Network(stalled), replicas=1)
    began = anyio.current_time()
    got = await engine.send(request(options=QUIET))

    assert got.status == status
    assert b"content-length" not in {name.lower() for name, _ in got.headers}
    assert await read(got) == b"bu"
    assert anyio.current_time() - began < 5
    await nothing_is_left(engine, network)


async def test_an_error_in_a_stream_that_goes_on_no_further_is_moved_on_from() -> None:
    engine = engine_of(network := Network([HEAD + chunk(ROLE + OVERLOADED), HANG], STREAM))
    began = anyio.current_time()
    got = await engine.send(request(options=QUIET, stream=True))

    assert (await read(got)).endswith(b"[DONE]\n\n")
    assert anyio.current_time() - began < 5
    await nothing_is_left(engine, network)


@pytest.mark.parametrize("said", [ROLE, b": ping\n\n"])
async def test_a_stream_that_ends_before_it_says_anything_is_tried_elsewhere(said: bytes) -> None:
    nothing = HEAD + (chunk(said)) + b"0\r\n\r\n"
    engine = engine_of(network := Network([nothing], STREAM), replicas=2)
    got = await engine.send(request(stream=True))

    first, second = got.report.attempts
    assert (first.failure, second.status) == (mlb.FailureKind.PROTOCOL, 200)
    assert first.detail == "the stream ended without content or the mark of an end"
    assert WORD in await read(got)
    await nothing_is_left(engine, network)

    engine = engine_of(network := Network([nothing]), replicas=2)
    with pytest.raises(mlb.AttemptsExhausted):
        await engine.send(request(stream=True))
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(
    "end", [DONE, b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n']
)
async def test_a_stream_that_says_so_is_an_empty_answer(end: bytes) -> None:
    engine = engine_of(network := Network([HEAD + chunk(ROLE + end) + b"0\r\n\r\n"]), replicas=2)
    got = await engine.send(request(stream=True))

    assert len(got.report.attempts) == 1
    assert await read(got) == ROLE + end
    await nothing_is_left(engine, network)


def plain(body: bytes | AsyncIterator[bytes]) -> Request:
    """A call of which nothing can be read."""
    options = mlb.CallOptions(replayable=isinstance(body, bytes) or None)
    length = (b"content-length", b"%d" % len(body)) if isinstance(body, bytes) else CHUNKED
    return Request("POST", PATH.encode(), [length], body, options)


CHUNKED = (b"transfer-encoding", b"chunked")


async def test_a_caller_whose_own_body_fails_says_nothing_of_how_long_calls_take() -> None:
    engine = engine_of(network := Network([after(0.1), WHOLE]))

    async def breaks() -> AsyncIterator[bytes]:
        yield b"{"
        await anyio.sleep(1)
        raise ZeroDivisionError

    for _ in range(30):
        await read(await engine.send(plain(b"x")))
    for _ in range(300):
        with pytest.raises(ZeroDivisionError):
            await engine.send(plain(breaks()))
    network.scripts = [*[[WHOLE]] * network.arrived, [HANG], [WHOLE]]
    began = anyio.current_time()
    got = await engine.send(plain(b"x"))
    assert anyio.current_time() - began < 0.5
    assert got.report.hedge_won
    await read(got)
    await nothing_is_left(engine, network)


async def test_what_breaks_at_the_only_replica_is_neither_waited_for_nor_paid() -> None:
    """And so what met a connection that had just been closed can still be sent again."""
    retries = {"budget_ratio": 0.0, "reserve_calls": 1, "wait": wait_fixed(5)}
    engine = engine_of(network := Network([HEAD, BREAK]), replicas=1, retries=retries)
    began = anyio.current_time()
    for _ in range(10):
        with pytest.raises(mlb.AttemptsExhausted):
            await engine.send(request(options=QUIET, stream=True))
    assert anyio.current_time() - began < 5

    network.scripts = [[WHOLE]]
    await read(await engine.send(request()))
    network.scripts = [*[[WHOLE]] * network.arrived, [BREAK], [WHOLE]]
    assert (await engine.send(request())).status == 200
    await nothing_is_left(engine, network)
