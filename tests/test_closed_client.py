"""A client that is closed, or whose event loop has ended, says so by the errors that the docs promise."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

import httpx
import httpx2
import pytest
import trio

import mlbalance_client as mlb

from .scripted import Scripted
from .test_client import PATH, chat, config, ok

FACES = [("mlbalance_client", httpx), ("mlbalance_client.httpx2", httpx2)]
faces = pytest.mark.parametrize(("module", "library"), FACES)


def check(error: BaseException, library: Any) -> None:
    """It is ours, and what handlers of the library's and of plain RuntimeErrors catch."""
    assert isinstance(error, mlb.ClientClosed)
    assert isinstance(error, library.ReadError)
    assert isinstance(error, RuntimeError)
    assert "this client is closed" in str(error)


@pytest.mark.anyio
@faces
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("used", [True, False])
async def test_a_closed_client_refuses_calls(module: str, library: Any, left: bool, used: bool) -> None:
    with Scripted(ok) as server:
        client = import_module(module).AsyncClient(config(server))
        request = client.build_request("POST", PATH, json=chat())
        if left:
            await client.__aenter__()
        if used:
            await client.post(PATH, json=chat())
        await (client.__aexit__() if left else client.aclose())

        with pytest.raises(mlb.ClientClosed) as sent:
            await client.send(request)
        with pytest.raises(mlb.ClientClosed) as posted:
            await client.post(PATH, json=chat())
        with pytest.raises(mlb.ClientClosed) as streamed:
            async with client.stream("POST", PATH, json=chat()):
                raise AssertionError("unreachable")
        with pytest.raises(mlb.ClientClosed) as reopened:
            async with client:
                raise AssertionError("unreachable")
        for caught in (sent, posted, streamed, reopened):
            check(caught.value, library)
        assert sent.value.request is request
        assert len(server.exchanges) == used
        await client.aclose()


@faces
@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("used", [True, False])
def test_a_closed_synchronous_client_refuses_calls(module: str, library: Any, left: bool, used: bool) -> None:
    with Scripted(ok) as server:
        client = import_module(module).Client(config(server))
        request = client.build_request("POST", PATH, json=chat())
        if left:
            client.__enter__()
        if used:
            client.post(PATH, json=chat())
        if left:
            client.__exit__()
        else:
            client.close()

        with pytest.raises(mlb.ClientClosed) as sent:
            client.send(request)
        with pytest.raises(mlb.ClientClosed) as streamed, client.stream("POST", PATH, json=chat()):
            raise AssertionError("unreachable")
        with pytest.raises(mlb.ClientClosed) as reopened, client:
            raise AssertionError("unreachable")
        for caught in (sent, streamed, reopened):
            check(caught.value, library)
        assert sent.value.request is request
        assert len(server.exchanges) == used
        client.close()


@pytest.mark.anyio
@faces
async def test_a_closed_transport_refuses_calls(module: str, library: Any) -> None:
    request = library.Request("POST", f"http://fleet{PATH}", json=chat())
    transport = import_module(module).AsyncBalancerTransport("http://127.0.0.1:1")
    await transport.aclose()
    with pytest.raises(mlb.ClientClosed) as caught:
        await transport.handle_async_request(request)
    check(caught.value, library)

    transport = import_module(module).BalancerTransport("http://127.0.0.1:1")
    transport.close()
    with pytest.raises(mlb.ClientClosed) as caught:
        transport.handle_request(request)
    check(caught.value, library)


@pytest.mark.parametrize("run", [asyncio.run, trio.run])
def test_a_client_of_a_loop_that_has_ended_says_so(run: Any) -> None:
    with Scripted(ok) as server:
        client = mlb.AsyncClient(config(server))
        balancer = mlb.Balancer(config(server))

        async def post() -> None:
            await client.post(PATH, json=chat())

        async def acquire() -> None:
            async with balancer.acquire(mlb.Call(prompt="x")) as lease:
                lease.succeed()

        async def close() -> None:
            await client.aclose()
            await balancer.aclose()

        for use in (post, acquire):
            run_in(run, use)
            with pytest.raises(
                mlb.ClientClosed, match=r"each asyncio.run has a loop of its own.*make a client in"
            ):
                run_in(run, use)
        run_in(run, close)
        with pytest.raises(mlb.ClientClosed, match="this client is closed"):
            run_in(run, post)


def run_in(run: Any, use: Any) -> None:
    """In an event loop of its own."""
    run(use() if run is asyncio.run else use)
