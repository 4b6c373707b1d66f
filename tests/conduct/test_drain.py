"""Closing lets calls under way end, for a while; and a replica that drains gets no new calls while its streams end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest

import mlbalance_client as mlb
from mlbalance_client.events import AttemptStarted

from ..scripted import Exchange, Scripted
from ..test_client import PATH, ROLE, WORD, chat, config, ok, settled

pytestmark = pytest.mark.anyio

WHOLE = ROLE + WORD + WORD + b"data: [DONE]\n\n"
FOR_LONG = {"drain_s": 600}


class Talker:
    """Begins a stream and ends it when told."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(ROLE + WORD)
        self.begun.set()
        if self.go_on.wait(10):
            exchange.chunk(WORD + b"data: [DONE]\n\n")
            exchange.end_stream()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
async def test_calls_under_way_end_and_new_ones_are_refused_while_the_client_closes(stream: bool) -> None:
    go_on, begun, got = threading.Event(), threading.Event(), []

    def slow(exchange: Exchange) -> None:
        begun.set()
        if go_on.wait(10):
            exchange.answer(200, {"whole": True})

    talker = Talker()
    with Scripted(talker if stream else slow) as server:
        client = mlb.AsyncClient(config(server, http=FOR_LONG, hedging={"enabled": False}))
        transport = client.balancer

        async def call() -> None:
            got.append((await client.post(PATH, json=chat(stream=stream))).content)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await until(talker.begun.is_set if stream else begun.is_set)
            tasks.start_soon(client.aclose)
            with anyio.fail_after(10):
                while True:
                    request = httpx.Request("POST", f"http://fleet{PATH}", json=chat())
                    try:
                        with anyio.move_on_after(0.01):
                            await transport.handle_async_request(request)
                    except mlb.ClientClosed:
                        break
                assert not got
                (talker.go_on if stream else go_on).set()

        assert got == [WHOLE if stream else b'{"whole": true}']
        assert settled(client)


async def test_what_does_not_end_in_time_is_closed() -> None:
    talker = Talker()
    with Scripted(talker) as server:
        client = mlb.AsyncClient(config(server, http={"drain_s": 0.05}))

        async def read() -> None:
            with pytest.raises(mlb.StreamInterrupted, match="the client was closed") as caught:
                await client.post(PATH, json=chat(stream=True))
            assert caught.value.bytes_delivered == len(ROLE + WORD)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await until(lambda: talker.begun.is_set() and client.balancer.engine.open_streams)
            with anyio.fail_after(10):
                await client.aclose()
        assert settled(client)
        talker.go_on.set()


async def test_a_stream_that_nobody_reads_holds_nobody_up() -> None:
    talker = Talker()
    with Scripted(talker) as server:
        client = mlb.AsyncClient(config(server, http=FOR_LONG))
        answer = await client.send(client.build_request("POST", PATH, json=chat(stream=True)), stream=True)
        with anyio.fail_after(10):
            await client.aclose()
        assert settled(client)
        talker.go_on.set()
        await answer.aclose()


async def test_an_error_that_leaves_the_block_is_not_held_up() -> None:
    failed = []
    with Scripted(lambda exchange: exchange.wait_gone()) as server:

        async def call(client: mlb.AsyncClient) -> None:
            with pytest.raises(mlb.ClientClosed):
                await client.post(PATH, json=chat())
            failed.append(True)

        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(10), pytest.raises(RuntimeError, match="the caller's own"):
                async with mlb.AsyncClient(config(server, http=FOR_LONG)) as client:
                    tasks.start_soon(call, client)
                    await until(lambda: server.exchanges)
                    raise RuntimeError("the caller's own")
        assert failed
        assert settled(client)


async def test_cancelling_the_close_ends_the_wait() -> None:
    talker = Talker()
    with Scripted(talker) as server:
        client = mlb.AsyncClient(config(server, http=FOR_LONG))

        async def read() -> None:
            with pytest.raises(mlb.StreamInterrupted):
                await client.post(PATH, json=chat(stream=True))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await until(lambda: talker.begun.is_set() and client.balancer.engine.open_streams)
            with anyio.move_on_after(0.05) as waited:
                await client.aclose()
            assert waited.cancelled_caught
        assert settled(client)
        talker.go_on.set()


def test_a_synchronous_client_lets_the_streams_of_other_threads_end() -> None:
    talker, got = Talker(), []
    reading = threading.Event()

    def read() -> None:
        with client.stream("POST", PATH, json=chat(stream=True)) as answer:
            for piece in answer.iter_raw():
                got.append(piece)
                reading.set()

    with Scripted(talker) as server:
        client = mlb.Client(config(server, http=FOR_LONG))
        reader, closer = threading.Thread(target=read), threading.Thread(target=client.close)
        reader.start()
        assert reading.wait(10)
        closer.start()
        closer.join(0.3)
        assert closer.is_alive()
        talker.go_on.set()
        reader.join(10)
        closer.join(10)

        assert b"".join(got) == WHOLE
        assert not closer.is_alive()
        with pytest.raises(RuntimeError):
            client.get("/health")


async def test_a_replica_that_discovery_drains_gets_no_new_calls_while_its_stream_ends(
    tmp_path: Path,
) -> None:
    await drains_while_streaming(tmp_path, by_discovery=True)


async def test_a_replica_that_says_it_drains_gets_no_new_calls_while_its_stream_ends(tmp_path: Path) -> None:
    await drains_while_streaming(tmp_path, by_discovery=False)


async def drains_while_streaming(tmp_path: Path, *, by_discovery: bool) -> None:
    talker, told = Talker(), []
    draining = threading.Event()

    def leaving(exchange: Exchange) -> None:
        if b'"stream":true' in exchange.body or b'"stream": true' in exchange.body:
            talker(exchange)
        else:
            draining.set()
            exchange.answer(headers="x-mlbalance-load: v=1;epoch=e;seq=9;state=draining\r\n")

    with Scripted(leaving) as old, Scripted(ok) as new:
        path = tmp_path / "replicas.toml"

        def write(state: str) -> None:
            rows = [f'{{url = "http://{old.address}", state = "{state}"}}']
            rows += [f'"http://{new.address}"'] if told else []
            part = path.with_suffix(".part")
            part.write_text(f"replicas = [{', '.join(rows)}]")
            part.rename(path)

        write("healthy")
        settings = mlb.BalancerConfig(
            discovery={"kind": "file", "path": str(path), "poll_s": 0.1},
            load_reports={"kind": "orca", "expiry_s": 600},
            hedging={"enabled": False},
            picking={"residual_s": 0.0},
        )
        async with mlb.AsyncClient(settings) as client:
            async with client.stream("POST", PATH, json=chat(stream=True)) as answer:
                client.subscribe(
                    lambda event: told.append(event) if isinstance(event, AttemptStarted) else None
                )
                if by_discovery:
                    told.append(None)
                    write("draining")
                    await until(
                        lambda: {r.state for r in client.snapshot().replicas} == {"draining", "healthy"}
                    )
                else:
                    await client.post(PATH, json=chat())
                    assert draining.is_set()
                    write("healthy")
                    await until(lambda: len(client.snapshot().replicas) == 2)
                told.clear()
                for number in range(8):
                    await client.post(PATH, json=chat(f"{number} " * 50))
                assert {event.replica for event in told} == {new.address}
                talker.go_on.set()
                assert await answer.aread() == WHOLE
            assert settled(client)
