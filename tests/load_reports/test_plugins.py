"""Formats that other packages bring: found, configured, made once a replica, and put to the conformance suite."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from mlbalance_client.config import BalancerConfig, LoadReportsConfig
from mlbalance_client.config.load_reports import report_kinds
from mlbalance_client.errors import ConfigError
from mlbalance_client.load_reports import Fetch, Format, LoadReport, NoAnswer, NotThere, Page, create
from mlbalance_client.testing import load_reports as conformance
from mlbalance_client.testing.load_reports import ScriptedReplica, check_format

ROOT = Path(__file__).parents[2]
STATIC = {"kind": "static", "replicas": ["http://10.0.0.1:8000"]}
PLUGIN = '''
import json
from typing import Literal

from mlbalance_client.config import LoadReportsConfig
from mlbalance_client.load_reports import LoadReport, NotThere, ReportError, State


class AbacusConfig(LoadReportsConfig):
    kind: Literal["abacus"] = "abacus"
    path: str = "/beads"
    columns: tuple[str, ...] = ("queue", "batch")


class Abacus:
    """A server that answers /beads with {"batch": 3, "queue": 1}."""

    config_type = AbacusConfig
    kind = "abacus"
    cheap = True

    def __init__(self, config):
        self._config = config

    async def recognises(self, fetch):
        page = await fetch(self._config.path)
        return page.status == 200 and b"beads" in page.body

    async def read(self, fetch, at):
        page = await fetch(self._config.path)
        if page.status != 200:
            raise NotThere(f"{self._config.path}: answers {page.status}")
        try:
            beads = json.loads(page.body)["beads"]
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ReportError(f"{self._config.path}: no beads") from None
        counts = [beads.get(column) if isinstance(beads, dict) else None for column in self._config.columns]
        waiting, running = [n if type(n) is int else None for n in counts]
        return LoadReport(source="abacus", at=at, state=State.READY, waiting=waiting, running=running).sane()
'''
PAGES: dict[Any, Any] = {"/beads": b'{"beads": {"batch": 3, "queue": 1}}'}

Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package on the path whose entry point ``abacus`` is the given one."""

    def put(entry_point: str) -> None:
        info = tmp_path / "abacus-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: abacus\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[mlbalance_client.load_reports]\nabacus = {entry_point}\n")
        (tmp_path / "abacus_plugin.py").write_text(PLUGIN)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(__import__("sys").modules, "abacus_plugin", raising=False)

    return put


@pytest.mark.anyio
async def test_a_plugin_is_configured_made_and_read_like_a_built_in(install: Install) -> None:
    install("abacus_plugin:Abacus")
    config = BalancerConfig(discovery=STATIC, load_reports={"kind": "abacus", "interval_s": 2})

    report = await check_format(lambda: made(config), PAGES)

    assert (report.source, report.running, report.waiting) == ("abacus", 3, 1)
    assert made(config) is not made(config)
    assert config.load_reports.interval_s == 2
    assert config.redacted()["load_reports"]["columns"] == ["queue", "batch"]
    assert "abacus" in report_kinds.names()


def made(config: BalancerConfig) -> Format:
    found = create(config.load_reports)
    assert found is not None
    return found


def test_a_plugins_lists_are_set_by_variables_in_json(install: Install, tmp_path: Path) -> None:
    install("abacus_plugin:Abacus")
    env = {
        "MLBALANCE_LOAD_REPORTS__KIND": "abacus",
        "MLBALANCE_LOAD_REPORTS__COLUMNS": '["a", "b"]',
        "MLBALANCE_LOAD_REPORTS__TOKEN": "hunter2",
    }

    config = BalancerConfig.from_target("http://10.0.0.1:8000", env=env)

    assert config.load_reports.columns == ("a", "b")  # type: ignore[attr-defined]
    assert config.load_reports.token is not None
    assert config.load_reports.token.get_secret_value() == "hunter2"
    assert "hunter2" not in repr(config) + str(config.redacted())


def test_a_plugins_mistakes_are_told_like_ours(install: Install) -> None:
    install("abacus_plugin:Abacus")

    with pytest.raises(ConfigError) as caught:
        BalancerConfig(discovery=STATIC, load_reports={"kind": "abacus", "pth": "/x", "interval_s": 0})

    first, *rest = str(caught.value).splitlines()[1:]
    assert first.startswith("  load_reports.interval_s: given 0; allowed: number >= 0.05")
    assert rest[0].startswith("  load_reports.pth: unknown key; did you mean 'path'?")


def test_a_built_in_section_does_not_take_a_plugins_kind(install: Install) -> None:
    install("abacus_plugin:Abacus")

    with pytest.raises(ConfigError, match=r"kind: given 'abacus'; known: auto, kserve"):
        LoadReportsConfig(kind="abacus")


@pytest.mark.parametrize(
    ("entry_point", "why"),
    [
        ("abacus_plugin:LoadReport", "its plugin has no config_type that is a LoadReportsConfig"),
        (
            "abacus_plugin:Missing",
            "load report kind 'abacus': its plugin 'abacus_plugin:Missing' cannot be loaded",
        ),
    ],
)
def test_a_broken_plugin_is_named(install: Install, entry_point: str, why: str) -> None:
    install(entry_point)

    with pytest.raises(ConfigError, match=why):
        BalancerConfig(discovery=STATIC, load_reports={"kind": "abacus"})


def test_a_plugin_that_cannot_be_made_is_named_with_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    cause = RuntimeError("no beads today")

    def make(config: LoadReportsConfig) -> Format:
        raise cause

    monkeypatch.setattr(report_kinds, "load", lambda kind: make)
    said = r"^load_reports.kind 'abacus': its plugin cannot be made: RuntimeError\('no beads today'\)$"
    with pytest.raises(ConfigError, match=said) as caught:
        create(AbacusConfig())

    assert caught.value.__cause__ is cause


@pytest.mark.anyio
@pytest.mark.parametrize("at", [1e6, float("nan"), float("inf")])
async def test_a_plugins_report_is_of_no_later_moment_than_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, at: float
) -> None:
    monkeypatch.setattr(report_kinds, "load", lambda kind: lambda config: Given(at))
    form = create(AbacusConfig())
    assert form is not None

    assert (await form.read(ScriptedReplica({}), 5.0)).at == 5.0
    assert (await form.read(ScriptedReplica({}), 2e6)).at == (1e6 if at == 1e6 else 2e6)


class AbacusConfig(LoadReportsConfig):
    kind: Literal["abacus"] = "abacus"  # type: ignore[assignment]


class Given:
    kind = "abacus"
    cheap = True

    def __init__(self, at: float) -> None:
        self._at = at

    async def recognises(self, fetch: Fetch) -> bool:
        return True

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        return LoadReport(source="abacus", at=self._at, running=1)


def test_calls_ask_for_orca_where_that_is_the_source() -> None:
    asks = {
        kind: LoadReportsConfig(kind=kind).asks_orca for kind in ("auto", "vllm", "triton", "orca", "none")
    }

    assert asks == {"auto": False, "vllm": False, "triton": False, "orca": True, "none": False}
    assert LoadReportsConfig(kind="vllm", orca=True).asks_orca
    assert not LoadReportsConfig(kind="orca", orca=False).asks_orca


@pytest.mark.anyio
async def test_the_plugin_of_the_page_keeps_its_promises() -> None:
    codes = re.findall(r"```python\n(.*?)```", (ROOT / "docs/load-reports.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    for code in codes:
        exec(compile(code, "page", "exec", dont_inherit=True), names)

    await names["test_abacus"]()

    assert names["Abacus"](names["AbacusConfig"]()).kind == "abacus"


class Good:
    """Keeps every promise; each of the broken ones below breaks one."""

    kind = "good"
    cheap = True

    async def recognises(self, fetch: Fetch) -> bool:
        return (await fetch("/beads")).body.startswith(b'{"beads"')

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        page = await fetch("/beads")
        if page.status != 200:
            raise NotThere("/beads")
        digits = page.body.removeprefix(b'{"beads": {"batch": ')[:1]
        return LoadReport(
            source="good", at=at, running=int(digits) if digits in b"0123456789" and digits else None
        )


class TakesAll(Good):
    async def recognises(self, fetch: Fetch) -> bool:
        return (await fetch("/beads")).status == 200


class RecognisesNothing(Good):
    async def recognises(self, fetch: Fetch) -> bool:
        return False


class AsksTooMuch(Good):
    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        for number in range(9):
            await fetch(f"/{number}")
        return await super().read(fetch, at)


class Stale(Good):
    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        return replace(await super().read(fetch, at), at=0.0)


class Doubtful(Good):
    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        return replace(await super().read(fetch, at), doubts=("x",))


class TakesMissingForIdle(Good):
    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        found = await super().read(fetch, at)
        return replace(found, running=found.running or 0)


class Raises(Good):
    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        page = await fetch("/beads")
        if page.status == 200 and not page.body.startswith(b"{"):
            raise ValueError(page.body[:9])
        return await super().read(fetch, at)


class Insane(Good):
    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        return replace(await super().read(fetch, at), running=-5)


class NeverMissing(Good):
    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        page = await fetch("/beads")
        return await super().read(fetch, at) if page.status == 200 else LoadReport(source="good", at=at)


class HidesThatNobodyAnswers(Good):
    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        try:
            return await super().read(fetch, at)
        except NoAnswer:
            return LoadReport(source="good", at=at)


class CannotBeMade(Good):
    def __init__(self) -> None:
        raise RuntimeError("no beads today")


class Undecided(Good):
    cheap = None  # type: ignore[assignment]


class Misreads(RecognisesNothing):
    """What is told is what it reads, for a replica that is configured need not be recognised."""

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        raise ZeroDivisionError


class FindsNothing(RecognisesNothing):
    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        raise NotThere("/beads")


def gives(value: Any) -> type[Good]:
    class Given(RecognisesNothing):
        async def read(self, fetch: Fetch, at: float) -> LoadReport:
            return value

    return Given


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (TakesAll, "is not recognised"),
        (RecognisesNothing, "recognises its own pages"),
        (AsksTooMuch, "to read takes few pages"),
        (Stale, "of the moment that was given"),
        (Doubtful, "are understood"),
        (TakesMissingForIdle, r"empty pages say nothing, yet \['running'\] are known"),
        (Raises, "raises nothing but ReportError, not ValueError"),
        (Insane, "figures can be, not running -5$"),
        (gives(None), "its own pages: read returns a LoadReport, not None"),
        (gives({}), "read returns a LoadReport, not {}"),
        (gives(LoadReport(source="good", at=1_000.0, state="ready")), "a state is a State, not 'ready'"),  # type: ignore[arg-type]
        (CannotBeMade, r"can be made: RuntimeError\('no beads today'\)"),
        (Undecided, "says whether it is cheap"),
        (Misreads, r"its own pages: raises nothing but ReportError, not ZeroDivisionError"),
        (FindsNothing, r"are a report, not NotThere\('/beads'\)"),
        (NeverMissing, "none of the pages gives a ReportError"),
        (HidesThatNobodyAnswers, "down gives NoAnswer"),
    ],
)
async def test_the_suite_sees_every_broken_promise(broken: type[Good], said: str) -> None:
    await check_format(Good, PAGES)

    with pytest.raises(AssertionError, match=said):
        await check_format(broken, PAGES)


@pytest.mark.anyio
async def test_a_format_that_hangs_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hangs(Good):
        async def read(self, fetch: Fetch, at: float) -> LoadReport:
            await anyio.sleep_forever()
            raise AssertionError("unreachable")

    monkeypatch.setattr(conformance, "_WITHIN_S", 0.05)
    with pytest.raises(AssertionError, match="its own pages: read returns as soon as it has its pages"):
        await check_format(Hangs, PAGES)


@pytest.mark.anyio
async def test_a_format_that_shares_what_it_remembers_is_seen() -> None:
    seen: list[str] = []

    class Shared(Good):
        async def read(self, fetch: Fetch, at: float) -> LoadReport:
            seen.append("read")
            return replace(await super().read(fetch, at), seq=len(seen) if len(seen) > 1 else None)

    with pytest.raises(AssertionError, match=r"fresh ones read alike|say nothing"):
        await check_format(Shared, PAGES)


@pytest.mark.anyio
async def test_a_scripted_replica_is_a_fetch() -> None:
    replica = ScriptedReplica({"/a": b"x", (9, "/a"): Page(503, {}, b"")})

    assert (await replica("/a")).body == b"x"
    assert (await replica("/a", port=9)).status == 503
    assert (await replica("/b")).status == 404
    with pytest.raises(NoAnswer):
        await replica("/b", port=9)
    assert replica.asked == ["/a", ":9/a", "/b", ":9/b"]
