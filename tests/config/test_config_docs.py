"""The reference in docs/ is what the models say, and its example works."""

from __future__ import annotations

import re
from pathlib import Path

from mlbalance_client.config import BalancerConfig
from mlbalance_client.config.docs import render

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_what_the_generator_writes() -> None:
    assert PAGE.read_text() == render(), "run: python -m mlbalance_client.config.docs > docs/configuration.md"


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    example = re.search(r"```toml\n(.*?)```", render(), re.DOTALL)
    assert example is not None
    path = tmp_path / "fleet.toml"
    path.write_text(example[1])

    config = BalancerConfig.load(path, env={})

    assert (config.seed, config.picking.miss_weight, config.http.read_timeout_s) == (7, 1.5, 120)


def test_every_setting_is_described() -> None:
    rows = re.findall(r"^\| `\w+` \|.*\| (.*) \|$", render(), re.MULTILINE)

    assert len(rows) > 30
    assert all(rows)
