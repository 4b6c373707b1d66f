"""Environments of their own for SDKs whose pins conflict; made once, under .venvs/."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ..environments import ROOT, environment

ENVIRONMENTS = {
    "newest": [
        ".[httpx2,trio]", "openai>=3", "anthropic>=2", "langchain-openai>=1.7", "aiohttp", "fastapi", "uvicorn",
    ],
    "openai2": [".", "openai>=2,<3"],
}  # fmt: skip


@pytest.fixture(scope="session")
def python() -> Callable[[str], Path]:
    """The interpreter of an environment by its name; a fresh one takes about a minute."""

    def of(name: str) -> Path:
        return environment(ROOT / ".venvs" / name, ENVIRONMENTS[name], editable=True)

    return of


def run(interpreter: Path, *arguments: str, target: str, cwd: Path = ROOT) -> str:
    """Run a script there against a fleet; its output, or a failure that shows it."""
    environment = {**os.environ, "MLBALANCE_TARGET": target, "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [interpreter, *arguments], env=environment, cwd=cwd, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout
