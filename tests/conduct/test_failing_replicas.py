"""What fails stays its own replica's: neither cheap, nor final while others could answer, nor half told."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import httpx
import pytest

import mlbalance_client as mlb
from mlbalance_client.events import AttemptEnded, AttemptStarted, Event, Picked, Settled

from ..scripted import Exchange, Scripted
from ..test_client import OVERLOADED, PATH, ROLE, WORD, chat, config, ok, settled

pytestmark = pytest.mark.anyio


def refusing(status: int, headers: str = "", body: bytes = b"{}") -> Any:
    return lambda exchange: exchange.answer(status, body, headers)


@pytest.mark.parametrize("status", [429, 500, 503, 529])
async def test_a_replica_that_fails_fast_does_not_draw_the_traffic(status: int) -> None:
    with Scripted(refusing(status)) as bad, Scripted(ok) as one, Scripted(ok) as two, Scripted(ok) as three:
        settings = config(one, two, three, bad, picking={}, retries={"max_attempts": 1})
        async with mlb.AsyncClient(settings) as client:
            statuses: Counter[int] = Counter()

            async def call(number: int) -> None:
                statuses[(await client.post(PATH, json=chat(f"{number} " * 500))).status_code] += 1

            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(call, number)
            for number in range(40, 200):
                await call(number)
            assert statuses[200] > 150
            assert len(bad.exchanges) < 50


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 529])
async def test_what_speaks_for_one_replica_is_tried_at_another(status: int) -> None:
    with Scripted(refusing(status)) as bad, Scripted(ok) as good:
        async with mlb.AsyncClient(config(bad, good)) as client:
            for _ in range(4):
                assert (await client.post(PATH, json=chat())).status_code == 200
            assert settled(client)


async def test_a_replica_that_names_a_time_rests_for_it() -> None:
    with Scripted(refusing(429, "retry-after: 20\r\n")) as bad, Scripted(ok) as good:
        async with mlb.AsyncClient(config(bad, good)) as client:
            for _ in range(6):
                assert (await client.post(PATH, json=chat())).status_code == 200
            rests = {replica.id: replica.rests_s for replica in client.snapshot().replicas}

        assert len(bad.exchanges) == 1
        assert 10.0 < rests[bad.address] <= 20.0
        assert rests[good.address] == 0.0


async def test_a_failing_answer_too_large_to_hold_is_given_up_for_another_replica() -> None:
    with Scripted(refusing(503, body=b"x" * 200_000)) as bad, Scripted(ok) as good:
        async with mlb.AsyncClient(config(bad, good)) as client:
            for _ in range(2):
                assert (await client.post(PATH, json=chat())).status_code == 200
            assert settled(client)
        assert bad.exchanges
    with Scripted(refusing(503, body=b"x" * 200_000)) as only:
        async with mlb.AsyncClient(config(only)) as client:
            answer = await client.post(PATH, json=chat())
            assert (answer.status_code, len(answer.content)) == (503, 200_000)


async def test_a_deadline_does_not_throw_away_an_answer_in_hand() -> None:
    def silent(exchange: Exchange) -> None:
        exchange.wait_gone()

    with Scripted(refusing(503)) as bad, Scripted(silent) as slow:
        async with mlb.AsyncClient(config(bad, slow)) as client:
            for _ in range(2):
                wishes = mlb.CallOptions(deadline_s=0.2)
                if bad.exchanges:
                    break
                try:
                    answer = await client.post(PATH, json=chat(), extensions={"mlbalance": wishes})
                except mlb.DeadlineExceeded:
                    continue
            assert answer.status_code == 503
            assert settled(client)


async def test_what_a_replica_says_of_retrying_is_replaced_not_repeated() -> None:
    with Scripted(refusing(503, "X-Should-Retry: true\r\n")) as only:
        async with mlb.AsyncClient(config(only)) as client:
            answer = await client.post(PATH, json=chat())

            assert answer.headers.get_list("x-should-retry") == ["false"]


@pytest.mark.parametrize(
    "said",
    ["garbage", "-1", "inf", "nan", "", "1e99", "99999999999999999999", "Fri, 31 Dec 9999 23:59:59 GMT"],
)
async def test_a_time_that_nobody_can_heed_is_replaced_by_ours(said: str) -> None:
    with Scripted(refusing(429, f"Retry-After: {said}\r\nRetry-After-Ms: nan\r\n")) as only:
        async with mlb.AsyncClient(config(only)) as client:
            answer = await client.post(PATH, json=chat())

            (named,) = answer.headers.get_list("retry-after")
            assert 1 <= int(named) <= 30
            assert "retry-after-ms" not in answer.headers


@pytest.mark.parametrize("said", ["0", "0.3", "5", "3600", "Thu, 01 Jan 1970 00:00:00 GMT"])
async def test_a_time_that_a_replica_names_is_passed_on(said: str) -> None:
    with Scripted(refusing(429, f"Retry-After: {said}\r\n")) as only:
        async with mlb.AsyncClient(config(only)) as client:
            answer = await client.post(PATH, json=chat())

            assert answer.headers.get_list("retry-after") == [said]


@pytest.mark.parametrize("kind", ["text/event-stream", "application/json"])
async def test_an_answer_cut_off_where_only_closing_could_end_it_is_not_taken_for_whole(kind: str) -> None:
    def cut(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: %s\r\nconnection: close\r\n\r\n" % kind.encode())
        exchange.send(WORD + b'data: {"choi' if "event" in kind else b'{"choices": [')
        exchange.connection.close()

    with Scripted(cut) as only:
        async with mlb.AsyncClient(config(only)) as client:
            with pytest.raises(httpx.ReadError) as caught:
                await client.post(PATH, json=chat(stream="event" in kind))
            assert isinstance(caught.value, mlb.StreamInterrupted | mlb.AttemptsExhausted)
            assert settled(client)


async def test_an_answer_that_closing_ends_is_whole_if_it_says_so() -> None:
    whole = ROLE + WORD + b"data: [DONE]\n\n"

    def closes(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.0 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + whole)
        exchange.connection.close()

    with Scripted(closes) as only:
        async with mlb.AsyncClient(config(only)) as client:
            assert (await client.post(PATH, json=chat(stream=True))).content == whole


async def test_a_body_beyond_the_limit_of_replay_is_sent_once() -> None:
    with Scripted(refusing(503)) as one, Scripted(refusing(503)) as two:
        settings = config(one, two, http={"max_replay_body_bytes": 10})
        async with mlb.AsyncClient(settings) as client:
            assert (await client.post(PATH, json=chat())).status_code == 503
        assert len(one.exchanges) + len(two.exchanges) == 1


async def test_every_pick_is_told_of_to_its_end() -> None:
    heard: list[Event] = []
    with Scripted(ok) as up, Scripted(lambda exchange: exchange.wait_gone()) as silent:
        with Scripted(ok) as gone:
            settings = config(gone, up, silent)
        async with mlb.AsyncClient(settings) as client:
            client.subscribe(heard.append)
            for _ in range(9):
                with anyio.move_on_after(0.1):
                    await client.post(PATH, json=chat())
    told = Counter(type(event) for event in heard)

    assert told[Picked] == told[AttemptEnded] == told[Settled] >= 9
    assert mlb.FailureKind.CANCELLED in {event.failure for event in heard if isinstance(event, AttemptEnded)}


async def test_closing_the_client_ends_a_call_that_waits_for_its_answer() -> None:
    heard = anyio.Event()
    caught: list[BaseException] = []
    with (
        Scripted(lambda exchange: exchange.wait_gone()) as one,
        Scripted(lambda exchange: exchange.wait_gone()) as two,
    ):
        client = mlb.AsyncClient(config(one, two, http={"drain_s": 0}))
        client.subscribe(lambda event: heard.set() if isinstance(event, AttemptStarted) else None)

        async def call() -> None:
            try:
                await client.post(PATH, json=chat())
            except mlb.BalancerError as error:
                caught.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await heard.wait()
            with anyio.fail_after(10):
                while not (one.exchanges or two.exchanges):
                    await anyio.lowlevel.checkpoint()
            await client.aclose()

        assert isinstance(caught[0], mlb.ClientClosed)
        assert isinstance(caught[0], httpx.ReadError)
        assert settled(client)
        assert len(one.exchanges) + len(two.exchanges) == 1


async def test_a_header_that_cannot_be_sent_is_not_shown() -> None:
    heard: list[Event] = []
    with Scripted(ok) as only:
        async with mlb.AsyncClient(config(only)) as client:
            client.subscribe(heard.append)
            with pytest.raises(httpx.LocalProtocolError) as caught:
                await client.post(PATH, json=chat(), headers={"authorization": "Bearer hidden\n"})
    assert "hidden" not in f"{caught.value} {heard}"


async def test_a_refused_connection_is_called_that() -> None:
    with Scripted(ok) as gone:
        settings = config(gone)
    async with mlb.AsyncClient(settings) as client:
        with pytest.raises(httpx.ConnectError, match=r"(?i)refused|Connect call failed"):
            await client.post(PATH, json=chat())


async def test_closing_the_client_tells_a_reader_so() -> None:
    def begins(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(WORD)
        exchange.wait_gone()

    with Scripted(begins) as only:
        client = mlb.AsyncClient(config(only))
        request = client.build_request("POST", PATH, json=chat(stream=True))
        answer = await client.send(request, stream=True)
        chunks = answer.aiter_raw()
        await anext(chunks)
        await client.aclose()

        with pytest.raises(mlb.StreamInterrupted, match="the client was closed"):
            await anext(chunks)
        await answer.aclose()
        assert settled(client)


async def test_an_overload_in_band_that_fills_the_fleet_is_returned() -> None:
    def overloaded(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(OVERLOADED)
        exchange.end_stream()

    with Scripted(overloaded) as one, Scripted(overloaded) as two:
        async with mlb.AsyncClient(config(one, two)) as client:
            answer = await client.post(PATH, json=chat(stream=True))

            assert (answer.content, answer.headers["x-should-retry"]) == (OVERLOADED, "false")
            assert len(answer.extensions["mlbalance"].attempts) == 2
