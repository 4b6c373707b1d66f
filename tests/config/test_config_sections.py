"""The models themselves: defaults, bounds, immutability, errors in our own words."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path
from typing import Any

import pytest
from tenacity import stop_after_attempt

from mlbalance_client import config as config_package
from mlbalance_client.config import BalancerConfig, HttpConfig, InvalidConfig, PickingConfig, ReplicaConfig
from mlbalance_client.errors import ConfigError

STATIC: dict[str, Any] = {"kind": "static", "replicas": ["http://10.0.0.1:8000"]}
SECTIONS = [
    "discovery",
    "load_reports",
    "picking",
    "admission",
    "hedging",
    "retries",
    "outlier_detection",
    "slow_start",
    "health_checks",
    "http",
]
READ_AS = {"orca": "asks_orca"}
"""Keys that are read under another name."""
POLICIES = ["prefix_tokens", "round_robin", "random", "least_requests", "least_tokens"]


def message(**sections: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        BalancerConfig(**({"discovery": STATIC} | sections))
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_the_sections_have_their_binding_names() -> None:
    assert [name for name in BalancerConfig.model_fields if name != "seed"] == SECTIONS


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "discovery"])
def test_every_section_may_be_named_and_refuses_unknown_keys(section: str) -> None:
    BalancerConfig(discovery=STATIC, **{section: {}})

    assert message(**{section: {"bogus": 1}}).startswith(f"{section}.bogus: unknown key")


def test_every_problem_has_its_own_line_with_path_value_and_way_out() -> None:
    text = message(
        piking={},
        picking={"miss_weight": 0.5, "policy": "fastest", "anchor_depths": [8, 2], "zone": 3},
        retries={"max_attempts": 6},
        http={"conect_timeout_s": 1},
    )

    assert text.splitlines()[1:] == [
        f"  picking.policy: given 'fastest'; allowed: one of {', '.join(POLICIES)}",
        "  picking.miss_weight: given 0.5; allowed: number >= 1, <= 100",
        "  picking.anchor_depths: the depths must increase, such as 2, 8, 32, 128",
        "  picking.zone: given 3; allowed: text at least 1 long, at most 255 long",
        "  retries.max_attempts: given 6; allowed: integer >= 1, <= 5",
        "  http.conect_timeout_s: unknown key; did you mean 'connect_timeout_s'? known: "
        + ", ".join(sorted(HttpConfig.model_fields)),
        "  piking: unknown key; did you mean 'picking'? known: " + ", ".join(sorted([*SECTIONS, "seed"])),
    ]


@pytest.mark.parametrize(
    ("sections", "start"),
    [
        ({"picking": 3}, "picking: given 3; allowed: table"),
        ({"picking": {1: 2}}, "picking: keys must be strings"),
        (
            {"picking": {"anchor_depths": [2, 0]}},
            "picking.anchor_depths[1]: given 0; allowed: list of integers",
        ),
        ({"picking": {"anchor_depths": []}}, "picking.anchor_depths: given an empty list; allowed: list of"),
        ({"picking": {"miss_weight": float("nan")}}, "picking.miss_weight: given nan; allowed: number"),
        ({"picking": {"bound_factor": float("inf")}}, "picking.bound_factor: given inf; allowed: number"),
        (
            {"load_reports": {"kind": "VLLM"}},
            "load_reports.kind: load report kind 'VLLM' is not installed; did you mean 'vllm'? known: auto, kserve",
        ),
        (
            {"load_reports": {"kind": "vlm"}},
            "load_reports.kind: load report kind 'vlm' is not installed; did you mean 'vllm'? known: auto, kserve",
        ),
        ({"load_reports": {"kind": 3}}, "load_reports.kind: given 3; known: auto, kserve"),
        (
            {"load_reports": {"interval_s": 10}},
            "load_reports: expiry_s 5 is less than interval_s 10: reports would not last until the next",
        ),
        (
            {"health_checks": {"path": "health"}},
            "health_checks.path: given 'health'; must begin with a slash and be printable ASCII, as '/health'",
        ),
        (
            {"health_checks": {"path": "/he alth"}},
            "health_checks.path: given '/he alth'; must begin with a slash",
        ),
        (
            {"health_checks": {"headers": {"Authorization": 5}}},
            "health_checks.headers.Authorization: given a secret; allowed: text",
        ),
        ({"health_checks": {"headers": 5}}, "health_checks.headers: given a secret; allowed: table"),
        (
            {"admission": {"tenant_weights": {"a": 0}}},
            "admission.tenant_weights.a: given 0; allowed: number > 0, <= 1,000,000",
        ),
        (
            {"outlier_detection": {"rest_base_s": 60}},
            "outlier_detection: rest_base_s 60 is more than rest_max_s 30, which bounds it",
        ),
        (
            {"outlier_detection": {"ejection_base_s": 40, "ejection_max_s": 20}},
            "outlier_detection: ejection_base_s 40 is more than ejection_max_s 20, which bounds it",
        ),
        (
            {"retries": {"first_wait_s": 2}},
            "retries: first_wait_s 2 is more than max_wait_s 1, which bounds it",
        ),
        (
            {"retries": {"stop": stop_after_attempt(3), "max_attempts": 3}},
            "retries: max_attempts and stop both say how often a call may be sent: give one of them",
        ),
        ({"seed": -1}, "seed: given -1; allowed: integer >= 0"),
        ({"seed": 10**5000}, "seed: given a huge number; allowed: integer >= 0"),
        ({"discovery": None}, "discovery: given None; allowed: table"),
        ({"discovery": {}}, "discovery.kind: is required; known: consul, dns, file, k8s, srv, static"),
        (
            {"discovery": {"kind": ["static"]}},
            "discovery.kind: given a list; known: consul, dns, file, k8s, srv, static",
        ),
        (
            {"discovery": {"kind": "sttic"}},
            "discovery.kind: discovery kind 'sttic' is not installed; did you mean",
        ),
        (
            {"discovery": {"kind": "static", "replicas": ["http://a:1", 7]}},
            "discovery.replicas[1]: given 7; a replica is a URL, such as 'http://10.0.0.1:8000', or a table with its",
        ),
        (
            {"discovery": {"kind": "static"}},
            "discovery.replicas: is required: list of tables at least 1 long",
        ),
    ],
)
def test_one_problem_is_one_line(sections: dict[str, Any], start: str) -> None:
    text = message(**sections)

    assert text.startswith(start)
    assert "\n" not in text


@pytest.mark.parametrize(
    "section",
    [
        {"load_reports": {"token": "s3cret\n"}},
        {"discovery": {"kind": "consul", "service": "llm", "token": " s3cret"}},
        {"discovery": {"kind": "k8s", "namespace": "a", "service": "b", "token": " "}},
    ],
)
def test_a_token_with_white_space_around_it_is_refused_and_not_shown(section: dict[str, Any]) -> None:
    said = message(**section)
    assert f"{next(iter(section))}.token: begins or ends with white space" in said
    assert "s3cret" not in said


@pytest.mark.parametrize("token", ["schlüssel", "s3\ncret"])
def test_a_token_that_cannot_be_in_a_header_is_refused_and_not_shown(token: str) -> None:
    said = message(load_reports={"token": token})
    assert said == "load_reports.token: has characters that cannot be in a header"


K8S = {"kind": "k8s", "namespace": "a", "service": "b"}


@pytest.mark.parametrize(
    "section",
    [
        {"load_reports": {"token": ""}},
        {"discovery": {"kind": "consul", "service": "llm", "token": ""}},
        {"discovery": {**K8S, "token": ""}},
    ],
)
def test_an_empty_token_is_none_and_refused(section: dict[str, Any]) -> None:
    said = "token: is empty; leave it out where none is demanded"
    assert message(**section) == f"{next(iter(section))}.{said}"


@pytest.mark.parametrize(
    "section",
    [{"load_reports": {"token": "Bearer s3cret"}}, {"discovery": {**K8S, "token": "bearer s3cret"}}],
)
def test_a_token_with_the_word_that_is_put_before_it_is_refused(section: dict[str, Any]) -> None:
    said = "token: begins with the word Bearer, which is put before it: give what follows alone"
    assert message(**section) == f"{next(iter(section))}.{said}"


def test_a_whole_header_may_begin_with_bearer() -> None:
    checks = {"headers": {"Authorization": "Bearer s3cret"}}
    assert BalancerConfig(discovery=STATIC, health_checks=checks).health_checks.headers


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"load_reports": {"token": 5}}, "load_reports.token: given a secret; allowed: text"),
        (
            {"picking": {"fingerprint_secret": 5}},
            "picking.fingerprint_secret: given a secret; allowed: text at least 1 long, at most 64 long",
        ),
    ],
)
def test_what_is_no_text_is_no_secret(section: dict[str, Any], said: str) -> None:
    assert message(**section) == said


def test_kind_none_with_orca_is_refused_for_nobody_would_hear_what_is_asked() -> None:
    assert message(load_reports={"kind": "none", "orca": True}) == (
        "load_reports: orca asks for reports, and kind 'none' hears none; kind 'orca' hears those alone"
    )
    assert not BalancerConfig(discovery=STATIC, load_reports={"kind": "none"}).load_reports.asks_orca


def test_discovery_is_required() -> None:
    with pytest.raises(ConfigError, match=r"discovery: is required"):
        BalancerConfig()


def test_sections_are_checked_alone_too() -> None:
    with pytest.raises(ConfigError, match=r"^read_timeout_s: given 0; allowed: number > 0"):
        HttpConfig(read_timeout_s=0)
    with pytest.raises(ConfigError, match=r"^miss_weight: given 'x'"):
        PickingConfig.model_validate({"miss_weight": "x"})


def test_a_section_may_be_given_as_a_model() -> None:
    config = BalancerConfig(discovery=STATIC, picking=PickingConfig(miss_weight=3))

    assert config.picking.miss_weight == 3
    assert config == BalancerConfig(discovery=STATIC, picking={"miss_weight": 3})


def test_a_configuration_is_immutable() -> None:
    config = BalancerConfig(discovery=STATIC)

    with pytest.raises(ConfigError, match=r"seed: a configuration is immutable"):
        config.seed = 3
    with pytest.raises(ConfigError, match=r"immutable"):
        config.picking.miss_weight = 3
    with pytest.raises(ConfigError, match=r"immutable"):
        del config.seed
    assert config == BalancerConfig(discovery=STATIC)


def test_configurations_and_errors_survive_pickling() -> None:
    config = BalancerConfig(discovery=STATIC, picking={"zone": "a"})
    with pytest.raises(InvalidConfig) as caught:
        BalancerConfig(discovery=STATIC, picking={"zone": 3}, seed=-1)

    error = pickle.loads(pickle.dumps(caught.value))

    assert pickle.loads(pickle.dumps(config)) == config
    assert (str(error), error.problems) == (str(caught.value), caught.value.problems)


def test_the_effective_settings_make_the_same_configuration_again() -> None:
    config = BalancerConfig(discovery=STATIC, seed=7, http={"max_unread_s": 5})

    assert BalancerConfig(**config.redacted()) == config


@pytest.mark.parametrize(
    ("url", "normal", "identity"),
    [
        ("http://10.0.0.1:8000", "http://10.0.0.1:8000", "10.0.0.1:8000"),
        ("HTTP://LLM.Example:80/", "http://llm.example", "llm.example:80"),
        ("https://llm.example", "https://llm.example", "llm.example:443"),
        ("http://" + "a" * 63 + ".b.", "http://" + "a" * 63 + ".b.", "a" * 63 + ".b.:80"),
        ("http://llm_1:8000/a/b//", "http://llm_1:8000/a/b", "llm_1:8000/a/b"),
        ("http://[2001:DB8:0::1]:8000", "http://[2001:db8::1]:8000", "[2001:db8::1]:8000"),
        ("http://bücher.example:1", "http://xn--bcher-kva.example:1", "xn--bcher-kva.example:1"),
    ],
)
def test_replica_urls_are_normalised_and_give_the_identity(url: str, normal: str, identity: str) -> None:
    replica = ReplicaConfig(url=url)

    assert (replica.url, replica.identity) == (normal, identity)
    assert ReplicaConfig(url=normal).identity == identity


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("10.0.0.1:8000", "must start with http"),
        ("ftp://a:1", "must start with http"),
        ("http://", "names no host"),
        ("http://:80", "names no host"),
        ("http://a:0", "port must be a number from 1 to 65535"),
        ("http://a:65536", "port must be"),
        ("http://a:", "port must be"),
        ("http://a:٣", "port must be"),
        ("http://::1:80", "IPv6 addresses in brackets"),
        ("http://[::1", "IPv6 addresses in brackets"),
        ("http://[::1%25eth0]:80", "not an IPv6 address"),
        ("http://[10.0.0.1]:80", "not an IPv6 address"),
        ("http://a b:1", "not a valid host name"),
        ("http://a\n:1", "not a valid host name"),
        ("http://-a:1", "not a valid host name"),
        ("http://" + "a" * 300, "not a valid host name"),
        ("http://a..é", "not a valid host name"),
        ("http://a..b:80", "not a valid host name"),
        ("http://.a", "not a valid host name"),
        ("http://a.-b", "not a valid host name"),
        ("http://" + "a" * 64 + ".example", "not a valid host name"),
        ("http://a:1/b c", "percent-encoded"),
        ("http://a:1/b\r\nx: y", "percent-encoded"),
        ("http://a:1?x=y", "query"),
        ("http://a:1/#x", "fragment"),
        ("http://user:hunter2@a:1", "credentials"),
    ],
)
def test_replica_urls_that_cannot_be_used_say_why(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        ReplicaConfig(url=url)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("weight", [0, -1, float("nan"), float("inf"), "heavy"])
def test_weights_are_positive_and_finite(weight: Any) -> None:
    with pytest.raises(ConfigError, match=r"^weight: given .* allowed: number > 0"):
        ReplicaConfig(url="http://a:1", weight=weight)


def test_replicas_of_one_id_are_refused_and_both_named() -> None:
    text = message(
        discovery={
            "kind": "static",
            "replicas": ["http://a:80", "http://b:1", {"url": "http://B", "id": "a:80"}],
        }
    )

    assert "[0] http://a and [2] http://b have the same id 'a:80'" in text


def test_only_wrong_replicas_are_named() -> None:
    text = message(
        discovery={"kind": "static", "replicas": ["http://a:80", "b", {"url": "http://c", "wieght": 2}]}
    )

    assert [line.split(": ")[0].strip() for line in text.splitlines()[1:]] == [
        "discovery.replicas[1].url",
        "discovery.replicas[2].wieght",
    ]


def test_every_setting_is_read_by_something() -> None:
    """No dead options: each key is an attribute that some module outside the configuration reads."""
    package = Path(config_package.__file__).resolve().parents[1]
    read = {
        node.attr
        for path in package.rglob("*.py")
        if not path.is_relative_to(package / "config")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    config = BalancerConfig(discovery=STATIC)
    sections = [type(getattr(config, name)) for name in SECTIONS]
    keys = {key for section in [*sections, ReplicaConfig] for key in section.model_fields} | {"seed"}

    assert {key for key in keys if READ_AS.get(key, key) not in read} == set()
