"""Real SDKs over the balancer, each with the library that it needs: see scenario.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlbalance_client.simulator.model.fleet import Fleet

from .conftest import run

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]


@pytest.mark.parametrize(
    ("environment", "sdk", "library"),
    [("newest", "openai", "httpx2"), ("newest", "anthropic", "httpx2"), ("openai2", "openai", "httpx")],
)
def test_every_way_out_of_a_call_leaves_nothing_behind(
    environment: str, sdk: str, library: str, python: Callable[[str], Path]
) -> None:
    scenario = str(Path(__file__).with_name("scenario.py"))
    with Fleet(2) as fleet:
        output = run(python(environment), scenario, sdk, library, target=fleet.target)

    assert output.count("ok:") == 8
