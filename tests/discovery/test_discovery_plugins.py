"""Kinds that other packages bring, found through their entry points."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from mlbalance_client.config import BalancerConfig, discovery_kinds
from mlbalance_client.discovery import create
from mlbalance_client.errors import ConfigError

PLUGIN = """
from typing import Literal

from pydantic import SecretStr

from mlbalance_client.config import DiscoveryConfig
from mlbalance_client.discovery import Membership, make_replica


class PhoneBookConfig(DiscoveryConfig):
    kind: Literal["phone_book"] = "phone_book"
    page: int
    token: SecretStr | None = None
    tags: tuple[str, ...] = ()

    @classmethod
    def from_url(cls, url):
        return {"kind": "phone_book", "page": url.authority, **{key: values[0] for key, values in url.query.items()}}


class PhoneBook:
    config_type = PhoneBookConfig

    def __init__(self, config):
        self._config = config

    def initial(self):
        return None

    async def run(self, publish):
        publish(Membership((make_replica(f"http://page-{self._config.page}:80"),), "phone_book"))


class NoConfig:
    pass
"""

Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package on the path whose entry point ``phone_book`` is the given one."""

    def put(entry_point: str) -> None:
        info = tmp_path / "phone_book-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: phone-book\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mlbalance_client.discovery]\nphone_book = {entry_point}\n")
        (tmp_path / "phone_book_plugin.py").write_text(PLUGIN)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "phone_book_plugin", raising=False)

    return put


@pytest.mark.anyio
async def test_a_plugin_is_configured_made_and_run_like_a_built_in(install: Install) -> None:
    install("phone_book_plugin:PhoneBook")
    published = []

    config = BalancerConfig(discovery={"kind": "phone_book", "page": 7})
    source = create(config.discovery, Random(1))
    await source.run(published.append)

    assert source.initial() is None
    assert [replica.url for replica in published[0].replicas] == ["http://page-7"]
    assert "phone_book" in discovery_kinds()


def test_a_plugin_has_url_variables_and_masked_secrets(install: Install) -> None:
    install("phone_book_plugin:PhoneBook")
    env = {"MLBALANCE_DISCOVERY__TOKEN": '{"json": "hunter2"}', "MLBALANCE_DISCOVERY__TAGS": '["a"]'}

    config = BalancerConfig.from_target("phone_book://7", env=env)

    assert config.discovery.token.get_secret_value() == '{"json": "hunter2"}'  # type: ignore[attr-defined]
    assert config.redacted()["discovery"] == {
        "kind": "phone_book",
        "page": 7,
        "token": "**********",
        "tags": ["a"],
    }
    assert "hunter2" not in repr(config) + str(config.redacted())


def test_a_plugins_mistakes_are_told_like_ours_and_show_no_secret(install: Install) -> None:
    install("phone_book_plugin:PhoneBook")

    with pytest.raises(ConfigError) as caught:
        BalancerConfig(discovery={"kind": "phone_book", "pgae": 7, "token": ["hunter2"], "tags": "hunter2"})

    assert str(caught.value).splitlines()[1:] == [
        "  discovery.page: is required: integer",
        "  discovery.token: given a secret; allowed: text",
        "  discovery.tags: given 'hunter2'; allowed: list of texts",
        "  discovery.pgae: unknown key; did you mean 'page'? known: kind, page, tags, token",
    ]


def test_an_unknown_kind_names_the_installed_ones(install: Install) -> None:
    install("phone_book_plugin:PhoneBook")

    with pytest.raises(
        ConfigError,
        match=r"'phone_bok' is not installed; did you mean 'phone_book'\? known: .*, phone_book, srv, st",
    ):
        BalancerConfig.from_target("phone_bok://7", env={})


@pytest.mark.parametrize(
    ("entry_point", "why"),
    [
        ("phone_book_plugin:NoConfig", "its plugin has no config_type that is a DiscoveryConfig"),
        ("phone_book_plugin:Missing", "its plugin 'phone_book_plugin:Missing' cannot be loaded"),
        (
            "no_such_module:X",
            "its plugin 'no_such_module:X' cannot be loaded: No module named 'no_such_module'",
        ),
    ],
)
def test_a_broken_plugin_is_named(install: Install, entry_point: str, why: str) -> None:
    install(entry_point)

    with pytest.raises(ConfigError, match=why):
        BalancerConfig(discovery={"kind": "phone_book", "page": 7})
    with pytest.raises(ConfigError, match=why):
        BalancerConfig.from_target("phone_book://7", env={})
