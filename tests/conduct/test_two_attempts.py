"""A second attempt beside a slow first one, in virtual time: who wins, who is left, and what stays behind."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio
import pytest

import mlbalance_client as mlb
from mlbalance_client.conduct.engine import Answer, Engine
from mlbalance_client.events import Event, HedgeEnded, HedgeStarted, ReplicaEjected, Settled

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
    stand_still,
    whole,
)

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio


ANSWERS: dict[bool, list[Step]] = {True: [*STREAM], False: [WHOLE]}
both_kinds = pytest.mark.parametrize("streaming", [True, False])


def ends(got: Answer) -> list[str]:
    """How the attempts of a call ended, as they were started."""
    return [str(told.failure or told.status) for told in got.report.attempts]


@both_kinds
async def test_the_second_answers_and_the_first_is_left(streaming: bool) -> None:
    heard: list[Event] = []
    engine = engine_of(network := Network([HANG], ANSWERS[streaming]), replicas=2)
    engine.events.subscribe(heard.append)
    got = await engine.send(request(stream=streaming))
    report = got.report

    assert (got.status, report.hedged, report.hedge_won) == (200, True, True)
    assert ends(got) == ["cancelled", "200"]
    assert report.replica == report.attempts[1].replica != report.attempts[0].replica
    assert report.attempts[0].detail == "attempt 2 answered first"
    assert "answered first" in str(report.explain())
    await read(got)
    await rest()
    assert network.closing == [1]
    if not streaming:
        assert report.usage.prompt_tokens == 5
    await nothing_is_left(engine, network)
    assert [type(event) for event in heard if isinstance(event, HedgeStarted | HedgeEnded)] == [
        HedgeStarted,
        HedgeEnded,
    ]
    assert [event.verdict for event in heard if isinstance(event, Settled)].count("ok") == 1


async def test_preamble_is_no_answer() -> None:
    engine = engine_of(network := Network([HEAD + chunk(ROLE), HANG], STREAM))
    got = await engine.send(request(stream=True))

    assert got.report.hedge_won
    assert (await read(got)).count(b"assistant") == 1
    await nothing_is_left(engine, network)
    assert 1 in network.closing


@both_kinds
async def test_the_first_may_yet_answer_first(streaming: bool) -> None:
    network = Network()
    network.scripts = [[network.until("arrived 2"), *ANSWERS[streaming]], [HANG]]
    engine = engine_of(network)
    got = await engine.send(request(stream=streaming))

    assert (got.report.hedged, got.report.hedge_won) == (True, False)
    assert ends(got) == ["200", "cancelled"]
    assert got.report.replica == got.report.attempts[0].replica
    await read(got)
    await rest()
    assert network.closing == [2]
    await nothing_is_left(engine, network)


FAILURES: list[list[Step]] = [[BREAK], [answer(503, b"{}")]]


@pytest.mark.parametrize("failing", FAILURES)
@pytest.mark.parametrize("fails", [1, 2])
async def test_one_goes_on_when_the_other_fails(fails: int, failing: list[Step]) -> None:
    network = Network()
    answers: list[Step] = [network.until("arrived 2"), after(0.01), WHOLE]
    fail: list[Step] = [network.until("arrived 2"), *failing]
    network.scripts = [fail, answers] if fails == 1 else [answers, fail]
    engine = engine_of(network, replicas=2)
    got = await engine.send(request())

    assert (got.status, network.arrived) == (200, 2)
    await read(got)
    await nothing_is_left(engine, network)


async def test_when_both_fail_the_failing_answer_is_returned() -> None:
    network = Network()
    network.scripts = [[network.until("arrived 2"), after(0.01), answer(503, b"{}")], [answer(503, b"{}")]]
    engine = engine_of(network, replicas=2)
    got = await engine.send(request())

    headers = {name.lower(): value for name, value in got.headers}
    assert (got.status, headers[b"x-should-retry"]) == (503, b"false")
    assert int(headers[b"retry-after"]) >= 1
    assert network.arrived == 2
    await read(got)
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(
    ("sections", "wishes"),
    [
        ({}, mlb.CallOptions(hedge=False)),
        ({}, mlb.CallOptions(replayable=False)),
        ({"hedging": {"enabled": False}}, mlb.CallOptions()),
        ({"hedging": {"reserve_tokens": 0}}, mlb.CallOptions()),
        ({"hedging": {"max_prefill_tokens": 0}}, mlb.CallOptions()),
        ({"hedging": {"reserve_tokens": 0}}, mlb.CallOptions(hedge=True)),
        ({}, mlb.CallOptions(deadline_s=0.15)),
    ],
)
async def test_who_is_not_hedged(sections: dict[str, Any], wishes: mlb.CallOptions) -> None:
    engine = engine_of(network := Network([after(20), WHOLE]), **sections)
    try:
        got = await engine.send(request(options=wishes))
        assert not got.report.hedged
        await read(got)
    except mlb.DeadlineExceeded:
        assert wishes.deadline_s
    assert network.arrived == 1
    await nothing_is_left(engine, network)


@pytest.mark.parametrize("switched", [{"enabled": False}, {"max_prefill_tokens": 0}])
async def test_who_asks_for_it_is_hedged_where_others_are_not(switched: dict[str, Any]) -> None:
    engine = engine_of(network := Network([HANG], [WHOLE]), hedging=switched)
    got = await engine.send(request(options=mlb.CallOptions(hedge=True)))

    assert got.report.hedge_won
    await read(got)
    await nothing_is_left(engine, network)


@pytest.mark.parametrize("how", ["cancel", "deadline", "client closed"])
@pytest.mark.parametrize("first", [[HANG], [HEAD + chunk(ROLE), HANG], "has failed"])
async def test_who_goes_takes_both_along(how: str, first: list[Step] | str) -> None:
    network = Network([HANG])
    failed = first == "has failed"
    if failed:
        first = [network.until("arrived 2"), answer(503, b"{}")]
    network.scripts = [list(first), [HANG]]
    engine = engine_of(network, replicas=2, http={"drain_s": 0.0})
    raised: list[Exception] = []

    async def call() -> None:
        options = mlb.CallOptions(deadline_s=1.0 if how == "deadline" else None)
        try:
            await engine.send(request(options=options, stream=True))
        except (mlb.DeadlineExceeded, mlb.ClientClosed) as error:
            raised.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await network.event("arrived 2").wait()
        await anyio.sleep(0.01)
        if how == "cancel":
            tasks.cancel_scope.cancel()
        if how == "client closed":
            await engine.aclose()
    kinds = {"cancel": [], "deadline": [mlb.DeadlineExceeded], "client closed": [mlb.ClientClosed]}
    if failed:
        kinds["deadline"] = []  # its answer is there
    assert [type(error) for error in raised] == kinds[how]
    assert network.arrived == 2
    await nothing_is_left(engine, network)


@pytest.mark.parametrize("begun", [[], [HEAD + chunk(ROLE)]])
async def test_what_never_begins_goes_elsewhere_after_the_first_content_timeout(begun: list[Step]) -> None:
    settings = {"hedging": {"enabled": False}, "http": {"first_content_timeout_s": 10}}
    engine = engine_of(network := Network([*begun, HANG], STREAM), replicas=2, **settings)
    began = anyio.current_time()
    got = await engine.send(request(stream=True))
    first = got.report.attempts[0]

    assert first.failure is mlb.FailureKind.FIRST_CONTENT_TIMEOUT
    assert first.ended_s == pytest.approx(10, abs=0.1)
    assert anyio.current_time() - began < 11
    assert {row.id: row.rests_s > 0 for row in engine.snapshot().replicas}[first.replica]
    assert (await read(got)).count(b"assistant") == 1
    await rest()
    assert network.closing == [1]
    await nothing_is_left(engine, network)


async def test_what_begins_nowhere_is_a_timeout() -> None:
    settings = {"hedging": {"enabled": False}, "http": {"first_content_timeout_s": 10}}
    engine = engine_of(network := Network([HANG]), replicas=2, **settings)
    with pytest.raises(mlb.AttemptsExhausted) as caught:
        await engine.send(request(stream=True))
    assert caught.value.kind is mlb.FailureKind.FIRST_CONTENT_TIMEOUT
    assert len(caught.value.attempts) == 2
    await nothing_is_left(engine, network)


async def test_a_call_that_goes_on_for_too_long_is_ended() -> None:
    forever: list[Step] = [HEAD + chunk(ROLE + WORD), HANG]
    engine = engine_of(network := Network(forever), replicas=1, http={"call_timeout_s": 30})
    began = anyio.current_time()
    got = await engine.send(request(stream=True))
    with pytest.raises(mlb.StreamInterrupted, match="call_timeout_s") as caught:
        await read(got)
    assert caught.value.kind is mlb.FailureKind.READ_TIMEOUT
    assert 30 <= anyio.current_time() - began < 45
    assert engine.snapshot().replicas[0].rests_s == 0.0
    await nothing_is_left(engine, network)


# -- at the same time ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("quicker", [1, 2])
async def test_of_two_that_begin_in_the_same_breath_one_is_left(quicker: int) -> None:
    network = Network()
    goes_on: list[Step] = [HEAD + chunk(ROLE + WORD), HANG]
    first: list[Step] = [network.until("arrived 2"), network.tell("begun"), *goes_on]
    second: list[Step] = [network.until("begun"), *goes_on]
    network.scripts = [first, second] if quicker == 1 else [second, first]
    engine = engine_of(network)
    got = await engine.send(request(stream=True))

    assert got.report.hedge_won is (quicker == 2)
    await rest()
    assert network.closing == [3 - quicker]
    assert engine.open_streams == engine.snapshot().outstanding_requests == 1
    await got.body.aclose()
    await nothing_is_left(engine, network)


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


async def test_a_second_that_is_left_alone_is_slow_in_its_own_time() -> None:
    """It has to read a prompt of which the first had all; until it had the time for that nobody joins it."""
    text, tokens = "word " * 8000, mlb.CallOptions(cost=10_000)
    knobs: dict[str, Any] = {
        "picking": {"policy": "prefix_tokens", "residual_s": 0.0},
        "hedging": {"first_guess": 4.0, "reserve_tokens": 10**6},
    }

    async def starts(*scripts: list[Step], knows: bool) -> list[float]:
        """When the attempts of a call were sent, whose prompt the first one's replica has or has not read before."""
        network = Network(*[STREAM] * knows, *scripts)
        engine = engine_of(network, **knobs)
        for _ in range(1 + knows):
            got = await engine.send(request(text, tokens, stream=True))
            await read(got)
        await nothing_is_left(engine, network)
        return [told.started_s for told in got.report.attempts]

    _, own_time = await starts([HANG], STREAM, knows=False)
    _, second, third = await starts([after(0.5), answer(503, b"{}")], [HANG], STREAM, knows=True)
    assert second < 0.5
    assert third - second == pytest.approx(own_time, rel=0.02)


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


@both_kinds
async def test_what_a_client_that_stands_still_sees_late_is_nobodys_fault(streaming: bool) -> None:
    """Each time nobody has anything to do but an answer is on its way, the process does not run for a second."""
    heard: list[Event] = []
    network = Network([after(0.5), *ANSWERS[streaming]])
    engine = engine_of(network, hedging={"floor_s": 0.75, "first_guess": 1.0})
    engine.events.subscribe(heard.append)

    async def stands_still() -> None:
        while True:
            await anyio.sleep(0.25)
            stand_still(1.0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stands_still)
        async with anyio.create_task_group() as calls:
            for number in range(60):
                calls.start_soon(engine.send, request(f"{number}", stream=streaming))
                await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()

    blamed = [event for event in heard if isinstance(event, HedgeStarted | ReplicaEjected)]
    assert blamed == []
    await engine.aclose()


async def test_a_replica_that_was_silent_when_last_asked_keeps_no_call_though_nobody_else_calls() -> None:
    """What is too large to be hedged is moved, for which others' answers speak; once they have, no more need come."""
    network = Network([HANG], STREAM, STREAM, [HANG], STREAM)
    engine = engine_of(network, replicas=2, hedging={"reserve_tokens": 0})

    async def call() -> bytes:
        return await read(await engine.send(request(stream=True)))

    with anyio.fail_after(300):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await anyio.sleep(1)
            await call()
        assert network.arrived == 3
        assert WORD in await call()
    assert network.arrived == 5
    await engine.aclose()
