"""A second attempt beside a slow first one, in virtual time: who wins, who is left, and what stays behind."""

from __future__ import annotations

from contextlib import suppress

import anyio
import pytest

import mlbalance_client as mlb
from mlbalance_client.engine import Engine
from mlbalance_client.events import Event, HedgeEnded, Settled

from ..test_client import ROLE, WORD
from .virtual import (
    BREAK,
    HANG,
    HEAD,
    REFUSE,
    STREAM,
    WHOLE,
    Network,
    Step,
    after,
    answer,
    anyio_backend,
    chunk,
    engine_of,
    nothing_is_left,
    read,
    request,
    rest,
    whole,
)

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("quicker", [1, 2])
async def test_of_two_that_answer_in_the_same_breath_one_counts(quicker: int) -> None:
    """Whatever its task does next, the slower one is through before anybody can tell it to stop."""
    heard: list[Event] = []
    network = Network()
    first: list[Step] = [network.until("arrived 2"), network.tell("answered"), whole(prompt_tokens=11)]
    second: list[Step] = [network.until("answered"), whole(prompt_tokens=22)]
    network.scripts = [first, second] if quicker == 1 else [second, first]
    engine = engine_of(network)
    engine.events.subscribe(heard.append)
    got = await engine.send(request())
    await read(got)
    await nothing_is_left(engine, network)

    report = got.report
    assert (report.hedged, report.hedge_won, report.usage.prompt_tokens) == (True, quicker == 2, 11)
    assert [told.number for told in report.attempts] == [1, 2]
    assert report.replica == report.attempts[quicker - 1].replica
    assert len([event for event in heard if isinstance(event, Settled)]) == 2
    assert [event.attempt for event in heard if isinstance(event, HedgeEnded)] == [quicker]


async def test_what_all_attempts_met_is_told_in_their_order() -> None:
    """The second ends first; how the call failed is how its last hope did."""
    network = Network()
    network.scripts = [[after(1), BREAK], [REFUSE]]
    engine = engine_of(network, replicas=2)
    with pytest.raises(mlb.AttemptsExhausted) as caught:
        await engine.send(request())
    assert [told.number for told in caught.value.attempts] == [1, 2]
    assert caught.value.kind is mlb.FailureKind.READ
    await nothing_is_left(engine, network)


@pytest.mark.parametrize("how", ["deadline", "cancel", "failures", "client closed"])
async def test_the_end_of_a_hedged_call_is_told_whatever_its_end(how: str) -> None:
    heard: list[Event] = []
    failing: list[Step] = [HANG] if how != "failures" else [after(1), BREAK]
    engine = engine_of(network := Network(failing), replicas=2, http={"drain_s": 0.0})
    engine.events.subscribe(heard.append)
    options = mlb.CallOptions(deadline_s=2.0 if how == "deadline" else None)

    async def call() -> None:
        with suppress(mlb.DeadlineExceeded, mlb.AttemptsExhausted, mlb.ClientClosed):
            await engine.send(request(options=options))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await network.event("arrived 2").wait()
        if how == "cancel":
            tasks.cancel_scope.cancel()
        if how == "client closed":
            await engine.aclose()
    (ended,) = [event for event in heard if isinstance(event, HedgeEnded)]
    assert (ended.attempt, ended.replica, ended.won) == (0, "", False)
    assert network.arrived == 2
    await nothing_is_left(engine, network)


@pytest.mark.parametrize("failing", [[BREAK], [answer(503, b"{}")]])
async def test_a_second_that_hangs_when_the_first_has_failed_is_hedged_too(failing: list[Step]) -> None:
    network = Network([after(0.5), *failing], [HANG], [WHOLE])
    engine = engine_of(network)
    began = anyio.current_time()
    got = await engine.send(request())

    assert (got.status, network.arrived) == (200, 3)
    assert anyio.current_time() - began < 5
    await read(got)
    await nothing_is_left(engine, network)


@pytest.mark.parametrize("begun", [[], [HEAD + chunk(ROLE)]])
@pytest.mark.parametrize("quicker", [1, 2])
async def test_the_winner_does_not_wait_until_the_loser_is_closed(quicker: int, begun: list[Step]) -> None:
    network = Network(closes_after={3 - quicker: "never"})
    scripts: list[list[Step]] = [[*begun, HANG], [*begun, HANG]]
    scripts[quicker - 1] = [network.until("arrived 2"), *STREAM]
    network.scripts = scripts
    engine = engine_of(network)
    began = anyio.current_time()
    got = await engine.send(request(stream=True))
    await read(got)

    assert got.report.hedge_won is (quicker == 2)
    assert anyio.current_time() - began < 1
    await rest(0.1)
    assert network.closing == [3 - quicker]
    await nothing_is_left(engine, network)


async def test_nobody_waits_until_a_failed_attempt_is_closed() -> None:
    network = Network([answer(500, b"x" * 100_000)], [BREAK], [WHOLE], closes_after={1: "never", 2: "never"})
    engine = engine_of(network, retries={"max_attempts": 3})
    began = anyio.current_time()
    assert (await engine.send(request())).status == 200
    assert anyio.current_time() - began < 1
    await nothing_is_left(engine, network)


async def test_a_client_that_is_closed_gives_up_on_connections_that_do_not_close() -> None:
    network = Network([HANG], [WHOLE], closes_after={1: "never"})
    engine = engine_of(network)
    await read(await engine.send(request()))
    began = anyio.current_time()
    await engine.aclose()

    assert sorted(network.closing) == [1, 2]
    assert network.open == 0
    assert anyio.current_time() - began < 5


# -- when there is a second attempt ----------------------------------------------------------------------------------


async def run(engine: Engine, number: int) -> bool:
    """One call of 100 tokens, read to its end; whether it was hedged."""
    got = await engine.send(request(f"{number}", mlb.CallOptions(cost=100), stream=True))
    await read(got)
    return got.report.hedged


def taking(*seconds: float) -> list[list[Step]]:
    """Scripts of attempts that take so long to begin."""
    return [[after(each), *STREAM] for each in seconds]


async def test_what_is_usual_is_not_hedged() -> None:
    network = Network(*taking(0.5))
    engine = engine_of(network, hedging={"reserve_tokens": 10**9})
    hedged = [await run(engine, number) for number in range(100)]

    assert any(hedged[:20]), "nobody knew"
    assert not any(hedged[50:])
    await nothing_is_left(engine, network)


async def test_what_is_often_slow_is_usual_even_if_it_was_hedged_away() -> None:
    """Each 8th call takes 2 s at whom it meets first, so that a second one answers sooner; 0.95 of them are to wait."""
    network = Network()
    engine = engine_of(network, hedging={"reserve_tokens": 10**9})
    hedged = []
    for number in range(1200):
        network.scripts = [*[[]] * network.arrived, *taking(2.0 if number % 8 == 0 else 0.1, 0.1)]
        hedged.append(await run(engine, number))

    assert sum(hedged[:200]) > 10
    assert sum(hedged[-200:]) < 5
    await nothing_is_left(engine, network)


async def hedged_when_slow(engine: Engine, network: Network, number: int) -> bool:
    network.scripts = [*[[]] * network.arrived, [after(3), *STREAM], STREAM]
    return await run(engine, number)


async def test_hedges_are_paid_out_of_what_calls_have_sent() -> None:
    network = Network()
    engine = engine_of(network, hedging={"reserve_tokens": 100, "budget_ratio": 0.1})
    assert await hedged_when_slow(engine, network, 1)
    assert not await hedged_when_slow(engine, network, 2), "nothing is left"
    network.scripts = [STREAM]
    for number in (3, 4):
        await run(engine, number)
    assert not await hedged_when_slow(engine, network, 5), "nor is it yet"
    for number in range(6, 12):
        await run(engine, number)
    assert await hedged_when_slow(engine, network, 12), "calls have earned it"
    await nothing_is_left(engine, network)


async def test_what_could_not_be_hedged_is_looked_at_again() -> None:
    """Nobody else takes calls when it becomes slow, but a moment later somebody does."""
    network = Network([answer(429, b"{}", b"retry-after: 3\r\n")], [WHOLE], [HANG], [WHOLE])
    engine = engine_of(network, replicas=2)
    await read(await engine.send(request()))
    began = anyio.current_time()
    got = await engine.send(request())

    assert got.report.hedge_won
    assert 2 < anyio.current_time() - began < 30
    await read(got)
    await nothing_is_left(engine, network)


# -- who goes while another is about to come -------------------------------------------------------------------------


async def test_a_second_that_answers_when_its_caller_has_gone_leaves_nothing() -> None:
    network = Network()
    network.scripts = [[HANG], [network.insist("now"), HEAD + chunk(ROLE + WORD), HANG]]
    engine = engine_of(network)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.send, request(stream=True))
        await network.event("insists").wait()
        tasks.cancel_scope.cancel()
    assert len(engine._performer._seconds) == 1, "it is not through yet"
    network.event("now").set()
    await nothing_is_left(engine, network)


async def test_a_caller_who_goes_when_his_answer_is_there_leaves_nothing() -> None:
    network = Network()
    network.scripts = [[network.cling("let go")], [HEAD + chunk(ROLE + WORD), HANG]]
    engine = engine_of(network)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.send, request(stream=True))
        await network.event("cancelled").wait()
        tasks.cancel_scope.cancel()
        network.event("let go").set()
    await nothing_is_left(engine, network)


async def test_a_client_is_closed_only_when_its_second_attempts_have_ended() -> None:
    network = Network()
    network.scripts = [[HANG], [network.insist("now"), BREAK]]
    engine = engine_of(network, http={"drain_s": 0.0})
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises(mlb.ClientClosed):
                await engine.send(request(stream=True))

        async def later() -> None:
            await anyio.sleep(1)
            network.event("now").set()

        tasks.start_soon(call)
        await network.event("insists").wait()
        tasks.start_soon(later)
        await engine.aclose()
        assert not engine._performer._seconds
    await nothing_is_left(engine, network)
