"""Fixtures that all tests share."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.spec import EngineSpec

# How long an example takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_finish() -> None:
    """What is there before the first test stays: many tests collect garbage, and need not walk it each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _unasked(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Targets by URL do not ask replicas how they are, whose requests would be among those that tests count."""
    if "config" not in request.path.parts:
        monkeypatch.setenv("MLBALANCE_LOAD_REPORTS__KIND", "none")
        monkeypatch.setenv("MLBALANCE_HEALTH_CHECKS__ENABLED", "false")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Every async test runs on both."""
    return request.param


@pytest.fixture(scope="session")
def _session_fleet() -> Iterator[Fleet]:
    with Fleet(3, spec=EngineSpec().scaled(20)) as fleet:
        yield fleet


@pytest.fixture
def fleet(_session_fleet: Fleet) -> Iterator[Fleet]:
    """Three quick simulated replicas in processes of their own, healthy and with empty caches."""
    for number in range(3):
        _session_fleet.set_faults(number)
    _session_fleet.flush()
    yield _session_fleet
    for number in range(3):
        _session_fleet.set_faults(number)


def eventually(condition: Callable[[], bool], within_s: float = 10.0) -> bool:
    """Poll until ``condition`` holds; False if it does not in time. For what other processes do."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
