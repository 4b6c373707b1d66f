"""What happens between two attempts at the very moments when one is being closed, over connections in memory."""

from __future__ import annotations

from itertools import count

import anyio
import pytest

import mlbalance_client as mlb

from ..test_client import ROLE, WORD
from .virtual import (
    BREAK,
    HANG,
    HEAD,
    WHOLE,
    Network,
    Step,
    answer,
    anyio_backend,
    chunk,
    engine_of,
    request,
    rest,
)

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("last", [WHOLE, answer(500, b"{}")])
async def test_a_second_that_fails_while_the_first_is_being_closed_is_heard(last: bytes) -> None:
    """The first gets an answer too large to hold; the second breaks while the first's connection is being closed."""
    network = Network(closes_after={1: "closing 2"})
    network.scripts = [
        [network.until("arrived 2"), answer(500, b"x" * 100_000)],
        [network.until("closing 1"), BREAK],
        [last],
    ]
    engine = engine_of(network)
    try:
        with anyio.fail_after(10):
            got = await engine.send(request())
        assert (got.status, network.arrived) == (int(last[9:12]), 3)
        assert [told.status or told.failure for told in got.report.attempts] == [500, "read", got.status]
        await got.body.aclose()
    finally:
        await engine.aclose()
    assert engine.snapshot().outstanding_requests == 0


@pytest.mark.parametrize("failing", [[answer(503, b"{}")], [BREAK], [answer(500, b"x" * 100_000)]])
async def test_a_second_that_fails_is_replaced_while_the_first_hangs(failing: list[Step]) -> None:
    engine = engine_of(network := Network([HANG], failing, [WHOLE]))
    try:
        with anyio.fail_after(10):
            got = await engine.send(request())
        assert (got.status, network.arrived) == (200, 3)
        assert got.report.hedge_won
        second, third = sorted(got.report.attempts, key=lambda told: told.number)[1:]
        assert third.started_s == pytest.approx(second.ended_s, abs=0.01), "at once"
        await got.body.aclose()
    finally:
        await engine.aclose()


async def test_an_answer_that_the_client_closed_before_it_was_delivered_is_not_taken_for_whole() -> None:
    network = Network()
    network.scripts = [[network.cling("the client is closed")], [HEAD + chunk(ROLE + WORD), HANG], [HANG]]
    engine = engine_of(network, http={"drain_s": 0.0})
    raised: list[Exception] = []

    async def call() -> None:
        try:
            got = await engine.send(request(stream=True))
            async for _ in got.body:
                pass
        except mlb.BalancerError as error:
            raised.append(error)

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await network.event("cancelled").wait()
            tasks.start_soon(engine.aclose)
            await rest()
            assert engine.open_streams == 0
            network.event("the client is closed").set()
    assert len(raised) == 1
    assert isinstance(raised[0], mlb.ClientClosed | mlb.StreamInterrupted)


@pytest.mark.parametrize("hint", [b"retry-after-ms: 0.001\r\n", b"retry-after: 0\r\n"])
async def test_a_wait_that_is_over_when_it_begins_is_no_error(hint: bytes) -> None:
    moments = count()

    def clock() -> float:
        """Some time passes between any two looks at it."""
        return anyio.current_time() + 0.001 * next(moments)

    network = Network(*[[answer(503, b"{}", hint)]] * 3, [WHOLE])
    engine = engine_of(network, replicas=1, clock=clock)
    try:
        got = await engine.send(request())
        assert (got.status, network.arrived) == (503, 2)
        await got.body.aclose()
    finally:
        await engine.aclose()
