"""What happens to a fleet that DNS names, on a real name server, under a running load that must not notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import dns.rcode
import pytest

from mlbalance_client.cli.checking import find
from mlbalance_client.config import BalancerConfig
from mlbalance_client.core.members.guard import Guard
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.events import ReplicasChanged

from ..scripted import Exchange, Scripted
from .dnsmasq import Dnsmasq, host, srv
from .nameserver import NameServer, failing
from .packages import Program
from .scene import under_load

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HOSTS = [host(f"r{n}.llm.test", "127.0.0.1") for n in range(4)]


@pytest.fixture
def names(dnsmasq_program: Program) -> Iterator[Dnsmasq]:
    with Dnsmasq(dnsmasq_program) as server:
        yield server


def discovery(server: Dnsmasq | NameServer, **keys: Any) -> dict[str, Any]:
    return {
        "kind": "srv",
        "name": "_llm._tcp.llm.test",
        "nameservers": ["127.0.0.1"],
        "nameserver_port": server.port,
        "lookup_timeout_s": 1.0,
        "retry_max_s": 0.5,
        **keys,
    }


def records(servers: list[Scripted], *numbers: int, weight: int = 1) -> list[str]:
    return HOSTS + [srv(f"r{n}.llm.test", port(servers[n]), weight=weight) for n in numbers]


def port(server: Scripted) -> int:
    return int(server.address.rpartition(":")[2])


def id_(servers: list[Scripted], number: int) -> str:
    return f"r{number}.llm.test:{port(servers[number])}"


async def test_replicas_come_go_change_and_are_all_replaced(names: Dnsmasq, servers: list[Scripted]) -> None:
    a, b, c, d = (id_(servers, n) for n in range(4))
    names.serve(records(servers, 0, 1))
    async with under_load(discovery(names)) as scene:
        assert scene.usable() == {a, b}
        names.serve(records(servers, 0, 1, 2))
        await scene.until_usable(a, b, c)
        names.serve(records(servers, 0, 1))
        await scene.until_usable(a, b)
        names.serve(records(servers, 0, 1, weight=5))
        await scene.until(lambda: {r.weight for r in scene.replicas.values()} == {5.0})
        names.serve(records(servers, 2, 3))
        await scene.until_usable(c, d)
        await scene.more_calls()
        assert servers[2].exchanges
        assert servers[3].exchanges


async def test_a_target_with_another_address_is_the_same_replica(names: Dnsmasq) -> None:
    with Scripted(Exchange.answer) as old, Scripted(Exchange.answer, "127.0.0.2", port(old)) as new:
        target = srv("r0.llm.test", port(old))
        names.serve([host("r0.llm.test", "127.0.0.1"), target])
        async with under_load(discovery(names)) as scene:
            id_ = f"r0.llm.test:{port(old)}"
            await scene.more_calls(100)
            learned = scene.replicas[id_].rate_samples
            names.serve([host("r0.llm.test", "127.0.0.2"), target])
            await scene.until(lambda: scene.replicas[id_].url == f"http://{new.address}")
            assert scene.of(ReplicasChanged)[-1].changed == (id_,)
            assert scene.replicas[id_].rate_samples >= learned
            await scene.more_calls()
        assert new.exchanges


async def test_nxdomain_servfail_and_silence_keep_the_fleet(names: Dnsmasq, servers: list[Scripted]) -> None:
    a, b = id_(servers, 0), id_(servers, 1)
    names.serve(records(servers, 0, 1))
    with NameServer(failing(dns.rcode.SERVFAIL)) as upstream:
        async with under_load(discovery(names)) as scene:
            names.serve([])
            await scene.until_troubled()
            assert "_llm._tcp.llm.test has no SRV records" in scene.causes[0]
            names.serve([], f"server=/llm.test/127.0.0.1#{upstream.port}")
            await scene.until(lambda: any("SERVFAIL" in cause for cause in scene.causes))
            names.kill()
            await scene.until(lambda: any("no answer within 1 s" in cause for cause in scene.causes))
            assert scene.usable() == {a, b}
            await scene.more_calls()
            names.serve(records(servers, 0, 2))
            await scene.until_recovered()
            await scene.until_usable(a, id_(servers, 2))
            assert len(scene.causes) == len(set(scene.causes)) < 6


async def test_five_hundred_replicas_in_an_answer_that_is_cut(
    names: Dnsmasq, servers: list[Scripted], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Membership] = []
    observe = Guard.observe

    def heard_of(guard: Guard, seen: Membership, now: float) -> None:
        answers.append(seen)
        observe(guard, seen, now)

    monkeypatch.setattr(Guard, "observe", heard_of)
    many = [host(f"m{n}.x", "127.0.0.1") for n in range(125)]
    many += [srv(f"m{n}.x", port(server)) for n in range(125) for server in servers]
    names.serve(many)
    async with under_load(discovery(names)) as scene:
        assert len(scene.usable()) == 500
        assert not scene.causes
        heard = len(scene.events)
        with anyio.fail_after(20):
            while len(answers) < 3:
                await anyio.sleep(0.02)
        assert heard == len(scene.events), "what comes again in another order is no change"


async def test_priorities_weights_and_several_targets_on_one_host(
    names: Dnsmasq, servers: list[Scripted]
) -> None:
    names.serve(
        [
            host("one.llm.test", "127.0.0.1"),
            srv("one.llm.test", port(servers[0]), 10, 60),
            srv("one.llm.test", port(servers[1]), 10, 0),
            srv("one.llm.test", port(servers[2]), 20, 5),
        ]
    )
    async with under_load(discovery(names)) as scene:
        found = {(r.priority, r.weight) for r in scene.replicas.values()}
        assert found == {(10, 60.0), (10, 0.1), (20, 5.0)}
        assert not servers[2].exchanges, "the second priority is for when the first fails"
        servers[0].stop()
        servers[1].stop()
        await scene.more_calls()
        assert servers[2].exchanges


async def test_the_addresses_of_a_headless_service(names: Dnsmasq) -> None:
    with Scripted(Exchange.answer) as one, Scripted(Exchange.answer, "127.0.0.2", port(one)) as two:
        keys = {"kind": "dns", "name": "llm.test", "port": port(one)}
        names.serve(addresses("127.0.0.1", "::1"))
        async with under_load(discovery(names, **keys)) as scene:
            assert scene.usable() == {one.address}, "both families of one host are one replica"
            names.serve(addresses("127.0.0.1", "127.0.0.2"))
            await scene.until_usable(one.address, two.address)
            await scene.more_calls()
            names.serve([])
            await scene.until_troubled()
            assert "llm.test has no A and no AAAA records" in scene.causes[0]
            assert len(scene.usable()) == 2
        assert two.exchanges
        names.serve(addresses("::1"))
        found = await find(BalancerConfig(discovery=discovery(names, **keys)))
        assert [r.url for r in found.replicas] == [f"http://[::1]:{port(one)}"]


def addresses(*addresses: str) -> list[str]:
    return [f"address=/llm.test/{address}" for address in addresses]


async def test_search_domains_complete_a_name_that_is_not_whole(
    names: Dnsmasq, servers: list[Scripted]
) -> None:
    names.serve(records(servers, 0), "local=/test/")
    keys = {"name": "_llm._tcp", "search_domains": ["other.test", "llm.test"]}
    async with under_load(discovery(names, **keys)) as scene:
        assert scene.usable() == {id_(servers, 0)}


async def test_targets_without_glue_are_looked_up(names: Dnsmasq, servers: list[Scripted]) -> None:
    """The target is an alias, which a server does not put into the additional section."""
    names.serve(["cname=alias.llm.test,r0.llm.test", *HOSTS, srv("alias.llm.test", port(servers[0]))])
    async with under_load(discovery(names)) as scene:
        assert scene.usable() == {f"alias.llm.test:{port(servers[0])}"}


async def test_addresses_outside_the_allowed_networks_get_no_call(
    names: Dnsmasq, servers: list[Scripted]
) -> None:
    rogue = [host("rogue.llm.test", "127.0.0.66"), srv("rogue.llm.test", port(servers[1]))]
    names.serve(records(servers, 0) + rogue)
    async with under_load(discovery(names, allowed_networks=["127.0.0.0/28"])) as scene:
        await scene.until_troubled()
        assert scene.causes[0].startswith("left out, outside allowed_networks: rogue.llm.test:")
        assert scene.usable() == {id_(servers, 0)}
        await scene.more_calls()
    assert not servers[1].exchanges
