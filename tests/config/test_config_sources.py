"""Targets, files and the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlbalance_client.config import BalancerConfig, StaticConfig
from mlbalance_client.errors import ConfigError

TOML = """
seed = 3
[discovery]
kind = "static"
replicas = ["http://10.0.0.1:8000", {url = "http://10.0.0.2:8000", id = "b", weight = 2}]
[picking]
miss_weight = 1.5
"""


def load(target: Any = None, **env: str) -> BalancerConfig:
    return BalancerConfig.from_target(target, env=env)


def urls(config: BalancerConfig) -> list[str]:
    assert isinstance(config.discovery, StaticConfig)
    return [replica.url for replica in config.discovery.replicas]


def refusal(target: Any = None, **env: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(target, **env)
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(TOML)
    return path


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("static://10.0.0.1:8000,10.0.0.2:8000", ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]),
        ("static://a:1, b:2", ["http://a:1", "http://b:2"]),
        ("STATIC+HTTPS://a,b:1", ["https://a", "https://b:1"]),
        ("static://[::1]:1,[::2]:2/v", ["http://[::1]:1/v", "http://[::2]:2/v"]),
        ("http://a:1/v/", ["http://a:1/v"]),
        ("HTTPS://a", ["https://a"]),
    ],
)
def test_urls_as_targets(target: str, expected: list[str]) -> None:
    assert urls(load(target)) == expected


def test_a_static_url_may_name_the_models() -> None:
    config = load("static://a:1,b:2?model=m,n")

    assert isinstance(config.discovery, StaticConfig)
    assert [replica.labels for replica in config.discovery.replicas] == [{"models": "m,n"}] * 2


def test_a_file_by_name_by_path_and_by_load(file: Path) -> None:
    config = BalancerConfig.load(file, env={})

    assert (config.seed, config.picking.miss_weight) == (3, 1.5)
    assert load(str(file)) == load(file) == config


def test_a_configuration_is_taken_as_it_is() -> None:
    config = load("http://a:1")

    assert load(config, MLBALANCE_SEED="9") is config


@pytest.mark.parametrize("value", ["http://a:1", "static://a:1"])
def test_without_a_target_the_variable_counts(value: str) -> None:
    assert urls(load(MLBALANCE_TARGET=value)) == ["http://a:1"]
    assert urls(load("http://b:2", MLBALANCE_TARGET=value)) == ["http://b:2"]


def test_the_environment_alone_can_say_it_all() -> None:
    config = load(
        MLBALANCE_DISCOVERY__KIND="static",
        MLBALANCE_DISCOVERY__REPLICAS='["http://a:1", {"url": "http://b:2", "weight": 2}]',
        MLBALANCE_PICKING__ANCHOR_DEPTHS="[1, 2]",
        MLBALANCE_HTTP__ALLOW_OTHER_HOSTS="true",
        MLBALANCE_SEED="7",
    )

    assert urls(config) == ["http://a:1", "http://b:2"]
    assert (config.picking.anchor_depths, config.http.allow_other_hosts, config.seed) == ((1, 2), True, 7)


def test_a_section_takes_the_place_of_what_the_target_says() -> None:
    with pytest.raises(
        ConfigError, match=r"^discovery: takes the place of .* target instead: \?start_timeout_s=\.\.\.$"
    ):
        BalancerConfig.from_target("file:///f.json", env={}, discovery={"start_timeout_s": 1})


def test_a_key_of_other_kinds_is_told_whose_it_is() -> None:
    with pytest.raises(ConfigError, match="unknown key.*; kinds with it: consul, dns, file, k8s, srv$"):
        load("static://a:1", MLBALANCE_DISCOVERY__START_TIMEOUT_S="2")
    with pytest.raises(ConfigError, match="known: kind, replicas$"):
        load("static://a:1", MLBALANCE_DISCOVERY__NONSENSE="2")


def test_the_process_environment_is_the_default(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.setenv("MLBALANCE_PICKING__MISS_WEIGHT", "4")

    assert BalancerConfig.from_target("http://a:1").picking.miss_weight == 4
    assert BalancerConfig.load(file).picking.miss_weight == 4


def test_variables_come_before_the_file(file: Path) -> None:
    config = load(file, MLBALANCE_PICKING__MISS_WEIGHT="3", MLBALANCE_PICKING__ZONE="[a]")

    assert (config.picking.miss_weight, config.picking.zone, config.seed) == (3, "[a]", 3)


def test_variables_of_others_and_empty_ones_are_left_alone() -> None:
    """Kubernetes sets such for a service that is called mlbalance."""
    others = {
        "MLBALANCE_PORT": "tcp://10.0.0.1:80",
        "MLBALANCE_SERVICE_HOST": "10.0.0.1",
        "MLBALANCE_HTTP_PORT": "80",
        "MLBALANCE_SEED": "",
        "MLBALANCE_PICKING__MISS_WEIGHT": "",
        "mlbalance_picking__bogus": "1",
    }

    assert load("http://a:1", **others) == load("http://a:1")


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (
            "MLBALANCE_PICKING__MISS_WEIGHT",
            "0.1",
            "MLBALANCE_PICKING__MISS_WEIGHT: given '0.1'; allowed: number >= 1",
        ),
        (
            "MLBALANCE_PICKING__MISS_WIEGHT",
            "1",
            "MLBALANCE_PICKING__MISS_WIEGHT: unknown key; did you mean 'miss_",
        ),
        ("MLBALANCE_PIKING__ZONE", "a", "MLBALANCE_PIKING__ZONE: unknown key; did you mean 'picking'?"),
        (
            "MLBALANCE_PICKING_ZONE",
            "a",
            "MLBALANCE_PICKING_ZONE: names no key; did you mean MLBALANCE_PICKING__ZONE?",
        ),
        (
            "MLBALANCE_PICKING__ZONE__X",
            "a",
            "MLBALANCE_PICKING__ZONE__X: names no key; write MLBALANCE_<SECTION>__",
        ),
        ("MLBALANCE___ZONE", "a", "MLBALANCE___ZONE: names no key"),
        ("MLBALANCE_SEED", "x", "MLBALANCE_SEED: given 'x'; allowed: integer >= 0"),
        ("MLBALANCE_SEED__X", "1", "MLBALANCE_SEED__X: "),
        ("MLBALANCE_DISCOVERY__REPLICAS", "http://a", "MLBALANCE_DISCOVERY__REPLICAS: must be JSON"),
        ("MLBALANCE_DISCOVERY__REPLICAS", "[" * 100_000, "MLBALANCE_DISCOVERY__REPLICAS: must be JSON"),
        (
            "MLBALANCE_DISCOVERY__REPLICAS",
            '["http://a","b"]',
            "MLBALANCE_DISCOVERY__REPLICAS[1].url: URL 'b': must",
        ),
        (
            "MLBALANCE_DISCOVERY__KIND",
            "etcd",
            "MLBALANCE_DISCOVERY__KIND: discovery kind 'etcd' is not installed",
        ),
    ],
)
def test_a_wrong_variable_is_named(name: str, value: str, expected: str) -> None:
    assert expected in refusal("http://a:1", **{name: value})


@pytest.mark.parametrize("kind", ["etcd", "etcd+https"])
def test_kinds_that_are_not_installed(kind: str) -> None:
    text = refusal(f"{kind}://user:hunter2@agent:8500/llm?token=hunter2")

    assert "kind 'etcd' is not installed" in text
    assert "known: consul, dns, file, k8s, srv, static" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (
            "10.0.0.1:8000",
            "no such file; did you mean http://10.0.0.1:8000 or static://10.0.0.1:8000? a target is static://host",
        ),
        ("[::1]:1/v", "did you mean http://[::1]:1/v or static://[::1]:1/v? a target is"),
        ("gpu-1.x:1, gpu-2.x:2", "no such file; did you mean static://gpu-1.x:1, gpu-2.x:2? a target is"),
        ("static:/a:1,b:2", "no such file; did you mean 'static://a:1,b:2'? a target is static://"),
        ("Consul+https:/a:1/llm?tag=x", "no such file; did you mean 'consul+https://a:1/llm'? a target is"),
        ("file:/etc/fleet.json", "no such file; did you mean 'file:///etc/fleet.json'? a target is"),
        ("http:/user:hunter2@a:1", "no such file; did you mean 'http://***@a:1'? a target is"),
        ("nokind:/a:1", "'nokind:/a:1': no such file; a target is"),
        ("fleet.toml", "'fleet.toml': no such file; a target is static://"),
        ("user:hunter2@10.0.0.1:1", "no such file; a target is static://"),
        ("", "'': no such file; a target is static://"),
        (0, "target of type int: must be"),
        (None, "no target: give static://"),
        (3, "target of type int: must be static://"),
        (b"static://a", "target of type bytes: must be"),
        ({"discovery": {}}, "target of type dict: must be"),
        ("static://", "discovery.replicas[0].url: URL 'http://': names no host"),
        ("static://a:1,,b", "discovery.replicas[1].url: URL 'http://': names no host"),
        ("static://a:1?weight=2", "unknown parameter 'weight'; known: model"),
        ("static://a:1?model", "the query cannot be read"),
        ("static://a:1#x", "must not have a fragment"),
        ("static://a:1,a:1", "have the same id 'a:1'"),
        ("static+tls://a:1", "unknown suffix after 'static'; only +https"),
        ("http://a:1,b:2", "static://host:port,host:port"),
        ("://a", "discovery kind '' is not installed"),
        (".", "'.': cannot be read: Is a directory"),
        ("a\0b", "not TOML: embedded null byte"),
        ("x" * 5000, "cannot be read: File name too long"),
    ],
)
def test_targets_that_cannot_be_used(target: Any, expected: str) -> None:
    text = refusal(target)

    assert expected in text
    assert len(text) < 600


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"seed = ", "fleet.toml': not TOML: "),
        (b"\xff", "fleet.toml': not TOML: "),
        (b"x = " + b"[" * 50_000, "fleet.toml': not TOML: "),
        (b"seed = " + b"9" * 5000, "fleet.toml': not TOML: "),
        (b"", "fleet.toml: discovery: is required: table"),
        (b'discovery = "static"', "fleet.toml: discovery: given 'static'; allowed: table"),
        (
            TOML.encode() + b"mis_weight = 1",
            "fleet.toml: picking.mis_weight: unknown key; did you mean 'miss_weight'",
        ),
        (
            b"seed = 1979-05-27\n" + TOML.replace("seed = 3", "").encode(),
            "fleet.toml: seed: given a date; allowed: ",
        ),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "fleet.toml"
    path.write_bytes(content)

    with pytest.raises(ConfigError) as caught:
        BalancerConfig.load(path, env={})

    assert expected in str(caught.value)
    assert str(caught.value).count("\n") == 0


@pytest.mark.parametrize(
    ("target", "key"),
    [
        ("consul+https://127.0.0.1:8500/llm?tls=false", "tls"),
        ("srv+https://_l._tcp.x.test?tls=false", "tls"),
        ("consul://127.0.0.1:8500/llm?service=x", "service"),
        ("srv://_a._tcp.x.test?name=_b._tcp.x.test", "name"),
        ("dns://llm.x.test:80?port=81", "port"),
        ("file:///a.json?path=/b.json", "path"),
        ("k8s://team/llm:http?port=x", "port"),
    ],
)
def test_a_url_does_not_say_a_thing_twice(target: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key} is said twice"):
        load(target)


@pytest.mark.parametrize("target", ["static://http://a:1", "http://a:1,b:2", "static://https://a"])
def test_two_forms_of_a_target_mixed_up_are_told_apart(target: str) -> None:
    with pytest.raises(ConfigError, match="static://host:port,host:port"):
        load(target)


def test_sections_in_code_take_the_place_of_a_targets_own() -> None:
    url = "static://127.0.0.1:1"
    made = BalancerConfig.from_target(url, env={}, hedging={"enabled": False}, retries={"max_attempts": 1})
    assert (made.hedging.enabled, made.retries.max_attempts) == (False, 1)
    assert made.discovery == BalancerConfig.from_target(url, env={}).discovery

    again = BalancerConfig.from_target(made, hedging={"enabled": True})
    assert (again.hedging.enabled, again.retries.max_attempts) == (True, 1)
    with pytest.raises(ConfigError, match="hedgin"):
        BalancerConfig.from_target(url, env={}, hedgin={"enabled": False})
