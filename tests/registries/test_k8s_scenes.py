"""What happens to a fleet that Kubernetes knows, against a fake of its API, under a load that must not notice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.config import BalancerConfig, K8sConfig
from mlbalance_client.core.model import ReplicaState
from mlbalance_client.discovery.k8s import K8sDiscovery
from mlbalance_client.discovery.k8s_events import event_of, listed
from mlbalance_client.discovery.k8s_slices import replicas_of, slice_of
from mlbalance_client.errors import ConfigError, DiscoveryError

from ..discovery.following import following
from ..scripted import Exchange, Scripted
from .kubernetes import TOKEN, Api, endpoint, endpoint_slice, status
from .scene import under_load


@pytest.fixture
def api() -> Iterator[Api]:
    with Api() as running:
        yield running


@pytest.fixture
def pods() -> Iterator[list[Scripted]]:
    """Three replicas with the same port on different addresses of loopback, as pods have."""
    with Scripted(Exchange.answer) as a:
        port = int(a.address.partition(":")[2])
        with (
            Scripted(Exchange.answer, "127.0.0.2", port) as b,
            Scripted(Exchange.answer, "127.0.0.3", port) as c,
        ):
            yield [a, b, c]


def port(pods: list[Scripted]) -> int:
    return int(pods[0].address.partition(":")[2])


def discovery(api: Api, **keys: Any) -> dict[str, Any]:
    return {
        "kind": "k8s",
        "namespace": "team",
        "service": "llm",
        "port": "http",
        "address": api.address,
        "token": TOKEN,
        "retry_max_s": 0.2,
        **keys,
    }


def pod(n: int, **more: Any) -> dict[str, Any]:
    return endpoint(f"llm-{n}", f"127.0.0.{n + 1}", **more)


@pytest.mark.anyio
async def test_pods_come_go_and_are_drained(api: Api, pods: list[Scripted]) -> None:
    api.put(endpoint_slice("llm-x", [pod(0), pod(1)], port(pods)))
    async with under_load(discovery(api)) as scene:
        assert scene.usable() == {"llm-0", "llm-1"}
        api.put(endpoint_slice("llm-y", [pod(2)], port(pods)))
        await scene.until_usable("llm-0", "llm-1", "llm-2")
        api.put(endpoint_slice("llm-x", [pod(0, ready=False, terminating=True), pod(1)], port(pods)))
        await scene.until(lambda: scene.replicas["llm-0"].state == "draining")
        await scene.calls_under_way()
        quiet = len(pods[0].exchanges)
        await scene.more_calls(50)
        assert len(pods[0].exchanges) == quiet
        api.put(endpoint_slice("llm-x", [pod(1)], port(pods)))
        await scene.until(lambda: "llm-0" not in scene.replicas)
        api.delete("llm-x")
        await scene.until_usable("llm-2")
        assert not scene.causes
        assert api.lists == 1


@pytest.mark.anyio
async def test_watches_resume_and_lists_are_taken_anew_only_when_they_must(
    api: Api, pods: list[Scripted]
) -> None:
    api.put(endpoint_slice("llm-x", [pod(0)], port(pods)))
    async with under_load(discovery(api)) as scene:
        with anyio.fail_after(10):
            while not api.watched_from:
                await anyio.sleep(0.005)
        api.bookmark()
        api.put(endpoint_slice("llm-x", [pod(0), pod(1)], port(pods)))
        await scene.until_usable("llm-0", "llm-1")
        api.bookmark()
        api.cut()
        with anyio.fail_after(10):
            while len(api.watched_from) < 2:
                await anyio.sleep(0.005)
        api.put(endpoint_slice("llm-x", [pod(0), pod(1), pod(2)], port(pods)))
        await scene.until_usable("llm-0", "llm-1", "llm-2")
        assert api.lists == 1
        assert int(api.watched_from[1]) >= 151
        api.compact()
        api.put(endpoint_slice("llm-x", [pod(0), pod(2)], port(pods)))
        await scene.until_usable("llm-0", "llm-2")
        assert api.lists == 2
        assert len(scene.causes) <= 1


@pytest.mark.anyio
@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b'{"type": "ADDED"}',
        b'{"type": "MODIFIED", "object": {"endpoints": 3}}',
        b"\xff\xfe",
        b'{"type":"ERROR","object":{"code":500}}',
    ],
)
async def test_events_that_cannot_be_read_keep_the_list(api: Api, pods: list[Scripted], line: bytes) -> None:
    api.put(endpoint_slice("llm-x", [pod(0)], port(pods)))
    async with under_load(discovery(api)) as scene:
        api.send(line)
        await scene.until_recovered()
        assert scene.usable() == {"llm-0"}
        assert len(scene.causes) == 1
        api.put(endpoint_slice("llm-x", [pod(0), pod(1)], port(pods)))
        await scene.until_usable("llm-0", "llm-1")


@pytest.mark.anyio
async def test_a_token_that_is_renewed_is_read_again(api: Api, pods: list[Scripted], tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN)
    api.put(endpoint_slice("llm-x", [pod(0)], port(pods)))
    async with under_load(discovery(api, token=None, token_file=str(file))) as scene:
        api.token = "renewed"
        api.cut()
        await scene.until(lambda: any("401" in cause for cause in scene.causes))
        await scene.more_calls()
        file.write_text("renewed\n")
        await scene.until_recovered()
        assert TOKEN not in repr(scene.events)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("pages", "said", "most"),
    [
        ("repeated", "the list of EndpointSlices has no end", 2),
        ("endless", "the list of EndpointSlices has no end", 201),
        ("expired", "HTTP 410", 8),
    ],
)
async def test_a_list_without_an_end_is_given_up(pages: str, said: str, most: int) -> None:
    def script(exchange: Exchange) -> None:
        if pages == "expired" and "continue=" in exchange.path:
            exchange.answer(410, status(410, "Expired", "the token is too old"))
            return
        token = "same" if pages == "repeated" else f"page {len(api.exchanges)}"
        exchange.answer(200, {"metadata": {"resourceVersion": "5", "continue": token}, "items": []})

    with Scripted(script) as api:
        keys = {"namespace": "team", "service": "llm", "token": TOKEN, "address": f"http://{api.address}"}
        config = BalancerConfig(discovery={"kind": "k8s", **keys}).discovery
        assert isinstance(config, K8sConfig)
        with pytest.raises(DiscoveryError, match=said):
            await K8sDiscovery(config, Random(1)).run(lambda membership: None)
        assert len(api.exchanges) == most


@pytest.mark.anyio
async def test_what_hinders_is_said(api: Api) -> None:
    async with following(discovery(api, service="other")) as it:
        assert "HTTP 403: the account needs get, list and watch on endpointslices" in await it.error()
    async with following(discovery(api, token="wrong")) as it:
        assert "HTTP 401: the token is not accepted" in await it.error()
    async with following({**discovery(api), "address": None}) as it:
        assert "not in a pod" in await it.error()
    async with following({**discovery(api), "token": None}) as it:
        assert "serviceaccount/token: No such file" in await it.error()
    async with following(discovery(api)) as it:
        assert await it.ids() == set()


@pytest.mark.anyio
async def test_lists_come_in_pages(api: Api) -> None:
    for n in range(5):
        api.put(endpoint_slice(f"llm-{n}", [pod(n)], 8000))
    async with following(discovery(api)) as it:
        assert await it.ids() == {f"llm-{n}" for n in range(5)}
    assert api.lists == 3


def config(**keys: Any) -> K8sConfig:
    made = BalancerConfig(discovery={"kind": "k8s", "namespace": "team", "service": "llm", **keys}).discovery
    assert isinstance(made, K8sConfig)
    return made


def understood(*slices: dict[str, Any], **keys: Any) -> dict[str, tuple[str, ReplicaState]]:
    replicas, _ = replicas_of(map(slice_of, slices), config(**keys))
    return {replica.id: (replica.url, replica.state) for replica in replicas}


@pytest.mark.parametrize(
    ("conditions", "state"),
    [
        ({}, ReplicaState.HEALTHY),
        ({"ready": None, "serving": None, "terminating": None}, ReplicaState.HEALTHY),
        ({"ready": False, "serving": False}, ReplicaState.OUT),
        ({"ready": False, "serving": None}, ReplicaState.OUT),
        ({"ready": False, "serving": True, "terminating": True}, ReplicaState.DRAINING),
        ({"ready": False, "serving": False, "terminating": True}, ReplicaState.OUT),
    ],
)
def test_conditions(conditions: dict[str, Any], state: ReplicaState) -> None:
    found = understood(endpoint_slice("s", [pod(0, **conditions)], 8000))
    assert found == {"llm-0": ("http://127.0.0.1:8000", state)}


def test_an_endpoint_in_two_slices_and_families_is_one_replica() -> None:
    four = endpoint_slice("b", [pod(0, ready=False, serving=False)], 8000)
    again = endpoint_slice("c", [pod(0)], 8000)
    six = endpoint_slice(
        "a", [endpoint("llm-0", "fd00::1"), endpoint("llm-1", "fd00::2")], 8000, family="IPv6"
    )
    assert understood(four, again, six) == {
        "llm-0": ("http://127.0.0.1:8000", ReplicaState.HEALTHY),
        "llm-1": ("http://[fd00::2]:8000", ReplicaState.HEALTHY),
    }


def test_zone_hints_come_before_zones() -> None:
    made = endpoint_slice("s", [pod(0), pod(1, hint="zone-b"), {"addresses": ["10.0.0.9"]}], 8000)
    replicas, remarks = replicas_of(
        [slice_of(made)], config(tls=True, tls_server_name="llm.test", models=["m"])
    )
    assert [(r.id, r.zone, r.tls_name, set(r.models)) for r in replicas] == [
        ("10.0.0.9:8000", None, "llm.test", {"m"}),
        ("llm-0", "zone-a", "llm.test", {"m"}),
        ("llm-1", "zone-b", "llm.test", {"m"}),
    ]
    assert replicas[2].labels["topology.kubernetes.io/zone"] == "zone-a"
    assert not remarks


def test_ports_by_name_number_or_as_the_only_one() -> None:
    two = endpoint_slice("s", [pod(0)], 8000)
    two["ports"].append({"name": "metrics", "port": 9000})
    assert (
        understood(two, port="http")
        == understood(two, port="8000")
        == {"llm-0": ("http://127.0.0.1:8000", ReplicaState.HEALTHY)}
    )
    assert understood(two, port="metrics")["llm-0"][0] == "http://127.0.0.1:9000"
    for keys in ({}, {"port": "grpc"}):
        replicas, remarks = replicas_of([slice_of(two)], config(**keys))
        assert not replicas
        assert remarks == (
            "slice s is left out: it has not the port asked for; ports: http:8000, metrics:9000",
        )


@pytest.mark.parametrize(
    ("target", "keys"),
    [
        ("k8s://team/llm:http", {"namespace": "team", "service": "llm", "port": "http", "tls": False}),
        ("k8s+https://team/llm?model=a&model=b", {"port": None, "tls": True, "models": ("a", "b")}),
    ],
)
def test_urls(target: str, keys: dict[str, Any]) -> None:
    found = BalancerConfig.from_target(target, env={}).discovery
    assert {key: getattr(found, key) for key in keys} == keys


@pytest.mark.parametrize(
    "target", ["k8s://team", "k8s://team/a/b", "k8s:///llm", "k8s://team/llm?token=x", "k8s://Te_am/llm"]
)
def test_wrong_urls(target: str) -> None:
    with pytest.raises(ConfigError):
        BalancerConfig.from_target(target, env={})


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=4)
    | st.sampled_from(["10.0.0.1", "::1", "IPv6", "http"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "metadata",
                    "name",
                    "endpoints",
                    "addresses",
                    "conditions",
                    "ports",
                    "port",
                    "hints",
                    "targetRef",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(values, st.binary(max_size=30))
def test_anything_at_all_is_a_list_or_our_own_error(value: Any, line: bytes) -> None:
    whole = endpoint_slice("s", [pod(0)], 8000)
    for item in (value, {**whole, **value} if isinstance(value, dict) else whole):
        try:
            replicas_of([slice_of(item)], config())
        except DiscoveryError:
            continue
    for parse in (event_of, listed):
        with pytest.raises(DiscoveryError):
            parse(line)
