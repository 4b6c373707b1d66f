"""The example plugin, installed by pip and run as a user would: its own tests, and the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..scripted import Scripted

ROOT = Path(__file__).parents[2]
PLUGIN = ROOT / "examples" / "discovery_plugin"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the plugin on the path, as installed from a wheel."""
    target = tmp_path_factory.mktemp("installed")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(PLUGIN),
    ]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=100)
    if done.returncode:
        if os.environ.get("CI") == "true":
            pytest.fail(f"needed in CI: {done.stderr}")
        pytest.skip(f"pip cannot build it: {done.stderr[-300:]}")
    return {**os.environ, "PYTHONPATH": str(target)}


def run(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name(command[0])), *command[1:]],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.slow
def test_it_passes_the_conformance_suite(environment: dict[str, str]) -> None:
    done = run(environment, "pytest", "-q", "-p", "no:cacheprovider", str(PLUGIN / "test_weblist.py"))
    assert done.returncode == 0, done.stdout
    assert "7 passed" in done.stdout


@pytest.mark.slow
def test_its_urls_work_on_the_command_line(environment: dict[str, str]) -> None:
    with Scripted(lambda exchange: exchange.answer(200, {"a": "10.0.0.1:8000"})) as server:
        done = run(environment, "mlbalance", "check", f"weblist://{server.address}/list", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert [(r["id"], r["url"]) for r in found["replicas"]] == [("a", "http://10.0.0.1:8000")]
        refused = run(environment, "mlbalance", "check", f"weblist://{server.address}/list?token=hunter2")
        assert refused.returncode == 2
        assert "hunter2" not in refused.stderr
