"""What happens to a fleet that Consul knows, with a real agent, under a running load that must not notice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import mlbalance_client as mlb
from mlbalance_client.cli.checking import find
from mlbalance_client.config import BalancerConfig
from mlbalance_client.events import ReplicasChanged

from ..scripted import Scripted
from .consul import Consul
from .counting import Counting
from .packages import Program
from .scene import under_load

pytestmark = pytest.mark.anyio

READ = 'service "llm" { policy = "read" } node_prefix "" { policy = "read" }'


@pytest.fixture
def consul(consul_program: Program) -> Iterator[Consul]:
    with Consul(consul_program) as running:
        yield running


@pytest.fixture
def guarded(consul_program: Program) -> Iterator[Consul]:
    with Consul(consul_program, acl=True) as running:
        yield running


def discovery(consul: Consul, **keys: Any) -> dict[str, Any]:
    return {"kind": "consul", "service": "llm", "address": consul.address, "retry_max_s": 0.5, **keys}


def register(consul: Consul, servers: list[Scripted], names: str, **more: Any) -> None:
    for number, name in enumerate(names):
        consul.register(name, servers[number % len(servers)].address, **more)


async def test_replicas_come_go_move_and_are_all_replaced(consul: Consul, servers: list[Scripted]) -> None:
    register(consul, servers, "ab")
    async with under_load(discovery(consul)) as scene:
        assert scene.usable() == {"a", "b"}
        consul.register("c", servers[2].address)
        await scene.until_usable("a", "b", "c")
        consul.deregister("c")
        await scene.until_usable("a", "b")
        consul.register("b", servers[3].address)
        await scene.until(lambda: scene.replicas["b"].url == f"http://{servers[3].address}")
        await scene.more_calls()
        assert scene.of(ReplicasChanged)[-1].changed == ("b",)
        assert servers[3].exchanges
        consul.register("a", servers[0].address, Weights={"Passing": 7, "Warning": 1})
        await scene.until(lambda: scene.replicas["a"].weight == 7.0)
        assert not scene.causes


async def test_all_are_replaced_at_once(consul: Consul, servers: list[Scripted]) -> None:
    a, b, x, y = (server.address for server in servers)
    consul.change(add={"a": a, "b": b})
    async with under_load(discovery(consul)) as scene:
        consul.change(add={"x": x, "y": y}, remove="ab")
        await scene.until_usable("x", "y")
        await scene.calls_under_way()
        quiet = len(servers[0].exchanges), len(servers[1].exchanges)
        await scene.more_calls(50)
        assert (len(servers[0].exchanges), len(servers[1].exchanges)) == quiet
        assert len(scene.of(ReplicasChanged)) == 2
        assert not scene.causes


async def test_checks_and_maintenance_become_states(consul: Consul, servers: list[Scripted]) -> None:
    register(consul, servers, "abc", check="passing", Weights={"Passing": 10, "Warning": 3})
    async with under_load(discovery(consul)) as scene:
        consul.set_check("a", "warning")
        await scene.until(lambda: scene.replicas["a"].state == "degraded")
        assert scene.replicas["a"].weight == 3.0
        consul.set_check("a", "critical")
        await scene.until(lambda: scene.replicas["a"].state == "out")
        consul.maintain("b", on=True)
        await scene.until(lambda: scene.replicas["b"].state == "draining")
        await scene.calls_under_way()
        quiet = len(servers[0].exchanges), len(servers[1].exchanges)
        await scene.more_calls(50)
        assert (len(servers[0].exchanges), len(servers[1].exchanges)) == quiet
        consul.put("agent/maintenance?enable=true&reason=kernel")
        await scene.until_troubled()
        assert "none of 3 replicas is usable" in scene.causes[0]
        assert "maintenance: kernel" in scene.causes[0]
        await scene.more_calls()
        consul.put("agent/maintenance?enable=false")
        consul.maintain("b", on=False)
        consul.set_check("a", "passing")
        await scene.until_usable("a", "b", "c")
        await scene.until_recovered()


async def test_an_agent_that_is_killed_and_comes_back_empty(
    consul_program: Program, servers: list[Scripted]
) -> None:
    """Its index starts anew, and its services register one by one."""
    with Consul(consul_program) as consul:
        for _ in range(5):
            register(consul, servers, "abcd")
        async with under_load(discovery(consul)) as scene:
            consul.kill()
            await scene.until_troubled()
            await scene.more_calls()
            await anyio.to_thread.run_sync(consul.start)
            await scene.until(lambda: any("no instance of service 'llm'" in cause for cause in scene.causes))
            assert scene.usable() == set("abcd")
            register(consul, servers, "a")
            await scene.until(lambda: any("only 1 of 4" in cause for cause in scene.causes))
            assert scene.usable() == set("abcd")
            register(consul, servers, "abcd")
            await scene.until_recovered()
            consul.register("e", servers[0].address)
            await scene.until_usable(*"abcde")
            assert len(scene.causes) == len(set(scene.causes)) < 8


@pytest.mark.alone
async def test_an_agent_that_cannot_be_reached_at_all(servers: list[Scripted]) -> None:
    nowhere = {"kind": "consul", "service": "llm", "address": "127.0.0.1:1", "start_timeout_s": 0.3}
    async with mlb.AsyncClient(mlb.BalancerConfig(discovery=nowhere)) as client:
        with pytest.raises(mlb.NoReplicas, match="127.0.0.1:1: .*(refused|failed)"):
            await client.get("/")
    async with under_load({**nowhere, "fallback": [f"http://{servers[0].address}"]}) as scene:
        await scene.more_calls()
        assert len(scene.causes) == 1


async def test_several_agents_take_turns(consul: Consul, servers: list[Scripted]) -> None:
    register(consul, servers, "ab")
    async with under_load(discovery(consul, address=f"127.0.0.1:1,{consul.address}")) as scene:
        assert scene.usable() == {"a", "b"}
        assert [cause.partition(": ")[0] for cause in scene.causes] == ["agent http://127.0.0.1:1"]


async def test_a_token_that_is_revoked_and_replaced(
    guarded: Consul, servers: list[Scripted], tmp_path: Path
) -> None:
    register(guarded, servers, "ab")
    file = tmp_path / "token"
    accessor, secret = guarded.token(READ)
    file.write_text(secret + "\n")
    async with under_load(discovery(guarded, token_file=str(file), wait_s=1)) as scene:
        guarded.revoke(accessor)
        await scene.until_troubled()
        assert "HTTP 403: ACL not found: the ACL token is unknown" in scene.causes[0]
        await scene.more_calls()
        assert scene.usable() == {"a", "b"}
        _, other = guarded.token(READ)
        replacement = tmp_path / "new"
        replacement.write_text(other)
        os.replace(replacement, file)
        await scene.until_recovered()
        guarded.register("c", servers[2].address)
        await scene.until_usable("a", "b", "c")
        assert len(scene.causes) == 1
        assert secret not in repr(scene.events)


async def test_a_token_that_loses_its_rights_does_not_empty_the_fleet(
    guarded: Consul, servers: list[Scripted]
) -> None:
    """Consul says 200 and an empty list; with no hold at all that would be believed."""
    register(guarded, servers, "ab")
    accessor, secret = guarded.token(READ)
    async with under_load(discovery(guarded, token=secret, wait_s=1, empty_hold_s=0)) as scene:
        guarded.set_rules(accessor, 'service "other" { policy = "read" }')
        await scene.until_troubled()
        assert "the ACL token may not read service 'llm'" in scene.causes[0]
        await scene.more_calls()
        assert scene.usable() == {"a", "b"}
        guarded.set_rules(accessor, READ)
        await scene.until_recovered()
        assert len(scene.causes) == 1


async def test_an_empty_list_is_told_apart_by_what_the_token_may_read(
    guarded: Consul, servers: list[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def troubles(**keys: Any) -> str:
        found = await find(BalancerConfig(discovery=discovery(guarded, start_timeout_s=0.5, **keys)))
        assert not found.replicas
        return "; ".join(found.troubles)

    _, other = guarded.token('service "other" { policy = "read" }')
    _, partly = guarded.token('service "llm" { policy = "read" }')
    _, reader = guarded.token(READ)

    assert await troubles(token=reader) == "no instance of service 'llm' is registered"
    register(guarded, servers, "a")
    assert "the ACL token may not read service 'llm'" in await troubles(token=other)
    assert "the ACL token may not read service 'llm'" in await troubles()
    assert "or on nodes only that the ACL token may not read" in await troubles(token=partly)
    assert "ACL not found" in await troubles(token="00000000-dead-beef-0000-000000000000")
    assert (
        await troubles(token=reader, tags=["gpu"])
        == "no instance of service 'llm' is registered with tags gpu"
    )
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", reader)
    assert [r.id for r in (await find(BalancerConfig(discovery=discovery(guarded)))).replicas] == ["a"]


@pytest.mark.slow
async def test_five_hundred_replicas_and_one_pending_query(consul: Consul, servers: list[Scripted]) -> None:
    many = {f"m{n}": servers[n % 4].address for n in range(500)}
    consul.change(add=many)
    with Counting(consul.address, b"GET /v1/health/service/llm") as between:
        async with under_load(discovery(consul, wait_s=600, address=between.address)) as scene:
            assert len(scene.usable()) == 500
            for changes in range(3):
                if changes:
                    consul.change(add={}, remove=[f"m{changes}"])
                    await scene.until_usable(*(many.keys() - {f"m{n}" for n in range(1, changes + 1)}))
                answered = between.counts[1]
                assert await anyio.to_thread.run_sync(between.wait_asked, answered + 1)
                before = between.counts
                await scene.more_calls(100)
                assert between.counts == before == (answered + 1, answered), "one is open, and none is added"


async def test_tags_metadata_node_addresses_and_who_has_no_name(
    consul: Consul, servers: list[Scripted]
) -> None:
    port = servers[0].address.partition(":")[2]
    consul.register(
        "named", servers[0].address, Tags=["gpu", "model=gemma"], Meta={"zone": "z1", "version": "1"}
    )
    consul.put("agent/service/register", {"Name": "llm", "Port": int(port), "Tags": ["gpu"]})
    consul.put("agent/service/register", {"ID": "cpu", "Name": "llm", "Port": int(port)})
    found = await find(
        BalancerConfig(
            discovery=discovery(consul, tags=["gpu"], dc="dc1", near="_agent", consistency="stale")
        )
    )
    assert not found.troubles
    replicas = {replica.id: replica for replica in found.replicas}
    assert set(replicas) == {"named", "node-1/llm"}
    assert replicas["named"].labels == {"gpu": "", "model": "gemma", "zone": "z1", "version": "1"}
    assert (replicas["named"].zone, replicas["named"].models) == ("z1", frozenset({"gemma"}))
    assert replicas["node-1/llm"].url == f"http://127.0.0.1:{port}"
    nowhere = await find(BalancerConfig(discovery=discovery(consul, dc="nowhere", start_timeout_s=0.2)))
    assert "No path to datacenter" in nowhere.troubles[0]
