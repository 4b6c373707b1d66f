"""Whatever is given makes a configuration or a ConfigError, and no secret is ever shown."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.config import BalancerConfig, Section, StaticConfig, replica_url
from mlbalance_client.discovery import create
from mlbalance_client.errors import ConfigError

SECRET = "hunter2hunter2"
SECTIONS = {
    name: list(field.annotation.model_fields)
    for name, field in BalancerConfig.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}
SECTIONS["discovery"] = list(StaticConfig.model_fields)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.dates()
    | st.binary(max_size=4)
    | st.sampled_from(["static", "none", "random", "http://a:1", "-1", "1e999", 2**70, -1, 0, 1])
)
keys = (
    st.sampled_from(["url", "id", "weight", "zone", "labels", "model", "self"])
    | st.text(max_size=5)
    | st.integers()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
plausible = st.fixed_dictionaries(
    {"discovery": st.just({"kind": "static", "replicas": ["http://a:1"]}) | values},
    optional={
        name: st.dictionaries(st.sampled_from([*known, "bogus"]), values, max_size=3) | values
        for name, known in SECTIONS.items()
        if name != "discovery"
    }
    | {"seed": values},
)
url_text = st.text(st.sampled_from("htp:/sa1.,[]@?#%+-_é \n\0=&٣"), max_size=25)
targets = st.one_of(
    values,
    st.text(max_size=30),
    st.builds(
        "{}://{}".format,
        st.sampled_from(
            ["static", "static+https", "http", "https", "srv", "dns", "consul", "k8s+https", "file", ""]
        ),
        url_text,
    ),
)
variables = st.dictionaries(
    st.builds(
        "MLBALANCE_{}__{}".format,
        st.sampled_from([*(name.upper() for name in SECTIONS), "BOGUS", "SEED", ""]),
        st.sampled_from([*(key.upper() for known in SECTIONS.values() for key in known), "BOGUS", ""]),
    )
    | st.sampled_from(["MLBALANCE_SEED", "MLBALANCE_TARGET", "MLBALANCE_", "OTHER"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
    | st.sampled_from(["static", "1", "true", '["http://a:1"]', "[", "{}", "null", "static://a:1"]),
    max_size=4,
)


def usable(config: BalancerConfig) -> None:
    """What came through can be printed, described and discovered from."""
    repr(config)
    json.dumps(config.redacted())
    membership = create(config.discovery, Random(1)).initial()
    if membership is None:
        return
    assert len({replica.id for replica in membership.replicas}) == len(membership.replicas) > 0
    assert all(math.isfinite(replica.weight) and replica.weight > 0 for replica in membership.replicas)


@given(plausible)
def test_any_tables(sections: dict[str, Any]) -> None:
    with suppress(ConfigError):
        usable(BalancerConfig(**sections))


@given(targets, variables)
def test_any_target_and_environment(target: Any, env: dict[str, str]) -> None:
    with suppress(ConfigError):
        usable(BalancerConfig.from_target(target, env=env))


@given(st.sampled_from(["http://", "HTTPS://"]), url_text)
def test_a_replica_url_is_normal_after_one_pass(scheme: str, rest: str) -> None:
    with suppress(ConfigError):
        once = replica_url(scheme + rest)
        assert replica_url(str(once)) == once
        assert once.id.isprintable()


@given(
    st.sampled_from(["http", "https", "static", "static+https", "consul", "x"]),
    st.sampled_from(
        ["{s}@a:1", "u:{s}@a:1", "u:{s}@", "u:p/{s}@a", "a:1,u:{s}@b:2", "a:1?token={s}", "a#{s}", "a/x?{s}"]
    ),
)
def test_no_secret_of_a_target_is_shown(scheme: str, shape: str) -> None:
    with pytest.raises(ConfigError) as caught:
        BalancerConfig.from_target(f"{scheme}://{shape.format(s=SECRET)}", env={})

    assert SECRET not in str(caught.value) + repr(caught.value)
