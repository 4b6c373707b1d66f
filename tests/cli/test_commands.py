"""The commands in this process: what they print, and what they say of bad arguments."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
from typer.testing import CliRunner

from mlbalance_client.cli import app as commands
from mlbalance_client.cli import main, reported
from mlbalance_client.cli.comparison import Row
from mlbalance_client.cli.demo import Result
from mlbalance_client.core.fingerprint import SCHEME
from mlbalance_client.core.load.prefix_delta import KEYED_SCHEME, Hashing, PrefixDelta, encode_prefixes
from mlbalance_client.simulator.model.fleet import Fleet, FleetError
from mlbalance_client.simulator.model.measures import CallRecord, measure
from mlbalance_client.simulator.model.spec import EngineSpec

from ..scripted import Exchange, Script, Scripted

SECRET = "hunter2"
POLICIES = ["round robin", "least requests", "mlbalance"]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLBALANCE_TARGET", raising=False)
    monkeypatch.chdir(tmp_path)


def ran(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error; a crash is a failure of the test."""
    result = CliRunner().invoke(commands.app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(f"traceback: {result.exception!r}") from result.exception
    return result.exit_code, result.stdout, result.stderr


def told(*arguments: str) -> Any:
    """The JSON that a command prints, read strictly."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    code, out, err = ran(*arguments)
    assert code == 0, err
    return json.loads(out, parse_constant=refuse)


def refused(*arguments: str) -> str:
    """The one line that a command says of arguments that it cannot use."""
    code, out, err = ran(*arguments)
    assert code in (1, 2), out
    assert out == ""
    assert SECRET not in err
    assert err.startswith("mlbalance: ")
    assert err.count("\n") == 1, err
    return err


def trace_file(path: Path, *calls: dict[str, Any]) -> str:
    rows = calls or [{"t": i / 100, "in": 1100, "out": 3, "blocks": [1, 2 + i % 2]} for i in range(12)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


# -- check -----------------------------------------------------------------------------------------------------------


def test_check_lists_the_replicas_of_a_target() -> None:
    code, out, err = ran("check", "static://127.0.0.1:8001,127.0.0.1:8002")

    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [
        "static:",
        "id=127.0.0.1:8001",
        "id=127.0.0.1:8002",
    ]


def test_check_contacts_the_replicas_if_asked(fleet: Fleet) -> None:
    up = fleet.urls[0].removeprefix("http://")
    code, out, _ = ran("check", f"static://{up},127.0.0.1:1", "--contact")

    assert code == 0
    assert out.splitlines()[0] == "static: 2 replica(s), 2 may be used, 1 reached"
    assert "contact=reached" in out.splitlines()[1]
    assert "contact=no connection: " in out.splitlines()[2]
    assert ran("check", "static://127.0.0.1:1", "--contact")[0] == 1


LOAD = "/mlbalance/v1/load"
KEYED_PREFIXES = encode_prefixes(PrefixDelta("e", 1, reset=True, hashing=Hashing.by(b"ours")))


def streams(
    exchange: Exchange, *, prefixes: bytes = encode_prefixes(PrefixDelta("e", 1, reset=True))
) -> None:
    if exchange.path != LOAD:
        exchange.answer(404)
        return
    exchange.start_stream()
    exchange.chunk(b"event: prefixes\ndata: %b\n\n" % prefixes)
    exchange.chunk(b'event: load\nid: 1\ndata: {"v":1,"epoch":"e","seq":1,"state":"ready"}\n\n')
    exchange.wait_gone()


def is_vllm(exchange: Exchange, *, status: int = 404) -> None:
    if exchange.path == "/metrics":
        exchange.answer(200, b"vllm:num_requests_running 1.0\nvllm:num_requests_waiting 2.0\n")
    elif exchange.path == "/health":
        exchange.answer(200)
    else:
        exchange.answer(status if exchange.path == LOAD else 404)


def is_silent(exchange: Exchange) -> None:
    if exchange.path == LOAD:
        exchange.start_stream()
        exchange.wait_gone()
    else:
        exchange.answer(404)


def is_nothing(exchange: Exchange) -> None:
    exchange.answer(404)


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        (streams, "auto", "stream"),
        (
            partial(streams, prefixes=KEYED_PREFIXES),
            "stream",
            f"stream, but event 'prefixes': hashes of scheme '{KEYED_SCHEME}', where this client's are '{SCHEME}'",
        ),
        (is_vllm, "auto", "vllm"),
        (is_vllm, "vllm", "vllm"),
        (is_vllm, "stream", f"none: {LOAD}: status 404"),
        (is_vllm, "orca", "in the heads of answers alone, not asked for"),
        (is_vllm, "none", "not heard: load_reports.kind is none"),
        (
            partial(is_vllm, status=401),
            "auto",
            f"vllm; {LOAD}: status 401; is load_reports.token right?",
        ),
        (is_nothing, "auto", "none: none of the known formats is recognised"),
        (is_nothing, "vllm", "none of kind vllm: /metrics and /load: not there"),
        (
            is_silent,
            "auto",
            "none: none of the known formats is recognised",
        ),
        (
            is_silent,
            "stream",
            "none: the load stream says nothing that is understood: nothing came",
        ),
    ],
)
def test_check_says_what_load_reports_those_have_that_were_reached(
    monkeypatch: pytest.MonkeyPatch, script: Script, kind: str, said: str
) -> None:
    monkeypatch.setenv("MLBALANCE_LOAD_REPORTS__KIND", kind)
    monkeypatch.setattr(reported, "_FIRST_WORD_S", 0.5)
    with Scripted(script) as server:
        found = told("check", f"static://{server.address},127.0.0.1:1", "--contact", "--json")
        assert [row.get("reports") for row in found["replicas"]] == [said, None]
        if kind == "auto":
            _, out, _ = ran("check", f"static://{server.address},127.0.0.1:1", "--contact")
            assert f"contact=reached  reports={said}" in out.splitlines()[1]


def test_check_says_that_a_streams_hashes_are_by_another_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLBALANCE_LOAD_REPORTS__KIND", "auto")
    monkeypatch.setenv("MLBALANCE_PICKING__FINGERPRINT_SECRET", SECRET)
    with Scripted(partial(streams, prefixes=KEYED_PREFIXES)) as server:
        _, out, _ = ran("check", f"static://{server.address}", "--contact")

    assert "reports=stream, but event 'prefixes': hashes by another secret than this client's picking" in out
    assert SECRET not in out


def test_check_tells_all_as_json(tmp_path: Path) -> None:
    (tmp_path / "fleet.toml").write_text(
        '[discovery]\nkind = "static"\nreplicas = ["http://127.0.0.1:8001", {url = "http://127.0.0.1:8002/v1",'
        ' id = "b", weight = 2, zone = "z", labels = {models = "n, m"}}]\n'
    )

    found = told("check", "fleet.toml", "--json")

    first, second = found.pop("replicas")
    (trouble,) = found.pop("troubles")
    assert found == {"source": "static"}
    assert trouble.startswith("the replica http://127.0.0.1:8002/v1 has /v1 in its URL")
    assert first["url"] == "http://127.0.0.1:8001"
    assert second == {
        "id": "b",
        "url": "http://127.0.0.1:8002/v1",
        "state": "healthy",
        "because": "",
        "weight": 2.0,
        "priority": 0,
        "zone": "z",
        "models": ["m", "n"],
        "labels": {"models": "n, m"},
    }


def test_check_warns_of_the_version_of_an_api_in_a_target() -> None:
    code, out, _ = ran("check", "static://127.0.0.1:8001,127.0.0.1:8002/gate/v1")
    troubles = [line for line in out.splitlines() if line.startswith("trouble: ")]

    assert code == 0
    assert len(troubles) == 1, "they share the prefix"
    assert troubles[0].endswith("leave it out of the target, as in http://127.0.0.1:8001/gate")
    assert "trouble" not in ran("check", "http://v1/gate/v1/x")[1]


def test_check_says_why_nothing_was_found(tmp_path: Path) -> None:
    target = "consul://127.0.0.1:1/llm?start_timeout_s=0.1"
    code, out, err = ran("check", target)
    assert (code, err) == (1, "")
    head, trouble = out.splitlines()
    assert head == "consul: 0 replica(s), 0 may be used"
    assert trouble.startswith("trouble: http://127.0.0.1:1: ")

    code, out, _ = ran("check", target, "--json")
    found = json.loads(out)
    assert (code, found["replicas"], len(found["troubles"])) == (1, [], 1)


def test_check_says_which_replicas_may_not_be_used(tmp_path: Path) -> None:
    (tmp_path / "fleet.json").write_text(
        '["http://10.0.0.1:1", {"url": "http://10.0.0.2:2", "state": "draining"}]'
    )
    code, out, _ = ran("check", f"file://{tmp_path}/fleet.json?allowed_networks=10.0.0.0/24")
    assert code == 0
    assert out.splitlines()[0] == f"file {tmp_path}/fleet.json: 2 replica(s), 1 may be used"
    assert "state=draining" in out.splitlines()[2]


@pytest.mark.parametrize("command", ["check", "config"])
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nothing.toml", "no such file"),
        ("", "no such file"),
        (".", "cannot be read"),
        ("static://", "names no host"),
        ("static://127.0.0.1:99999", "65535"),
        ("static://127.0.0.1:1,127.0.0.1:1", "same id"),
        ("static://127.0.0.1:1?tag=x", "tag"),
        ("nokind://127.0.0.1", "nokind"),
        ("static+tls://127.0.0.1:1", "+https"),
        ("ftp://127.0.0.1", "ftp"),
        ("\udcff", "no such file"),
    ],
)
def test_a_bad_target_is_said_in_one_line(command: str, target: str, said: str) -> None:
    assert said in refused(command, target)


@pytest.mark.parametrize("command", ["check", "config"])
@pytest.mark.parametrize(
    "target",
    [
        f"http://user:{SECRET}@127.0.0.1:1",
        f"static://user:{SECRET}@127.0.0.1:1,127.0.0.1:2",
        f"static://127.0.0.1:2,user:{SECRET}@127.0.0.1:1",
        f"consul://user:{SECRET}@127.0.0.1:8500/llm",
        f"static://127.0.0.1:1?token={SECRET}",
        f"user:{SECRET}@127.0.0.1:1",
        f"http:/user:{SECRET}@127.0.0.1:1",
        f"user:{SECRET}/x@127.0.0.1:1",
    ],
)
def test_a_targets_secret_is_never_printed(command: str, target: str) -> None:
    refused(command, target)


def test_what_is_wrong_in_a_file_is_named_without_its_secrets(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(
        f'[discovery]\nkind = "static"\nreplicas = ["http://u:{SECRET}@127.0.0.1:1"]\ntoken = "{SECRET}"\n'
    )
    code, out, err = ran("check", "bad.toml")

    assert (code, out) == (2, "")
    assert "discovery.token" in err
    assert "discovery.replicas[0]" in err
    assert SECRET not in err


# -- config ----------------------------------------------------------------------------------------------------------


def test_config_prints_what_is_in_force_with_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLBALANCE_PICKING__POLICY", "round_robin")
    printed = told("config", "static://127.0.0.1:8001")

    assert printed["discovery"]["replicas"][0]["url"] == "http://127.0.0.1:8001"
    assert printed["picking"]["policy"] == "round_robin"


def test_config_takes_its_target_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "MLBALANCE_TARGET" in refused("config")
    monkeypatch.setenv("MLBALANCE_TARGET", "static://127.0.0.1:8001")

    assert told("config")["discovery"]["kind"] == "static"


def test_config_takes_json_as_every_command_does() -> None:
    assert told("config", "static://127.0.0.1:8001", "--json") == told("config", "static://127.0.0.1:8001")


def test_a_bad_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLBALANCE_HTTP__CONNECT_TIMEOUT_S", "soon")

    assert "MLBALANCE_HTTP__CONNECT_TIMEOUT_S" in refused("check", "static://127.0.0.1:1")


# -- simulate --------------------------------------------------------------------------------------------------------


def test_simulate_compares_policies_in_virtual_time(tmp_path: Path) -> None:
    printed = told(
        "simulate", "--trace", trace_file(tmp_path / "t"), "--replicas", "2", "--clients", "3", "--json"
    )

    assert (printed["clients"], printed["rate"], printed["replicas"]) == (3, 1.5, 2)
    assert [row["policy"].split(",")[0] for row in printed["rows"]] == [
        "random", "least requests", "omniscient router", "mlbalance",
    ]  # fmt: skip
    assert {(row["calls"], row["errors"]) for row in printed["rows"]} == {(9, 0)}
    assert all(row["ttft_mean_s"] > 0 for row in printed["rows"])


def test_simulate_prints_a_table(tmp_path: Path) -> None:
    code, out, _ = ran("simulate", "--trace", trace_file(tmp_path / "t"), "--replicas", "2")

    assert code == 0
    assert all(word in out for word in ("random", "omniscient router", "mlbalance", "2 replicas"))


def test_simulate_is_repeatable(tmp_path: Path) -> None:
    arguments = ["simulate", "--trace", trace_file(tmp_path / "t"), "--json"]

    assert told(*arguments) == told(*arguments)


@pytest.mark.slow
def test_simulate_puts_the_product_near_the_omniscient_router() -> None:
    rows = {row["policy"].split(",")[0]: row["ttft_mean_s"] for row in told("simulate", "--json")["rows"]}

    assert rows["omniscient router"] <= rows["mlbalance"] < rows["least requests"] < rows["random"]


ONE = {"t": 0, "in": 5, "out": 1}


@pytest.mark.parametrize("command", ["simulate", "demo"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "conversation, code"),
        (b"", "no calls"),
        (b"{", "line 1"),
        (b"\xff\xfe", "line 1"),
        (b"\x1f\x8b\x08", "conversation, code"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff", "t.jsonl"),
        (json.dumps({**ONE, "i": "x"}).encode(), "'i'"),
        (b"\n".join([json.dumps({**ONE, "i": 1}).encode()] * 4), "'i'"),
    ],
)
def test_a_bad_trace_is_said_in_one_line(
    tmp_path: Path, command: str, content: bytes | None, said: str
) -> None:
    path = tmp_path / "t.jsonl"
    if content is not None:
        path.write_bytes(content)

    assert said in refused(command, "--trace", str(path), "--replicas", "1")


# -- demo ------------------------------------------------------------------------------------------------------------


def made_up(records: list[CallRecord], late_s: float) -> Result:
    rows = [Row(name, measure(records, EngineSpec()), ours=name == "mlbalance") for name in POLICIES]
    return Result("made up", rows, dict.fromkeys(POLICIES, records), late_s)


def play(monkeypatch: pytest.MonkeyPatch, records: Sequence[CallRecord], late_s: float = 0.0) -> list[str]:
    """Let ``demo`` replay nothing and have these records; gives the list of replays that were asked for."""
    asked: list[str] = []

    async def run(trace: str, calls: int, replicas: int, show: bool) -> Result:
        asked.append(trace)
        return made_up(list(records), late_s)

    monkeypatch.setattr("mlbalance_client.cli.demo.run", run)
    return asked


GOOD = [CallRecord(i, 100, 5, ttft_s=0.1 * (i + 1), total_s=1.0) for i in range(10)]


def test_demo_compares_three_policies_over_http_and_draws_them(tmp_path: Path) -> None:
    trace = trace_file(tmp_path / "t")
    printed = told("demo", "--trace", trace, "--calls", "12", "--replicas", "1", "--chart", "c.png", "--json")

    assert [row["policy"] for row in printed["policies"]] == POLICIES
    assert {(row["calls"], row["errors"]) for row in printed["policies"]} == {(12, 0)}
    assert all(row["ttft_mean_s"] > 0 for row in printed["policies"])
    assert printed["chart"] == "c.png"
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    assert "time compressed 6 times" in printed["title"]


def test_a_chart_explains_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    play(monkeypatch, GOOD)
    assert ran("demo", "--chart", "c.svg")[0] == 0

    drawn = (tmp_path / "c.svg").read_text()
    assert "Each dot is one call under one policy" in drawn
    assert "Calls that had their first token by then" in drawn


def test_demo_prints_a_table_and_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, GOOD)
    code, out, _ = ran("demo")

    assert code == 0
    assert all(name in out for name in POLICIES)
    assert "first token: as long as with round robin, as long as with least requests." in " ".join(
        out.split()
    )
    assert "Time ran 6 times as fast, for engines and arrivals alike" in " ".join(out.split())
    assert "demo-chart.png" in out


@pytest.mark.parametrize(("late_s", "busy"), [(0.0, False), (0.01, False), (0.5, True)])
def test_demo_says_when_its_figures_mean_little(
    monkeypatch: pytest.MonkeyPatch, late_s: float, busy: bool
) -> None:
    play(monkeypatch, GOOD, late_s)
    _, out, _ = ran("demo", "--chart", "c.svg")

    assert ("this machine was too busy" in " ".join(out.split())) is busy
    assert ("this machine was too busy" in Path("c.svg").read_text()) is busy


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (3.0, "3.0 times shorter than round robin"),
        (1.04, "as long as with round robin"),
        (0.5, "2.0 times longer than round robin"),
    ],
)
def test_demo_compares_means_in_words(factor: float, said: str) -> None:
    result = made_up(GOOD, 0.0)
    other = [replace(record, ttft_s=factor * (record.ttft_s or 0.0)) for record in GOOD]
    result.rows[POLICIES.index("round robin")] = Row("round robin", measure(other, EngineSpec()))

    assert said in result.summary()


def test_demo_says_what_it_is_about_to_do(tmp_path: Path) -> None:
    code, _, err = ran("demo", "--trace", trace_file(tmp_path / "t"), "--calls", "12", "--replicas", "1")

    assert code == 0
    assert err.startswith(
        "Replaying 12 recorded calls over HTTP against 1 simulated replicas, through 3 policies in turn: about 12 s."
    )


@pytest.mark.slow
def test_demo_in_its_shortest_form_on_the_shipped_trace(tmp_path: Path) -> None:
    printed = told("demo", "--calls", "10", "--replicas", "2", "--chart", "c.png", "--json")

    assert {(row["calls"], row["errors"]) for row in printed["policies"]} == {(10, 0)}


def test_a_demo_in_which_all_failed_still_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, [CallRecord(i, 100, 5, error="ConnectError: no") for i in range(10)])

    assert {row["errors"] for row in told("demo", "--json")["policies"]} == {10}


@pytest.mark.parametrize("chart", ["missing/c.png", ".", "c.nonsense"])
def test_a_chart_that_cannot_be_written_is_refused_before_the_replay(
    monkeypatch: pytest.MonkeyPatch, chart: str
) -> None:
    asked = play(monkeypatch, GOOD)

    assert chart in refused("demo", "--chart", chart, "--json")
    assert asked == []


def test_demo_without_matplotlib_says_so_before_the_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = play(monkeypatch, GOOD)
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == "matplotlib" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    monkeypatch.setitem(sys.modules, "matplotlib", None)

    assert "extra [demo]" in refused("demo", "--json")
    assert asked == []


@pytest.mark.slow
def test_a_trace_whose_own_numbers_start_late_is_replayed_all_the_same(tmp_path: Path) -> None:
    calls = [{"t": i / 100, "in": 50, "out": 2, "i": 5000 + i} for i in range(10)]
    trace = trace_file(tmp_path / "late", *calls)
    printed = told("demo", "--trace", trace, "--calls", "10", "--replicas", "1", "--json")

    assert {row["calls"] for row in printed["policies"]} == {10}


def test_a_fleet_that_cannot_run_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(*_: object) -> Result:
        raise FleetError("the simulated fleet needs uvicorn")

    monkeypatch.setattr("mlbalance_client.cli.demo.run", run)

    assert "needs uvicorn" in refused("demo")


# -- fleet, and arguments in general --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        (
            "slow=3",
            """--faults 'slow=3': must be a JSON object, such as --faults '{"slow": 3}'; there are slow, """,
        ),
        ("{bad", "such as --faults '{"),
        ("[1]", "such as --faults '{"),
        ("5", "such as --faults '{"),
        ('{"sloww": 2}', "sloww"),
        ('{"slow": 0}', "slow"),
        ('{"slow": "x"}', "slow"),
        ('{"failing": 2}', "failing"),
        ("[" * 50_000, "--faults"),
    ],
)
def test_bad_faults_are_said_in_one_line(faults: str, said: str) -> None:
    assert said in refused("fleet", "--replicas", "1", "--faults", faults)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["fleet", "--replicas", "0"], "--replicas"),
        (["fleet", "--replicas", "many"], "--replicas"),
        (["fleet", "--speed", "nan"], "--speed"),
        (["simulate", "--rate", "0"], "--rate"),
        (["simulate", "--clients", "0"], "--clients"),
        (["demo", "--calls", "9"], "--calls"),
        (["demo", "--nope"], "--nope"),
        (["check"], "target"),
        (["nonsense"], "nonsense"),
    ],
)
def test_bad_usage_exits_with_2_and_names_it(arguments: list[str], said: str) -> None:
    code, out, err = ran(*arguments)

    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize("command", ["demo", "fleet", "simulate", "check", "config"])
def test_every_command_has_help(command: str) -> None:
    code, out, _ = ran(command, "--help")

    assert code == 0
    assert "Usage:" in out


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_its_packages_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == missing else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)

    with pytest.raises(SystemExit, match=r"extra \[cli\]"):
        main()
