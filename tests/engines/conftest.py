"""The lane of real engines: its tests run only where ``-m`` names it, for it installs gigabytes and takes its time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from . import install
from .engine import LlamaServer, Vllm


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
def vllm() -> Iterator[Vllm]:
    """Not started yet."""
    engine = Vllm(install.vllm_python(), install.models() / "llama")
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaServer]:
    """Not started yet."""
    engine = LlamaServer(install.llama_server(), install.models() / "llama.gguf")
    try:
        yield engine
    finally:
        engine.close()
