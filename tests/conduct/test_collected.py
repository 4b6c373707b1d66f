"""A client that nobody needs is collected, also if a subscriber of its events refers to it."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import anyio
import pytest

import mlbalance_client as mlb
from mlbalance_client.cli import checking
from mlbalance_client.conduct.roster import Roster
from mlbalance_client.config import BalancerConfig
from mlbalance_client.events import Event

from ..discovery.test_discovery_consul import agent
from ..scripted import Exchange, Scripted

pytestmark = pytest.mark.anyio


class App:
    """Hears of its client's events, as applications do."""

    def __init__(self, client: mlb.AsyncClient) -> None:
        self.client = client
        client.subscribe(self.hear)

    def hear(self, event: Event) -> None:
        pass


async def collected(it: weakref.ref[object]) -> bool:
    """Whether it goes; a loop that is told to end needs some turns of the event loop."""
    with anyio.move_on_after(10):
        while it() is not None:
            gc.collect()
            await anyio.sleep(0.01)
    return it() is None


@pytest.fixture(params=["static", "file", "consul", "consul, silent"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with ExitStack() as stack:
        replica = stack.enter_context(Scripted(Exchange.answer))
        host, _, port = replica.address.partition(":")

        def answer(exchange: Exchange, number: int) -> None:
            if number == 1 and request.param == "consul":
                instance = {"Service": {"ID": "a", "Address": host, "Port": int(port)}}
                exchange.answer(200, [instance], "X-Consul-Index: 5\r\n")
            else:
                exchange.wait_gone()

        if request.param == "static":
            yield f"static://{replica.address}"
        elif request.param == "file":
            path = tmp_path / "fleet.json"
            path.write_text(json.dumps([f"http://{replica.address}"]))
            yield f"file://{path}?poll_s=0.05"
        else:
            yield f"consul://{stack.enter_context(agent(answer)).address}/llm?start_timeout_s=0.5"


async def use(target: str, *, close: bool, heard: bool) -> tuple[weakref.ref[object], ...]:
    """Make a client, call, and let it go."""
    client = mlb.AsyncClient(target)
    if heard:
        App(client)
    try:
        assert (await client.get("/")).status_code == 200
    except mlb.NoReplicas:
        pass
    if close:
        await client.aclose()
    return weakref.ref(client), weakref.ref(client.balancer.engine)


@pytest.mark.parametrize("close", [True, False], ids=["closed", "dropped"])
@pytest.mark.parametrize("heard", [True, False], ids=["a subscriber knows it", "nobody listens"])
async def test_a_client_that_is_let_go_is_collected(target: str, close: bool, heard: bool) -> None:
    for it in await use(target, close=close, heard=heard):
        assert await collected(it)


async def test_the_roster_of_a_check_is_collected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[weakref.ref[object]] = []

    class Noted(Roster):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            made.append(weakref.ref(self))

    monkeypatch.setattr(checking, "Roster", Noted)
    path = tmp_path / "fleet.json"
    path.write_text('["http://10.0.0.1:1"]')
    found = await checking.find(BalancerConfig(discovery={"kind": "file", "path": str(path)}))
    assert len(found.replicas) == 1
    assert await collected(made[0])


@pytest.mark.parametrize(
    ("variable", "value"), [("HEALTH_CHECKS__ENABLED", "true"), ("LOAD_REPORTS__KIND", "vllm")]
)
async def test_so_is_one_that_asks_its_replicas_how_they_are(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"MLBALANCE_{variable}", value)
    with Scripted(Exchange.answer) as replica:
        for it in await use(f"static://{replica.address}", close=False, heard=True):
            assert await collected(it)
