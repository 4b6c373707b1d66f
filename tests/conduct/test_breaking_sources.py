"""A registry that answers once and breaks, again and again: trouble once, and asked as seldom as one that is gone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest

import mlbalance_client as mlb
from mlbalance_client import discovery
from mlbalance_client.conduct.roster import Roster
from mlbalance_client.config import FileConfig, PickingConfig
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.discovery import make_replica
from mlbalance_client.events import DiscoveryRecovered, DiscoveryTrouble, Event, EventStream

from ..discovery.test_discovery_consul import HEALTHY, agent
from ..registries.kubernetes import endpoint, endpoint_slice
from ..scripted import Exchange, Scripted

ROUNDS = 12
LEAST_S = 0.5 * (0.1 + 0.2 + 0.4 + 0.8 + 1.6 + 3.2 + 6.4 + 5 * 10.0)  # of the waits after as many failures


def once(exchange: Exchange, number: int) -> None:
    if "index=" in exchange.path:
        exchange.reset()
    else:
        exchange.answer(200, HEALTHY, "X-Consul-Index: 5\r\n")


def lists_only(exchange: Exchange) -> None:
    """As a proxy that knows no watches: a list is the answer to everything."""
    items = [endpoint_slice("llm-1", [endpoint("a", "10.0.0.1")], 1)]
    exchange.answer(200, json.dumps({"metadata": {"resourceVersion": "5"}, "items": items}).encode() + b"\n")


def breaking_watches(exchange: Exchange) -> None:
    if "watch=true" in exchange.path:
        exchange.start_stream()
        exchange.reset()
    else:
        lists_only(exchange)


@pytest.fixture(params=["one agent", "two agents", "lists only", "breaking watches"])
def registry(request: pytest.FixtureRequest) -> Iterator[tuple[dict[str, Any], list[Scripted]]]:
    with ExitStack() as stack:
        if "agent" in request.param:
            servers = [stack.enter_context(agent(once)) for _ in range(1 + (request.param == "two agents"))]
            yield {"kind": "consul", "service": "llm", "address": [s.address for s in servers]}, servers
        else:
            script = lists_only if request.param == "lists only" else breaking_watches
            server = stack.enter_context(Scripted(script))
            where = {"namespace": "team", "service": "llm", "token": "x"}
            yield {"kind": "k8s", "address": f"http://{server.address}", **where}, [server]


@pytest.mark.anyio
async def test_it_is_told_once_and_asked_within_the_backoff(
    registry: tuple[dict[str, Any], list[Scripted]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, servers = registry
    slept: list[float] = []

    async def sleep(wait_s: float) -> None:
        slept.append(wait_s)
        await anyio.lowlevel.checkpoint()

    monkeypatch.setattr(anyio, "sleep", sleep)
    heard: list[Event] = []
    quiet = {"load_reports": {"kind": "none"}, "health_checks": {"enabled": False}}
    settings = mlb.BalancerConfig(discovery=config, **quiet)
    async with mlb.Balancer(settings) as balancer:
        balancer.subscribe(heard.append)
        with anyio.fail_after(30):
            while sum(slept) < LEAST_S:
                await anyio.lowlevel.checkpoint()
    requests = sum(len(server.exchanges) for server in servers)
    assert requests <= 2 * len(servers) * (ROUNDS + 1)
    troubles = [event.cause for event in heard if isinstance(event, DiscoveryTrouble)]
    assert len(troubles) == len(set(troubles))
    assert len([cause for cause in troubles if not cause.startswith("agent ")]) == 1
    assert not [event for event in heard if isinstance(event, DiscoveryRecovered)]


class Silent:
    """A source that says nothing by itself."""

    def initial(self) -> None:
        return None


def test_it_has_recovered_when_it_has_lasted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    events, heard = EventStream(), []
    events.subscribe(heard.append)
    monkeypatch.setattr(discovery, "create", lambda config, rng: Silent())
    fleet = Fleet(PickingConfig(), Random(1))
    roster = Roster(FileConfig(path="x"), fleet, events, Random(1), lambda: clock[0], lambda: None)
    answer = Membership((make_replica("http://10.0.0.1:1"),), "test")

    waits = []
    for _ in range(ROUNDS):
        roster._publish(answer)
        waits.append(roster._failed("it breaks"))
        clock[0] += waits[-1]
    roster._publish(answer)
    assert sum(waits) >= LEAST_S
    assert [type(event) for event in heard[1:]] == [DiscoveryTrouble]

    assert roster._next()[0] == 10.0
    clock[0] += 10.0
    roster._tick()
    assert [type(event) for event in heard[1:]] == [DiscoveryTrouble, DiscoveryRecovered]
    assert roster._failed("it breaks") <= 0.1
    assert [event.cause for event in heard if isinstance(event, DiscoveryTrouble)] == ["it breaks"] * 2
