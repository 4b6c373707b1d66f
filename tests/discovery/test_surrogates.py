"""Half a surrogate pair is what JSON may hold and UTF-8 may not: whoever bears one is left out, and the rest serve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mlbalance_client as mlb
from mlbalance_client.config import BalancerConfig, K8sConfig, PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.members.guard import Guard
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.core.model import Replica
from mlbalance_client.discovery import make_replica
from mlbalance_client.discovery.consul_answer import instances
from mlbalance_client.discovery.file import FileDiscovery
from mlbalance_client.discovery.k8s_slices import replicas_of, slice_of
from mlbalance_client.errors import ConfigError, DiscoveryError

from ..registries.kubernetes import endpoint, endpoint_slice
from ..scripted import Exchange, Scripted
from .test_discovery_consul import HEALTHY, agent, config

texts = st.text(st.characters(categories=["Cs", "L", "N"]), min_size=1, max_size=4)


def pick(replicas: tuple[Replica, ...]) -> None:
    """As a client would that was told of these."""
    guard = Guard(BalancerConfig(discovery={"kind": "file", "path": "x"}).discovery)  # type: ignore[arg-type]
    guard.observe(Membership(replicas, "test"), 0.0)
    fleet = Fleet(PickingConfig(), Random(1))
    fleet.update(guard.in_force or ())
    for model in {None, *(model for replica in replicas for model in replica.models)}:
        demand = fleet.demand(fingerprint(b"x" * 3000), text_bytes=10, model=model)
        fleet.pick(demand, 0.0)
    assert json.dumps(
        [[r.id, r.zone, dict(r.labels), r.because] for r in replicas], ensure_ascii=False
    ).encode()


@given(
    st.dictionaries(st.sampled_from(["id", "zone", "tls_name", "because", "label", "value", "model"]), texts)
)
def test_what_a_plugin_makes_can_be_picked_or_is_refused(names: dict[str, str]) -> None:
    label = {names.pop("label", "label"): names.pop("value", "x"), "model": names.pop("model", "m")}
    named = "".join([*(text for key, text in names.items() if key != "because"), *label, *label.values()])
    if any("\ud800" <= letter <= "\udfff" for letter in named):
        with pytest.raises(ConfigError) as caught:
            make_replica("http://10.0.0.1:1", labels=label, **names)  # type: ignore[arg-type]
        assert str(caught.value).encode()
    else:
        pick((make_replica("http://10.0.0.1:1", labels=label, **names),))  # type: ignore[arg-type]


@given(texts, st.sampled_from(["ID", "zone", "Meta", "Tags", "Node", "Notes"]))
def test_what_consul_says_can_be_picked_or_is_left_out(text: str, where: str) -> None:
    payload: Any = deepcopy(HEALTHY)
    first = payload[0]
    match where:
        case "ID":
            first["Service"]["ID"] = text
        case "zone":
            first["Service"]["Meta"] = {"zone": text}
        case "Meta":
            first["Service"]["Meta"] = {text: text}
        case "Tags":
            first["Service"]["Tags"] = [f"model={text}"]
        case "Node":
            first["Service"]["ID"] = first["Service"]["Service"]
            first["Node"]["Node"] = text
        case _:
            first["Checks"] = [{"CheckID": "_node_maintenance", "Status": "critical", "Notes": text}]
    replicas, remarks = instances(json.loads(json.dumps(payload)), config())
    assert len(replicas) + len(remarks) == len(HEALTHY)
    assert len(replicas) >= len(HEALTHY) - 1
    pick(replicas)


@given(texts, st.sampled_from(["targetRef", "hostname", "zone", "nodeName", "slice"]))
def test_what_kubernetes_says_can_be_picked_or_is_left_out(text: str, where: str) -> None:
    # Two of one name would be one replica: no text is found that is the second's.
    first, second = endpoint("a", "10.0.0.1"), endpoint("the-other-of-the-two", "10.0.0.2")
    made = endpoint_slice(text if where == "slice" else "llm-1", [first, second], 1)
    if where == "targetRef":
        first["targetRef"]["name"] = text
    elif where != "slice":
        first[where] = text
        if where == "hostname":
            del first["targetRef"]
    wanted = BalancerConfig(discovery={"kind": "k8s", "namespace": "team", "service": "llm"}).discovery
    assert isinstance(wanted, K8sConfig)
    replicas, remarks = replicas_of([slice_of(json.loads(json.dumps(made)))], wanted)
    assert len(replicas) + len(remarks) == 2
    pick(replicas)


@given(texts, st.sampled_from(["id", "zone", "label", "value", "tls_server_name"]))
def test_what_a_file_says_can_be_picked_or_is_our_own_error(text: str, where: str) -> None:
    table: dict[str, Any] = {"url": "http://10.0.0.1:1"}
    if where in ("label", "value"):
        table["labels"] = {text if where == "label" else "model": text}
    else:
        table[where] = text
    source = FileDiscovery(BalancerConfig(discovery={"kind": "file", "path": "x.json"}).discovery, Random(1))  # type: ignore[arg-type]
    try:
        replicas = source._replicas(json.dumps([table]).encode())
    except DiscoveryError:
        return
    pick(replicas)


@pytest.fixture
def replica() -> Iterator[Scripted]:
    with Scripted(Exchange.answer) as running:
        yield running


@pytest.mark.anyio
async def test_calls_go_to_the_others_and_it_is_said_who_is_left_out(replica: Scripted) -> None:
    host, _, port = replica.address.partition(":")
    payload = [{"Service": {"ID": id_, "Address": host, "Port": int(port)}} for id_ in ("a\ud800", "b")]

    def script(exchange: Exchange, number: int) -> None:
        if number == 1:
            exchange.answer(200, payload, "X-Consul-Index: 5\r\n")
        else:
            exchange.wait_gone()

    with agent(script) as server:
        heard: list[Any] = []
        async with mlb.AsyncClient(f"consul://{server.address}/llm") as client:
            client.subscribe(heard.append)
            answer = await client.post("/v1/completions", json={"prompt": "x" * 3000, "model": "m"})
            assert answer.status_code == 200
    (trouble,) = [event.cause for event in heard if isinstance(event, mlb.events.DiscoveryTrouble)]
    assert "is left out: replica" in trouble
    assert trouble.encode()
