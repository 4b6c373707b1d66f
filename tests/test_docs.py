"""The pages say what is so: links lead somewhere, code compiles, and what they promise of a plugin works."""

import ast
import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from mlbalance_client.load_reports import LoadReport

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
_LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text()) if "://" not in link]

    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_code_compiles(page: Path) -> None:
    for code in _CODE.findall(page.read_text()):
        compile(code, str(page), "exec")


def test_the_plugin_of_the_page_reads_and_watches() -> None:
    code = next(
        code for code in _CODE.findall((ROOT / "docs/dialects.md").read_text()) if "FunctionDialect" in code
    )
    names: dict[str, object] = {}
    exec(code, names)
    dialect = names["mine"]()  # type: ignore[operator]

    assert dialect.matches("POST", "/predict")
    assert dialect.read("/predict", b"abc").prompt == b"abc"
    assert not dialect.watch(200, "text/event-stream").commits_at_head


def test_every_wish_and_every_field_of_an_explanation_and_of_a_snapshot_is_in_a_table() -> None:
    import mlbalance_client as mlb
    from mlbalance_client.core.report import ReplicaSnapshot

    page = (ROOT / "docs/concepts.md").read_text()
    named = {
        name for line in page.splitlines() if line.startswith("| `") for name in re.findall(r"`(\w+)`", line)
    }
    fields = [
        field.name
        for kind in (mlb.CallOptions, mlb.Explanation, ReplicaSnapshot)
        for field in dataclasses.fields(kind)
    ]

    assert [name for name in fields if name not in named] == []


def test_every_field_of_a_report_is_in_a_table() -> None:
    page = (ROOT / "docs/load-reports.md").read_text()
    names = {field.name for field in dataclasses.fields(LoadReport)} - {"at", "doubts"} | {"age_s"}
    table = page.partition("## What a report holds")[2].partition("\n## ")[0]
    keys = "".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `"))

    assert sorted(re.findall(r"`(\w+)`", keys)) == sorted(names)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_says_what_else_it_needs(example: Path) -> None:
    code = example.read_text()
    imported = set(re.findall(r"^(?:import|from) (\w+)", code, re.MULTILINE))
    needed = {
        name.replace("_", "-")
        for name in imported - sys.stdlib_module_names - {"mlbalance_client", "pydantic"}
    }
    if "from mlbalance_client import httpx2" in code:
        needed.add("[httpx2]")
    _, _, said = (ast.get_docstring(ast.parse(code)) or "").partition("pip install ")

    assert [name for name in needed if name not in said] == []
    assert bool(said) == bool(needed)


def test_the_faults_of_the_page_are_such() -> None:
    from mlbalance_client.simulator.model.faults import Faults

    page = (ROOT / "docs/simulated-replica.md").read_text()
    examples = [json.loads(text) for text in re.findall(r"(?:--faults|curl -d) '(.*?)'", page)]

    assert [Faults.of(example) for example in examples] == [
        Faults(slow=3), Faults(failing=0.2, failing_status=503), Faults(),
    ]  # fmt: skip


@pytest.mark.anyio
async def test_the_app_of_the_page_says_how_it_is() -> None:
    from mlbalance_client.reporter import snapshot

    page = (ROOT / "docs/reporter.md").read_text()
    code = next(code for code in _CODE.findall(page) if "load_models" in code)
    names: dict[str, Any] = {"my_app": None}
    exec(code, names)
    board = names["board"]
    said = []

    async def load(model: str) -> None:
        told = json.loads(snapshot(board))
        said.append((model, told["state"], told.get("models")))

    await names["load_models"](load)
    assert said == [("llama", "starting", None), ("mistral", "warming", {"mistral": "starting"})]
    assert json.loads(snapshot(board))["models"] == {"mistral": "ready"}

    names["leave"]()
    assert json.loads(snapshot(board))["state"] == "draining"


def test_every_error_and_kind_of_failure_is_in_the_table() -> None:
    from mlbalance_client import config, errors

    page = (ROOT / "docs/errors.md").read_text()
    raised = [
        e.__name__
        for e in (*vars(errors).values(), *vars(config).values())
        if isinstance(e, type) and issubclass(e, errors.BalancerError)
    ]

    assert [name for name in raised if f"`{name}`" not in page] == []
