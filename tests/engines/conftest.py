"""The lane of real engines: its tests run only where ``-m`` names it, for it installs gigabytes and takes its time."""

from __future__ import annotations

from collections.abc import Iterator

import anyio
import pytest

from .engine import Engine
from .using import Start, watched_start


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "engines" in config.getoption("-m"):
        return
    left_out = [item for item in items if item.get_closest_marker("engines")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


@pytest.fixture
def anyio_backend() -> str:
    """One is enough here: what differs is tested with servers that start at once."""
    return "asyncio"


@pytest.fixture(scope="module")
def installed(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The engine of a test module, its ``ENGINE``, not started yet."""
    engine: Engine = request.module.ENGINE()
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def started(installed: Engine) -> Start:
    """The engine as it is, started under the eyes of a client."""
    return anyio.run(watched_start, installed, installed.start)


@pytest.fixture
def engine(installed: Engine, started: Start) -> Engine:
    """It serves."""
    return installed
