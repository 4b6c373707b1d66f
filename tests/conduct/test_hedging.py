"""A second attempt beside a slow first one, over real connections: who wins, who is left, and what stays behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import httpx
import pytest

import mlbalance_client as mlb
from mlbalance_client.events import Event, HedgeEnded, HedgeStarted, Settled
from mlbalance_client.simulator.model.fleet import Fleet

from ..scripted import Exchange, Scripted
from ..test_client import PATH, ROLE, WORD, chat, config, settled

pytestmark = pytest.mark.anyio

EAGER = {"first_guess": 1.0, "floor_s": 0.05, "saturated_at": 100.0}
Act = Callable[[Exchange], object]


async def eventually(condition: Callable[[], bool]) -> bool:
    """Poll until it holds, while the loop goes on; False if it does not in 10 s."""
    with anyio.move_on_after(10):
        while not condition():
            await anyio.sleep(0.01)
    return condition()


class Turns:
    """Scripts by the order in which calls arrive, whichever replica they arrive at."""

    def __init__(self, *acts: Act) -> None:
        self._acts = acts
        self._lock = threading.Lock()
        self.arrived: list[Exchange] = []
        self.second = threading.Event()
        self.left: list[bool] = []

    def __call__(self, exchange: Exchange) -> None:
        with self._lock:
            self.arrived.append(exchange)
            number = len(self.arrived)
        if number == 2:
            self.second.set()
        self._acts[min(number, len(self._acts)) - 1](exchange)

    def hang(self, exchange: Exchange) -> None:
        self.left.append(exchange.wait_gone())

    def after_the_second(self, act: Act) -> Act:
        def run(exchange: Exchange) -> None:
            assert self.second.wait(10)
            act(exchange)

        return run


def whole(exchange: Exchange) -> None:
    exchange.answer(200, {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 1}})


def stream(exchange: Exchange) -> None:
    exchange.start_stream()
    exchange.chunk(ROLE + WORD + b"data: [DONE]\n\n")
    exchange.end_stream()


def role_then(turns: Turns) -> Act:
    def run(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(ROLE)
        turns.hang(exchange)

    return run


def busy(exchange: Exchange) -> None:
    exchange.answer(503, {"error": "busy"})


@contextmanager
def two(*acts: str | Act) -> Iterator[tuple[Turns, Scripted, Scripted]]:
    turns = Turns()
    turns._acts = tuple(turns.hang if act == "hang" else act for act in acts)  # type: ignore[misc]
    with Scripted(turns) as one, Scripted(turns) as other:
        yield turns, one, other


def eager(*servers: Scripted, **more: Any) -> mlb.BalancerConfig:
    hedging = EAGER | more.pop("hedging", {})
    return config(*servers, hedging=hedging, **more)


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_second_answers_and_the_first_is_left(streaming: bool) -> None:
    heard: list[Event] = []
    with two("hang", stream if streaming else whole) as (turns, one, other):
        async with mlb.AsyncClient(eager(one, other)) as client:
            client.subscribe(heard.append)
            answer = await client.post(PATH, json=chat(stream=streaming))
            report = answer.extensions["mlbalance"]

            assert answer.status_code == 200
            assert (report.hedged, report.hedge_won) == (True, True)
            assert [str(told.failure or told.status) for told in report.attempts] == ["cancelled", "200"]
            assert report.replica == report.attempts[1].replica != report.attempts[0].replica
            assert report.attempts[0].detail == "attempt 2 answered first"
            assert "answered first" in str(report.explain())
            if not streaming:
                assert report.usage.prompt_tokens == 5
            assert await eventually(lambda: turns.left == [True])
            assert await eventually(lambda: len(turns.arrived) == 2)
            assert await eventually(lambda: settled(client))
    assert [type(event) for event in heard if isinstance(event, HedgeStarted | HedgeEnded)] == [
        HedgeStarted,
        HedgeEnded,
    ]
    assert [event.verdict for event in heard if isinstance(event, Settled)].count("ok") == 1


async def test_preamble_is_no_answer() -> None:
    with two("hang", stream) as (turns, one, other):
        turns._acts = (role_then(turns), stream)
        async with mlb.AsyncClient(eager(one, other)) as client:
            answer = await client.post(PATH, json=chat(stream=True))

            assert answer.content.count(b"assistant") == 1
            assert answer.extensions["mlbalance"].hedge_won
            assert await eventually(lambda: turns.left == [True])
            assert await eventually(lambda: settled(client))


@pytest.mark.parametrize("streaming", [True, False])
async def test_the_first_may_yet_answer_first(streaming: bool) -> None:
    with two("hang") as (turns, one, other):
        turns._acts = (turns.after_the_second(stream if streaming else whole), turns.hang)
        async with mlb.AsyncClient(eager(one, other)) as client:
            answer = await client.post(PATH, json=chat(stream=streaming))
            report = answer.extensions["mlbalance"]

            assert (report.hedged, report.hedge_won) == (True, False)
            assert [str(told.failure or told.status) for told in report.attempts] == ["200", "cancelled"]
            assert report.replica == report.attempts[0].replica
            assert await eventually(lambda: turns.left == [True])
            assert await eventually(lambda: settled(client))


def one_after_the_other(how: Act) -> tuple[Act, Act]:
    """One that fails, and one that answers when it has."""
    failed = threading.Event()

    def fails(exchange: Exchange) -> None:
        how(exchange)
        failed.set()

    def answers(exchange: Exchange) -> None:
        assert failed.wait(10)
        whole(exchange)

    return fails, answers


@pytest.mark.parametrize("how", [Exchange.reset, busy])
async def test_the_second_goes_on_when_the_first_fails(how: Act) -> None:
    with two("hang") as (turns, one, other):
        fails, answers = one_after_the_other(how)
        turns._acts = (turns.after_the_second(fails), answers)
        async with mlb.AsyncClient(eager(one, other)) as client:
            answer = await client.post(PATH, json=chat())

            assert answer.json()["choices"] == []
            assert len(turns.arrived) == 2
            assert await eventually(lambda: settled(client))


@pytest.mark.parametrize("how", [Exchange.reset, busy])
async def test_the_first_goes_on_when_the_second_fails(how: Act) -> None:
    with two("hang") as (turns, one, other):
        fails, answers = one_after_the_other(how)
        turns._acts = (answers, fails)
        async with mlb.AsyncClient(eager(one, other)) as client:
            answer = await client.post(PATH, json=chat())

            assert answer.json()["choices"] == []
            assert len(turns.arrived) == 2
            assert await eventually(lambda: settled(client))


async def test_when_both_fail_the_failing_answer_is_returned() -> None:
    with two("hang") as (turns, one, other):
        turns._acts = (turns.after_the_second(busy), busy)
        async with mlb.AsyncClient(eager(one, other)) as client:
            answer = await client.post(PATH, json=chat())

            assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
            assert int(answer.headers["retry-after"]) >= 1
            assert len(turns.arrived) == 2
            assert await eventually(lambda: settled(client))


@pytest.mark.parametrize(
    ("sections", "wishes", "headers"),
    [
        ({}, mlb.CallOptions(hedge=False), {}),
        ({}, mlb.CallOptions(), {"x-mlbalance-hedge": "false"}),
        ({}, mlb.CallOptions(replayable=False), {}),
        ({"hedging": {"enabled": False}}, mlb.CallOptions(), {}),
        ({"hedging": {"reserve_tokens": 0}}, mlb.CallOptions(), {}),
        ({"hedging": {"max_prefill_tokens": 0}}, mlb.CallOptions(), {}),
        ({}, mlb.CallOptions(deadline_s=0.06), {}),
    ],
)
async def test_who_is_not_hedged(
    sections: dict[str, Any], wishes: mlb.CallOptions, headers: dict[str, str]
) -> None:
    def slow(exchange: Exchange) -> None:
        turns.second.wait(0.3)
        whole(exchange)

    with two(slow) as (turns, one, other):
        async with mlb.AsyncClient(eager(one, other, **sections)) as client:
            try:
                answer = await client.post(
                    PATH, json=chat(), extensions={"mlbalance": wishes}, headers=headers
                )
                assert not answer.extensions["mlbalance"].hedged
            except mlb.DeadlineExceeded:
                assert wishes.deadline_s
            assert len(turns.arrived) == 1


@pytest.mark.parametrize("switched", [{"enabled": False}, {"max_prefill_tokens": 0}])
async def test_who_asks_for_it_is_hedged_where_others_are_not(switched: dict[str, Any]) -> None:
    with two("hang", whole) as (_, one, other):
        async with mlb.AsyncClient(eager(one, other, hedging=switched)) as client:
            answer = await client.post(PATH, json=chat(), headers={"x-mlbalance-hedge": "true"})
            assert answer.extensions["mlbalance"].hedge_won


async def test_a_caller_who_goes_takes_both_along() -> None:
    with two("hang") as (turns, one, other):
        async with mlb.AsyncClient(eager(one, other)) as client:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: client.post(PATH, json=chat(stream=True)))
                with anyio.fail_after(10):
                    while len(turns.arrived) < 2:
                        await anyio.sleep(0.01)
                tasks.cancel_scope.cancel()
            assert await eventually(lambda: turns.left == [True, True])
            assert await eventually(lambda: settled(client))
            assert not client.balancer.engine._performer._seconds
            assert len(client.balancer.engine._performer.alarms) == 0


async def test_a_deadline_ends_both() -> None:
    with two("hang") as (turns, one, other):
        async with mlb.AsyncClient(eager(one, other)) as client:
            with pytest.raises(mlb.DeadlineExceeded):
                await client.post(
                    PATH, json=chat(), extensions={"mlbalance": mlb.CallOptions(deadline_s=0.5)}
                )
            assert len(turns.arrived) == 2
            assert await eventually(lambda: turns.left == [True, True])
            assert await eventually(lambda: settled(client))


@pytest.mark.parametrize("first_fails", [False, True])
async def test_closing_the_client_ends_both(first_fails: bool) -> None:
    with two("hang") as (turns, one, other):
        if first_fails:
            turns._acts = (turns.after_the_second(busy), turns.hang)
        client = mlb.AsyncClient(eager(one, other, http={"drain_s": 0}))
        caught: list[BaseException] = []

        async def call() -> None:
            try:
                await client.post(PATH, json=chat())
            except mlb.ClientClosed as error:
                caught.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            with anyio.fail_after(10):
                while len(turns.arrived) < 2:
                    await anyio.sleep(0.01)
            await client.aclose()
        assert len(caught) == 1
        assert await eventually(lambda: settled(client))


def test_the_sync_client_hedges_too() -> None:
    with two("hang", whole) as (_, one, other):
        with mlb.Client(eager(one, other)) as client:
            assert client.post(PATH, json=chat()).extensions["mlbalance"].hedge_won


# -- timeouts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preamble", [False, True])
async def test_what_never_begins_goes_elsewhere_after_the_first_content_timeout(preamble: bool) -> None:
    with two("hang", stream) as (turns, one, other):
        if preamble:
            turns._acts = (role_then(turns), stream)
        settings = config(one, other, hedging={"enabled": False}, http={"first_content_timeout_s": 0.1})
        async with mlb.AsyncClient(settings) as client:
            answer = await client.post(PATH, json=chat(stream=True))
            report = answer.extensions["mlbalance"]

            assert answer.content.count(b"assistant") == 1
            assert report.attempts[0].failure is mlb.FailureKind.FIRST_CONTENT_TIMEOUT
            assert {r.id: r.rests_s > 0 for r in client.snapshot().replicas}[report.attempts[0].replica]
            assert await eventually(lambda: turns.left == [True])
            assert await eventually(lambda: settled(client))


async def test_what_begins_nowhere_is_a_timeout() -> None:
    with two("hang") as (_, one, other):
        settings = config(one, other, hedging={"enabled": False}, http={"first_content_timeout_s": 0.1})
        async with mlb.AsyncClient(settings) as client:
            with pytest.raises(httpx.ReadTimeout) as caught:
                await client.post(PATH, json=chat(stream=True))
            assert isinstance(caught.value, mlb.AttemptsExhausted)
            assert len(caught.value.attempts) == 2
            assert await eventually(lambda: settled(client))


async def test_a_slow_call_is_not_given_up_where_nobody_else_is_though_its_replica_is_ejected() -> None:
    """An engine that has just started: it is out since it refused connections, and its first answer takes long."""

    def slow(exchange: Exchange) -> None:
        time.sleep(0.5)
        whole(exchange)

    with Scripted(slow) as only:
        port = int(only.address.rpartition(":")[2])
    async with mlb.AsyncClient(config(only, hedging=EAGER)) as client:
        for _ in range(3):
            with pytest.raises(mlb.AttemptsExhausted):
                await client.post(PATH, json=chat())
        assert client.snapshot().replicas[0].ejected is not None
        with Scripted(slow, port=port):
            answer = await client.post(PATH, json=chat())

    assert (answer.status_code, len(answer.extensions["mlbalance"].attempts)) == (200, 1)


async def test_a_call_that_goes_on_for_too_long_is_ended() -> None:
    gone: list[bool] = []

    def forever(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(ROLE + WORD)
        gone.append(exchange.wait_gone())

    with Scripted(forever) as only:
        async with mlb.AsyncClient(config(only, http={"call_timeout_s": 0.3})) as client:
            with pytest.raises(httpx.ReadTimeout, match="call_timeout_s") as caught:
                await client.post(PATH, json=chat(stream=True))
            assert isinstance(caught.value, mlb.StreamInterrupted)
            assert await eventually(lambda: gone == [True])
            assert await eventually(lambda: settled(client))
            assert client.snapshot().replicas[0].rests_s == 0.0


# -- simulated replicas ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_hanging_replica_delays_nobody_for_long(fleet: Fleet, streaming: bool) -> None:
    fleet.set_faults(0, hanging=True)
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls},
        hedging=EAGER,
        load_reports={"kind": "none"},
        picking={"policy": "round_robin"},  # homes go by ports, and may all be elsewhere
    )
    async with mlb.AsyncClient(settings) as client:
        hedged = 0
        for number in range(12):
            with anyio.fail_after(10):
                answer = await client.post(PATH, json=chat(f"{number} " * 300, stream=streaming))
            assert answer.status_code == 200
            hedged += answer.extensions["mlbalance"].hedge_won
        assert hedged >= 1
        assert await eventually(lambda: all(state["in_flight"] == 0 for state in fleet.states()))


async def test_what_stands_at_a_replica_that_is_ejected_leaves_it_though_no_hedge_can_be_paid(
    fleet: Fleet,
) -> None:
    fleet.set_faults(0, hanging=True)
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls},
        hedging=EAGER
        | {"reserve_tokens": 0, "floor_s": 0.8},  # the healthy ones answer sooner on any machine
        load_reports={"kind": "none"},
        picking={"policy": "round_robin", "residual_s": 0.0},
    )
    answers: list[httpx.Response] = []
    async with mlb.AsyncClient(settings) as client:

        async def call(number: int) -> None:
            answers.append(await client.post(PATH, json=chat(f"{number} " * 50, stream=True)))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(call, number)
        reports = [answer.extensions["mlbalance"] for answer in answers]
        assert {answer.status_code for answer in answers} == {200}
        assert not any(report.hedged for report in reports)
        assert any(report.attempts[0].failure == "first_content_timeout" for report in reports)
        assert await eventually(lambda: settled(client))


async def test_a_losers_abort_is_seen_at_its_replica(fleet: Fleet) -> None:
    aborted = fleet.state(0)["aborted"]
    fleet.set_faults(0, slow=2000)
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls},
        hedging=EAGER,
        load_reports={"kind": "none"},
        picking={"policy": "round_robin", "residual_s": 0.3},
    )
    async with mlb.AsyncClient(settings) as client:
        for number in range(3):
            answer = await client.post(PATH, json=chat(f"{number} " * 300, stream=True))
            assert answer.status_code == 200
        assert await eventually(lambda: fleet.state(0)["aborted"] > aborted)
        assert await eventually(lambda: client.snapshot().outstanding_tokens == 0)
