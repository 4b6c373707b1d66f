"""Consul's answers and rules, against a scripted agent: what is asked, what is understood, what is refused."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

import mlbalance_client as mlb
from mlbalance_client.cli.checking import find
from mlbalance_client.config import BalancerConfig, ConsulConfig
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.core.model import Replica, ReplicaState
from mlbalance_client.discovery.consul_answer import instances
from mlbalance_client.discovery.http import registry_client
from mlbalance_client.errors import ConfigError, DiscoveryError

from ..scripted import Exchange, Scripted
from ..tls_front import TlsFront
from .following import following

SAMPLES = Path(__file__).parent / "samples"
MAINTAINED = json.loads((SAMPLES / "consul_health_service_maint.json").read_text())
HEALTHY = json.loads((SAMPLES / "consul_health_service_initial.json").read_text())
SECRET = "5ecr37-70k3n"


def config(**keys: Any) -> ConsulConfig:
    made = BalancerConfig(discovery={"kind": "consul", "service": "llm", **keys}).discovery
    assert isinstance(made, ConsulConfig)
    return made


def understood(payload: Any, **keys: Any) -> dict[str, Replica]:
    replicas, _ = instances(payload, config(**keys))
    return {replica.id: replica for replica in replicas}


def with_checks(*checks: tuple[str, str]) -> Any:
    payload = deepcopy(HEALTHY[:1])
    payload[0]["Checks"] = [
        {"CheckID": id_, "Name": id_, "Status": status, "Notes": "why"} for id_, status in checks
    ]
    return payload


def test_a_recorded_answer() -> None:
    found = understood(HEALTHY)
    assert {id_: (r.url, r.weight, r.state) for id_, r in found.items()} == {
        f"llm-{n}": (f"http://127.0.0.1:1800{n}", n * 10.0, ReplicaState.HEALTHY) for n in (1, 2, 3)
    }
    assert found["llm-1"].labels == {"gpu": "", "model": "gemma", "block_size": "16", "version": "1"}
    assert found["llm-1"].models == {"gemma"}


def test_recorded_maintenance() -> None:
    found = understood(MAINTAINED)
    assert (found["llm-1"].state, found["llm-1"].because) == (ReplicaState.DRAINING, "maintenance: drain")
    assert found["llm-2"].state is ReplicaState.OUT
    assert "critical" in found["llm-2"].because


@pytest.mark.parametrize(
    ("checks", "state", "weight"),
    [
        ([], ReplicaState.HEALTHY, 10),
        ([("a", "passing"), ("b", "passing")], ReplicaState.HEALTHY, 10),
        ([("a", "passing"), ("b", "warning")], ReplicaState.DEGRADED, 1),
        ([("a", "critical"), ("b", "warning")], ReplicaState.OUT, 10),
        ([("a", "something new")], ReplicaState.OUT, 10),
        ([("a", "critical"), ("_service_maintenance:llm-1", "critical")], ReplicaState.DRAINING, 10),
        ([("_node_maintenance", "critical")], ReplicaState.DRAINING, 10),
    ],
)
def test_the_worst_check_counts(checks: list[tuple[str, str]], state: ReplicaState, weight: float) -> None:
    (found,) = understood(with_checks(*checks)).values()
    assert (found.state, found.weight) == (state, weight)
    assert (found.because == "") is (state is ReplicaState.HEALTHY)


def test_no_weight_means_no_calls() -> None:
    payload = with_checks(("a", "warning"))
    payload[0]["Service"]["Weights"] = {"Passing": 1, "Warning": 0}
    (found,) = understood(payload).values()
    assert (found.state, found.because) == (ReplicaState.OUT, "its weight is 0 (a: warning)")


def test_whose_address_and_which_tls() -> None:
    payload = deepcopy(HEALTHY[:1])
    payload[0]["Node"]["Address"] = "fd00::1"
    (found,) = understood(payload, address_of="node", tls=True, tls_server_name="llm.test").values()
    assert (found.url, found.tls_name) == ("https://[fd00::1]:18001", "llm.test")
    payload[0]["Service"]["Address"] = ""
    (found,) = understood(payload).values()
    assert (found.url, found.tls_name) == ("http://[fd00::1]:18001", None)


def test_ids_that_are_not_one_instances_alone_are_told_apart_by_node() -> None:
    first, second = deepcopy(HEALTHY[:1]), deepcopy(HEALTHY[:1])
    second[0]["Node"]["Node"] = "other"
    assert set(understood(first + second)) == {"vm/llm-1", "other/llm-1"}


@pytest.mark.parametrize(
    ("target", "keys"),
    [
        ("consul://a:1/llm", {"address": ("http://a:1",)}),
        ("consul://a/llm", {"address": ("http://a:8500",)}),
        ("consul:///llm", {"address": ("http://127.0.0.1:8500",)}),
        ("consul://a:1,b:2/llm", {"address": ("http://a:1", "http://b:2")}),
        ("consul+https://a:1/llm", {"address": ("http://a:1",), "tls": True}),
        ("consul://a:1/llm?dc=x&tag=g&tag=h&model=m", {"dc": "x", "tags": ("g", "h"), "models": ("m",)}),
        ("consul:///llm?address=https://b:8501", {"address": ("https://b:8501",)}),
    ],
)
def test_urls(target: str, keys: dict[str, Any]) -> None:
    found = BalancerConfig.from_target(target, env={}).discovery
    assert {key: getattr(found, key) for key in keys} == keys


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("consul://a:1", "write consul://agent:8500/service"),
        ("consul://a:1/x/y", "write consul://agent:8500/service"),
        (
            f"consul://a:1/llm?token={SECRET}",
            "token is a secret and not for URLs; set MLBALANCE_DISCOVERY__TOKEN",
        ),
        ("consul://a:1/llm?tga=x", "did you mean 'tag"),
        (f"consul://me:{SECRET}@a:1/llm", "must not hold credentials"),
    ],
)
def test_wrong_urls(target: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        BalancerConfig.from_target(target, env={})
    assert SECRET not in str(caught.value)


def agent(script: Callable[[Exchange, int], None]) -> Scripted:
    """``script`` is given the number of each health query; other questions are answered as by an agent without ACLs."""
    asked = 0

    def serve(exchange: Exchange) -> None:
        nonlocal asked
        if exchange.path.startswith("/v1/health"):
            asked += 1
            script(exchange, asked)
        else:
            exchange.answer(401, b"ACL support disabled")

    return Scripted(serve)


def query(exchange: Exchange) -> dict[str, list[str]]:
    return parse_qs(urlsplit(exchange.path).query, keep_blank_values=True)


@pytest.mark.anyio
async def test_what_is_asked_and_how_the_index_is_followed() -> None:
    """Given back; forgotten when it went back; below 1 it is none."""
    indices = [7, 9, 3, 5, 0, 4]

    def script(exchange: Exchange, number: int) -> None:
        if number > len(indices):
            exchange.wait_gone()
            return
        exchange.answer(200, HEALTHY, f"X-Consul-Index: {indices[number - 1]}\r\n")

    keys = {
        "tags": ["gpu", "a b"],
        "dc": "dc2",
        "near": "_agent",
        "namespace": "team",
        "partition": "part",
        "consistency": "stale",
        "wait_s": 60,
        "token": SECRET,
    }
    with agent(script) as server:
        async with following({"kind": "consul", "service": "l/m", "address": server.address, **keys}) as it:
            for _ in indices:
                assert await it.ids() == {"llm-1", "llm-2", "llm-3"}
            with anyio.fail_after(10):
                while len(server.exchanges) <= len(indices):
                    await anyio.sleep(0.005)
        asked = [query(exchange) for exchange in server.exchanges]
        assert [question.get("index", ["none"])[0] for question in asked] == [
            "none",
            "7",
            "9",
            "none",
            "5",
            "none",
            "4",
        ]
        assert [question.get("wait") for question in asked[:2]] == [None, ["60s"]]
        fixed = {
            "tag": ["gpu", "a b"],
            "dc": ["dc2"],
            "near": ["_agent"],
            "ns": ["team"],
            "partition": ["part"],
            "stale": [""],
        }
        assert asked[0] == fixed
        assert all(e.path.startswith("/v1/health/service/l%2Fm?") for e in server.exchanges)
        assert {e.header("x-consul-token") for e in server.exchanges} == {SECRET}
        assert not any(SECRET in e.path for e in server.exchanges)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (200, b"[]", "", "no X-Consul-Index"),
        (200, b"[]", "X-Consul-Index: x\r\n", "no X-Consul-Index"),
        (200, b"<html>", "X-Consul-Index: 1\r\n", "not JSON"),
        (200, b"[" * 100_000, "X-Consul-Index: 1\r\n", "not JSON"),
        (200, b"{}", "X-Consul-Index: 1\r\n", "not a list"),
        (500, b"No cluster leader", "", "HTTP 500: No cluster leader"),
        (403, b"ACL not found", "", "HTTP 403: ACL not found: the ACL token is unknown or lacks rights"),
        (302, b"", "Location: http://127.0.0.1:1/\r\n", "HTTP 302"),
        (
            200,
            b"[]",
            "X-Consul-Index: 1\r\nX-Consul-Results-Filtered-By-ACLs: true\r\n",
            "the answer was filtered",
        ),
    ],
)
async def test_answers_that_cannot_be_used(status: int, body: bytes, headers: str, said: str) -> None:
    with agent(lambda exchange, number: exchange.answer(status, body, headers)) as server:
        async with following({"kind": "consul", "service": "llm", "address": server.address}) as it:
            assert said in await it.error()


@pytest.mark.anyio
async def test_instances_that_cannot_be_read_are_left_out_and_said() -> None:
    broken = [
        *deepcopy(HEALTHY),
        3,
        {"Service": {"ID": 5}},
        {"Service": {"ID": "portless", "Address": "10.0.0.1"}},
    ]
    replicas, remarks = instances(broken, config())
    assert len(replicas) == 3
    assert remarks[:2] == [
        "instance 3 cannot be read: it is no table",
        "instance 4 cannot be read: Service.ID",
    ]
    assert remarks[2].startswith("instance portless is left out: URL 'http://10.0.0.1:0': the port must be")


@pytest.mark.anyio
async def test_a_query_that_is_cut_is_asked_again_at_the_next_agent() -> None:
    def dying(exchange: Exchange, number: int) -> None:
        if number == 1:
            exchange.answer(200, HEALTHY[:1], "X-Consul-Index: 5\r\n")
        else:
            exchange.reset()

    def living(exchange: Exchange, number: int) -> None:
        if number == 1:
            exchange.answer(200, HEALTHY, "X-Consul-Index: 2\r\n")
        else:
            exchange.wait_gone()

    with agent(dying) as one, agent(living) as two:
        async with following(
            {"kind": "consul", "service": "llm", "address": [one.address, two.address]}
        ) as it:
            assert await it.ids() == {"llm-1"}
            said = await it.next()
            assert isinstance(said, Membership)
            assert len(said.replicas) == 3
            assert said.remarks[0].startswith(f"agent http://{one.address}: ")
        assert "index" not in query(two.exchanges[0]), "an index is worth nothing at another agent"


@pytest.mark.anyio
async def test_an_agent_that_failed_once_is_asked_again_before_all_have_failed() -> None:
    def late(exchange: Exchange, number: int) -> None:
        if number == 1:
            exchange.reset()
        elif number == 2:
            exchange.answer(200, HEALTHY, "X-Consul-Index: 9\r\n")
        else:
            exchange.wait_gone()

    def dying(exchange: Exchange, number: int) -> None:
        if number <= 2:
            exchange.answer(200, HEALTHY[:1], "X-Consul-Index: 5\r\n")
        else:
            exchange.reset()

    with agent(late) as one, agent(dying) as two:
        async with following(
            {"kind": "consul", "service": "llm", "address": [one.address, two.address]}
        ) as it:
            assert await it.ids() == {"llm-1"}
            assert await it.ids() == {"llm-1"}
            assert await it.ids() == {"llm-1", "llm-2", "llm-3"}
            assert not [said for said in it.said if isinstance(said, str)]


@pytest.mark.anyio
async def test_what_a_registry_says_cannot_forge_lines_of_the_log() -> None:
    payload = with_checks(("_node_maintenance", "critical"))
    payload[0]["Checks"][0]["Notes"] = "x\nWARNING forged \x1b[2J"

    def serve(exchange: Exchange, number: int) -> None:
        if number == 1:
            exchange.answer(200, payload, "X-Consul-Index: 5\r\n")
        else:
            exchange.wait_gone()

    with agent(serve) as server:
        discovery = {"kind": "consul", "service": "llm", "address": server.address, "start_timeout_s": 1.0}
        found = await find(BalancerConfig(discovery=discovery))
    assert "maintenance: x WARNING forged" in found.troubles[0]
    assert all(line.isprintable() for line in [*found.text().splitlines(), *found.troubles])
    assert len(found.text().splitlines()) == 3


@pytest.mark.parametrize("address", ["evil.test/", "a@evil.test", "10.0.0.1:80#", "[::1]", ""])
def test_an_address_is_no_more_than_an_address(address: str) -> None:
    payload = deepcopy(HEALTHY[:1])
    payload[0]["Service"]["Address"] = payload[0]["Node"]["Address"] = address
    replicas, remarks = instances(payload, config())
    assert not replicas
    assert "llm-1 is left out" in remarks[0]


@pytest.mark.anyio
async def test_tls_is_verified_and_a_client_certificate_is_shown(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    files = {
        "ca_file": tmp_path / "ca.pem",
        "cert_file": tmp_path / "client.pem",
        "other": tmp_path / "other.pem",
    }
    authority.cert_pem.write_to_path(files["ca_file"])
    stranger.cert_pem.write_to_path(files["other"])
    authority.issue_cert("client.test").private_key_and_cert_chain_pem.write_to_path(files["cert_file"])

    def serve(exchange: Exchange, number: int) -> None:
        if number == 1:
            exchange.answer(200, HEALTHY, "X-Consul-Index: 5\r\n")
        else:
            exchange.wait_gone()

    with agent(serve) as plain, TlsFront(context, plain.address) as front:
        keys = {"kind": "consul", "service": "llm", "address": f"https://{front.address}"}
        async with following(
            {**keys, "ca_file": str(files["other"]), "cert_file": str(files["cert_file"])}
        ) as it:
            assert "CERTIFICATE_VERIFY_FAILED" in await it.error()
        async with following({**keys, "ca_file": str(files["ca_file"])}) as it:
            assert await it.error()
        async with following({**keys, "ca_file": "/nowhere.pem"}) as it:
            assert "no such file: /nowhere.pem" in await it.error()
        async with following(
            {**keys, "ca_file": str(files["ca_file"]), "cert_file": str(files["cert_file"])}
        ) as it:
            assert await it.ids() == {"llm-1", "llm-2", "llm-3"}
        wrong = f"https://localhost:{front.address.partition(':')[2]}"
        async with following({**keys, "address": wrong, "ca_file": str(files["ca_file"])}) as it:
            assert "CERTIFICATE_VERIFY_FAILED" in await it.error()


@pytest.mark.anyio
async def test_credentials_stay_on_their_side() -> None:
    """What the registry is given never reaches a replica, nor the other way."""
    with Scripted(Exchange.answer) as replica:
        host, _, port = replica.address.partition(":")
        payload = deepcopy(HEALTHY[:1])
        payload[0]["Service"] |= {"Address": host, "Port": int(port)}

        def serve(exchange: Exchange, number: int) -> None:
            if number == 1:
                exchange.answer(200, payload, "X-Consul-Index: 5\r\nSet-Cookie: registry=1\r\n")
            else:
                exchange.wait_gone()

        with agent(serve) as registry:
            discovery = {"kind": "consul", "service": "llm", "address": registry.address, "token": SECRET}
            headers = {"Authorization": "Bearer caller-key", "Cookie": "caller=1", "x-api-key": "caller-key"}
            settings = mlb.BalancerConfig(discovery=discovery, load_reports={"kind": "none"})
            async with mlb.AsyncClient(settings, headers=headers) as client:
                assert (await client.get("/")).status_code == 200
                assert SECRET not in repr(client.snapshot())
            assert SECRET not in repr(mlb.BalancerConfig(discovery=discovery))
        (call,) = replica.exchanges
        assert SECRET.encode() not in call.head + call.body
        assert b"registry=1" not in call.head
        assert call.header("authorization") == "Bearer caller-key"
        for exchange in registry.exchanges:
            assert exchange.header("x-consul-token") == SECRET
            assert b"caller" not in exchange.head


@pytest.mark.anyio
async def test_a_token_file_that_is_empty_is_trouble_and_no_reason_for_another_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", SECRET)
    (tmp_path / "token").write_text("\n")

    def serve(exchange: Exchange, number: int) -> None:
        exchange.answer(200, HEALTHY, f"X-Consul-Index: {number}\r\n")

    with agent(serve) as server:
        keys = {"kind": "consul", "service": "llm", "address": server.address}
        async with following({**keys, "token_file": str(tmp_path / "token")}) as it:
            assert "token: it is empty" in await it.error()
        assert not server.exchanges
        monkeypatch.delenv("CONSUL_HTTP_TOKEN")
        async with following(keys) as it:
            await it.ids()
        assert {exchange.header("x-consul-token") for exchange in server.exchanges} == {None}


@pytest.mark.anyio
@pytest.mark.parametrize("token", ["a\nb", "tokén"])
async def test_a_token_that_cannot_be_sent_is_not_shown(tmp_path: Path, token: str) -> None:
    (tmp_path / "token").write_text(token)
    keys = {
        "kind": "consul",
        "service": "llm",
        "address": "127.0.0.1:1",
        "token_file": str(tmp_path / "token"),
    }
    async with following(keys) as it:
        said = await it.error()
    assert "characters that cannot be in a header" in said
    assert token not in said


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["10.0.0.1", "critical"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
PATHS = [
    ("Service",), ("Service", "ID"), ("Service", "Port"), ("Service", "Address"), ("Service", "Weights"),
    ("Service", "Tags"), ("Service", "Meta"), ("Node",), ("Node", "Node"), ("Node", "Address"), ("Checks",),
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.one_of(values, st.lists(st.tuples(st.sampled_from(PATHS), values), max_size=4)))
def test_any_body_is_a_list_or_our_own_error(damage: Any) -> None:
    payload: Any = deepcopy(HEALTHY)
    if isinstance(damage, list) and all(isinstance(d, tuple) for d in damage):
        for number, (path, value) in enumerate(damage):
            at = payload[number % 2]
            for step in path[:-1]:
                at = at[step] if isinstance(at.get(step), dict) else at
            at[path[-1]] = value
    else:
        payload = damage
    try:
        replicas, remarks = instances(payload, config())
    except DiscoveryError:
        return
    assert len(replicas) + len(remarks) == len(payload)


@pytest.mark.anyio
async def test_a_peer_that_has_silently_gone_is_noticed_before_the_wait_ends() -> None:
    with Scripted(Exchange.answer) as server:
        async with await registry_client(f"http://{server.address}", ca_file=None) as client:
            async with client.stream("GET", "/") as answer:
                stream = answer.extensions["network_stream"]
                connection = stream.get_extra_info("socket")
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                if hasattr(socket, "TCP_KEEPIDLE"):
                    assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 15
                await answer.aread()
