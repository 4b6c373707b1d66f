"""DNS answers of every kind, also those that no sane server gives: a list, or our own error with the same words."""

from __future__ import annotations

import sys
from random import Random
from typing import Any

import anyio
import dns.flags
import dns.message
import dns.name
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlbalance_client.config import BalancerConfig
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.discovery import create, resolving
from mlbalance_client.discovery.dns import SrvDiscovery
from mlbalance_client.errors import ConfigError, DiscoveryError

from ..registries.nameserver import NameServer
from .following import following

NAME = "_llm._tcp.llm.test."


def answering(*records: str, additional: tuple[str, ...] = (), ttl: int = 60) -> Any:
    """A responder that has these records, ``name type data`` each, for the names that are asked for."""

    def rrsets(lines: tuple[str, ...], asked: tuple[str, str] | None) -> list[Any]:
        grouped: dict[tuple[str, str], list[str]] = {}
        for line in lines:
            name, kind, data = line.split(" ", 2)
            grouped.setdefault((name, kind), []).append(data)
        return [
            dns.rrset.from_text_list(name, ttl, "IN", kind, data)
            for (name, kind), data in grouped.items()
            if asked in (None, (name, kind))
        ]

    def respond(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        question = query.question[0]
        response.answer = rrsets(records, (question.name.to_text(), dns.rdatatype.to_text(question.rdtype)))
        response.additional = rrsets(additional, None) if response.answer else []
        return response.to_wire()

    return respond


def config(server: NameServer, **keys: Any) -> dict[str, Any]:
    return {
        "kind": "srv",
        "name": NAME,
        "nameservers": ["127.0.0.1"],
        "nameserver_port": server.port,
        "lookup_timeout_s": 1.0,
        **keys,
    }


async def first(respond: Any, **keys: Any) -> Membership | str:
    with NameServer(respond) as server:
        async with following(config(server, **keys)) as it:
            return await it.next()


async def listed(respond: Any, **keys: Any) -> dict[str, str]:
    said = await first(respond, **keys)
    assert isinstance(said, Membership), said
    return {replica.id: replica.url for replica in said.replicas}


GLUE = ("a.test. A 10.0.0.1", "a.test. AAAA fd00::1", "b.test. AAAA fd00::2")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("families", "urls"),
    [
        ("v4_first", {"a.test:1": "http://10.0.0.1:1", "b.test:2": "http://[fd00::2]:2"}),
        ("v6_first", {"a.test:1": "http://[fd00::1]:1", "b.test:2": "http://[fd00::2]:2"}),
        ("v4_only", {"a.test:1": "http://10.0.0.1:1"}),
        ("v6_only", {"a.test:1": "http://[fd00::1]:1", "b.test:2": "http://[fd00::2]:2"}),
    ],
)
async def test_one_address_family_is_used_of_each_host(families: str, urls: dict[str, str]) -> None:
    records = (f"{NAME} SRV 0 1 1 a.test.", f"{NAME} SRV 0 1 2 b.test.")

    assert await listed(answering(*records, *GLUE), families=families) == urls
    assert await listed(answering(*records, *GLUE, additional=GLUE), families=families) == urls


@pytest.mark.anyio
async def test_glue_spares_the_second_question() -> None:
    with NameServer(answering(f"{NAME} SRV 0 1 1 a.test.", additional=GLUE)) as server:
        async with following(config(server)) as it:
            await it.next()
        assert server.asked == 1


@pytest.mark.anyio
async def test_several_addresses_of_a_target_are_replicas_each() -> None:
    records = (f"{NAME} SRV 0 1 1 A.test.", "A.test. A 10.0.0.2", "A.test. A 10.0.0.1")
    assert await listed(answering(*records)) == {
        "a.test:1/10.0.0.1": "http://10.0.0.1:1",
        "a.test:1/10.0.0.2": "http://10.0.0.2:1",
    }


@pytest.mark.anyio
async def test_targets_that_cannot_be_used_are_left_out_and_said() -> None:
    records = (f"{NAME} SRV 0 1 1 a.test.", f"{NAME} SRV 0 1 0 a.test.", f"{NAME} SRV 0 1 2 none.test.")
    said = await first(answering(*records, "a.test. A 10.0.0.1"))
    assert isinstance(said, Membership)
    assert [replica.id for replica in said.replicas] == ["a.test:1"]
    assert sorted(remark.partition(":")[0] for remark in said.remarks) == [
        "a.test",
        "none.test. has no address",
    ]
    said = await first(answering(f"{NAME} SRV 0 1 2 none.test."))
    assert "no target of _llm._tcp.llm.test. can be used: none.test. has no address" in said


@pytest.mark.anyio
async def test_a_target_of_a_dot_means_not_here() -> None:
    said = await first(answering(f"{NAME} SRV 0 0 0 ."))
    assert isinstance(said, Membership)
    assert said.replicas == ()


@pytest.mark.anyio
async def test_tls_is_verified_by_the_name_that_the_user_gave() -> None:
    records = (f"{NAME} SRV 0 1 1 a.test.", "a.test. A 10.0.0.1")
    names = []
    for keys in ({}, {"tls": True}, {"tls": True, "tls_server_name": "x.test"}):
        said = await first(answering(*records), **keys)
        assert isinstance(said, Membership)
        names.append((said.replicas[0].url, said.replicas[0].tls_name))
    assert names == [
        ("http://10.0.0.1:1", None),
        ("https://10.0.0.1:1", "llm.test"),
        ("https://10.0.0.1:1", "x.test"),
    ]


@pytest.mark.parametrize(
    ("ttl_s", "bounds", "least", "most"),
    [
        (10, {}, 10, 10.5),
        (0, {}, 1, 1.05),
        (86_400, {}, 300, 315),
        (None, {}, 5, 5.25),
        (5, {"min_refresh_s": 60}, 60, 63),
    ],
)
def test_refreshes_follow_the_ttl_within_bounds(
    ttl_s: float | None, bounds: Any, least: float, most: float
) -> None:
    discovery = BalancerConfig(discovery={"kind": "srv", "name": NAME, **bounds}).discovery
    waits = {SrvDiscovery(discovery, Random(seed))._refresh_s(ttl_s) for seed in range(200)}  # type: ignore[arg-type]
    assert least <= min(waits) < max(waits) <= most


@pytest.mark.anyio
async def test_the_next_name_server_is_asked_and_bad_names_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resolving, "_ONE_TRY_S", 0.2)
    with NameServer(answering(f"{NAME} SRV 0 1 1 a.test.", "a.test. A 10.0.0.1")) as server:
        async with following(
            config(server, nameservers=["127.0.0.3", "127.0.0.1"], lookup_timeout_s=8.0)
        ) as it:
            assert await it.ids() == {"a.test:1"}
    for keys in (
        {"name": "a..b"},
        {"name": "a" * 64},
        {"name": "me:secret@x"},
        {"name": "bücher.test"},
        {"name": "llm.test", "search_domains": ["\uff11.test"]},
        {"name": "x:53"},
        {"nameservers": ["dns.test"]},
        {"nameservers": ["https://1.1.1.1"]},
    ):
        with pytest.raises(ConfigError):
            BalancerConfig(discovery={"kind": "srv", "name": NAME, **keys})


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("srv://_llm._tcp.x.test", ("_llm._tcp.x.test", False)),
        (
            "srv+https://_llm._tcp.x.test?nameservers=10.0.0.1&nameservers=10.0.0.2&families=v6_only",
            ("_llm._tcp.x.test", True),
        ),
        ("dns://x.test:8000", ("x.test", False)),
        ("dns+https://x.test", ("x.test", True)),
    ],
)
def test_urls(target: str, expected: tuple[str, bool]) -> None:
    config = BalancerConfig.from_target(target, env={}).discovery
    assert (config.name, config.tls) == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("srv://x/path", "no path"),
        ("srv://x?nameserver=1", "did you mean 'nameservers'"),
        ("srv://x?families=v6_only&families=v4_only", "given 2 times"),
        ("dns://x:0", "65535"),
    ],
)
def test_wrong_urls(target: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        BalancerConfig.from_target(target, env={})


@st.composite
def answers(draw: st.DrawFn) -> Any:
    """Answers that are right, nearly right, cut, garbled, or nothing of the kind."""
    labels = st.sampled_from(["a.test.", "b.test.", NAME, ".", "x" * 63 + ".test."])
    numbers = st.integers(0, 65535)
    lines = [
        f"{NAME} SRV {draw(numbers)} {draw(numbers)} {draw(numbers)} {draw(labels)}"
        for _ in range(draw(st.integers(0, 3)))
    ]
    lines += [f"{draw(labels)} A 10.0.0.{draw(st.integers(0, 255))}" for _ in range(draw(st.integers(0, 3)))]
    loop = [f"{draw(labels)} CNAME {draw(labels)}"] if draw(st.booleans()) else []
    respond = answering(*lines, *loop, additional=tuple(lines), ttl=draw(st.integers(0, 2**31 - 1)))
    cut, flips = (
        draw(st.integers(0, 200)),
        draw(st.lists(st.tuples(numbers, st.integers(0, 255)), max_size=4)),
    )
    mangle = draw(st.booleans())

    def mangled(query: dns.message.Message) -> bytes:
        wire = bytearray(respond(query))
        if mangle:
            for position, value in flips:
                wire[2 + position % (len(wire) - 2)] = value
            wire = wire[: max(12, len(wire) - cut)]
        return bytes(wire)

    return mangled


class _Enough(Exception):
    """There was a list."""


def _enough(membership: Membership) -> None:
    raise _Enough


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(answers())
def test_any_answer_is_a_list_or_our_own_error(respond: Any) -> None:
    async def ask() -> None:
        with NameServer(respond) as server:
            source = SrvDiscovery(
                BalancerConfig(discovery=config(server, lookup_timeout_s=0.05)).discovery,  # type: ignore[arg-type]
                Random(1),
            )
            with pytest.raises((DiscoveryError, _Enough)) as caught:
                await source.run(_enough)
            if caught.type is DiscoveryError:
                assert str(caught.value).startswith(("SRV of", "no target of"))

    anyio.run(ask)


def test_without_dnspython_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "mlbalance_client.discovery.dns")
    monkeypatch.setitem(sys.modules, "dns", None)
    monkeypatch.setitem(sys.modules, "dns.name", None)
    with pytest.raises(ConfigError, match=r"'srv' needs dnspython: install .* with the extra \[dns\]"):
        create(BalancerConfig(discovery={"kind": "srv", "name": NAME}).discovery, Random(1))
