"""The static source, and how replicas are made from what a source says."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

import mlbalance_client as mlb
from mlbalance_client.config import BalancerConfig
from mlbalance_client.core.model import Replica, ReplicaId
from mlbalance_client.discovery import Membership, create, make_replica
from mlbalance_client.errors import ConfigError


def static(*replicas: Any) -> Any:
    return create(
        BalancerConfig(discovery={"kind": "static", "replicas": list(replicas)}).discovery, Random(1)
    )


def test_the_list_is_known_at_once() -> None:
    membership = static(
        "http://10.0.0.1:8000",
        {"url": "http://10.0.0.2/v/", "id": "b", "weight": 2, "zone": "a", "labels": {"models": "m, n"}},
    ).initial()

    assert membership == Membership(
        (
            Replica(ReplicaId("10.0.0.1:8000"), "http://10.0.0.1:8000"),
            Replica(
                ReplicaId("b"),
                "http://10.0.0.2/v",
                weight=2.0,
                zone="a",
                labels={"models": "m, n"},
                models=frozenset({"m", "n"}),
            ),
        ),
        "static",
    )


@pytest.mark.anyio
async def test_the_list_is_published_once() -> None:
    source, published = static("http://a:1"), []

    await source.run(published.append)

    assert published == [source.initial()]


@pytest.mark.parametrize(
    ("labels", "models"),
    [
        ({}, set()),
        ({"model": "m"}, {"m"}),
        ({"models": "m,n,"}, {"m", "n"}),
        ({"model": "a", "models": " b , c "}, {"a", "b", "c"}),
        ({"gpu": "h100"}, set()),
    ],
)
def test_models_are_read_off_the_labels(labels: dict[str, str], models: set[str]) -> None:
    replica = make_replica("http://a:1", labels=labels)

    assert replica.models == models
    assert replica.labels == labels
    assert replica.serves("m") is (not models or "m" in models)


def test_labels_cannot_be_changed_behind_the_replica() -> None:
    labels = {"gpu": "h100"}
    replica = make_replica("http://a:1", labels=labels)

    labels["gpu"] = "a100"

    assert replica.labels == {"gpu": "h100"}
    with pytest.raises(TypeError):
        replica.labels["gpu"] = "a100"  # type: ignore[index]


def test_a_bad_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="must start with http"):
        make_replica("a:1")


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="weight must be a number above 0"):
        make_replica("http://a:1", weight=weight)


@pytest.mark.anyio
async def test_a_list_of_which_none_may_be_used_lets_nobody_wait() -> None:
    out = {"url": "http://127.0.0.1:1", "state": "out"}
    config = mlb.BalancerConfig(discovery={"kind": "static", "replicas": [out]})
    async with mlb.AsyncClient(config) as client:
        with pytest.raises(mlb.NoReplicas, match="127.0.0.1:1 is out"):
            await client.get("/")
