"""Every example runs, against replicas in processes of their own, with the real SDKs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlbalance_client.simulator.model.fleet import Fleet

from .conftest import ROOT, run

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(400)]

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "fastapi_app.py")
ASK = """
from fastapi.testclient import TestClient
from fastapi_app import app
with TestClient(app) as client:
    print(client.post("/ask", json={"text": "Hello!", "user": "me"}).json())
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name: str, python: Callable[[str], Path], fleet: Fleet) -> None:
    output = run(python("newest"), str(EXAMPLES / name), target=fleet.target)

    assert "tok" in output
    assert sum(state["in_flight"] for state in fleet.states()) == 0


def test_the_web_application_answers(python: Callable[[str], Path], fleet: Fleet) -> None:
    assert "tok" in run(python("newest"), "-W", "ignore", "-c", ASK, target=fleet.target, cwd=EXAMPLES)


def test_there_is_an_example_of_each_kind() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} >= {
        "quickstart", "openai_streaming", "anthropic_messages", "langchain_chat", "sync", "trio_streaming",
        "aiohttp_acquire", "fastapi_app",
    }  # fmt: skip
