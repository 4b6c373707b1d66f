"""Following replicas' reports while calls go on: found out, shared, let go; and liars harm nobody but themselves."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import weakref
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest

import mlbalance_client as mlb
from mlbalance_client.conduct.engine import Engine
from mlbalance_client.conduct.reporting import Reporting
from mlbalance_client.config import LoadReportsConfig
from mlbalance_client.config.load_reports import report_kinds
from mlbalance_client.core.load.cadence import Cadence
from mlbalance_client.core.load.format import PrefixDelta, encode_prefixes
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.core.model import Replica
from mlbalance_client.load_reports import Fetch, complaints
from mlbalance_client.reporter import LoadBoard, ReporterSettings, events
from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.spec import EngineSpec

from ..conftest import eventually
from ..scripted import Exchange, Script, Scripted

pytestmark = pytest.mark.anyio

CHAT, LOAD = "/v1/chat/completions", "/mlbalance/v1/load"
VLLM = b"vllm:num_requests_running 1.0\nvllm:num_requests_waiting 2.0\n"


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_shared_table() -> Iterator[None]:
    yield
    gc.collect()
    assert Reporting.shared()._publishers == {}


def load(seq: int = 1, epoch: str = "e1", **figures: Any) -> bytes:
    fields = {"v": 1, "epoch": epoch, "seq": seq, "state": "ready", **figures}
    return b"event: load\nid: %d\ndata: %b\n\n" % (seq, json.dumps(fields).encode())


def prefixes(seq: int, *chains: int, epoch: str = "e1", reset: bool = True) -> bytes:
    return b"event: prefixes\ndata: %b\n\n" % encode_prefixes(
        PrefixDelta(epoch, seq, reset=reset, add=chains)
    )


def speaks(*events: bytes) -> Script:
    """A replica with a load stream that says this and then stays."""

    def script(exchange: Exchange) -> None:
        if exchange.path == LOAD:
            exchange.start_stream()
            for event in events:
                exchange.chunk(event)
            exchange.wait_gone(30)
        elif exchange.path == CHAT:
            exchange.answer(200, {"from": exchange.header("host")})
        else:
            exchange.answer(404)

    return script


def has_pages(exchange: Exchange) -> None:
    """A vLLM without a load stream."""
    if exchange.path == "/metrics":
        exchange.answer(200, VLLM)
    elif exchange.path in ("/health", CHAT):
        exchange.answer(200)
    else:
        exchange.answer(404)


def config(*servers: Scripted, kind: str = "auto", **reports: Any) -> mlb.BalancerConfig:
    replicas = [f"http://{server.address}" for server in servers]
    picking = {"residual_s": 0.0, "policy": reports.pop("policy", "prefix_tokens")}
    health_checks = reports.pop("health_checks", {})
    reports = {"kind": kind, "interval_s": 0.05, **reports}
    return mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": replicas},
        load_reports=reports,
        picking=picking,
        health_checks=health_checks,
        seed=4,
    )


def chat(text: str = "hello") -> dict[str, Any]:
    return {"model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": 4}


def told(client: mlb.AsyncClient, number: int = 0) -> dict[str, Any]:
    """What the snapshot shows of a replica's report."""
    return client.snapshot().replicas[number].report or {}


def published(client: mlb.AsyncClient, number: int = 0) -> int:
    return client.snapshot().replicas[number].published_prefixes


async def until(condition: Callable[[], bool]) -> None:
    assert await anyio.to_thread.run_sync(eventually, condition)


def asked(server: Scripted, path: str) -> list[Exchange]:
    return [exchange for exchange in list(server.exchanges) if exchange.path == path]


# -- finding and following --------------------------------------------------------------------------------------------


async def test_auto_finds_a_stream_and_the_snapshot_shows_what_it_says() -> None:
    figures = {
        "replica": "llm-7",
        "running": 3,
        "waiting": 1,
        "prefill_tokens": 1000,
        "expected_wait_s": 0.5,
        "gpu_utilization": 0.83,
        "gpu_memory_used_bytes": 61,
        "gpu_memory_total_bytes": 85,
        "batch_limit": 64,
        "kv_used": 0.4,
        "models": {"m": "warming"},
    }
    with Scripted(speaks(load(**figures), prefixes(1, 7, 8))) as server:
        async with mlb.AsyncClient(config(server)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: published(client) == 2)
            report = told(client)

    assert report["source"] == "stream"
    assert {name: report[name] for name in figures} == figures
    assert report["age_s"] >= 0


async def test_auto_falls_back_to_an_engines_pages() -> None:
    with Scripted(has_pages) as server:
        async with mlb.AsyncClient(config(server)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("source") == "vllm")
            assert (told(client)["running"], told(client)["waiting"]) == (1, 2)
            await until(lambda: len(asked(server, "/metrics")) > 3)
    assert len(asked(server, LOAD)) == 1


async def test_a_replica_that_answers_without_a_stream_is_asked_for_pages_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def long_pause(self: Cadence) -> float:
        self.least_s = 3_600.0  # as it may be after a long start
        return self.least_s

    monkeypatch.setattr(Cadence, "failed", long_pause)
    with Scripted(has_pages) as server:
        async with mlb.AsyncClient(config(server)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("source") == "vllm")


async def test_a_replica_that_was_down_is_asked_as_soon_as_it_answers_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failed = Cadence.failed
    paused: list[float] = []

    def long_pause(self: Cadence) -> float:
        paused.append(failed(self))
        self.least_s = 3_600.0  # as it may be after a long start
        return self.least_s

    monkeypatch.setattr(Cadence, "failed", long_pause)
    with Scripted(has_pages) as server:
        port = int(server.address.rpartition(":")[2])
    async with mlb.AsyncClient(config(server, health_checks={"enabled": False})) as client:
        with pytest.raises(mlb.AttemptsExhausted):
            await client.post(CHAT, json=chat())
        await until(lambda: len(paused) == 1)
        with Scripted(has_pages, port=port):
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("source") == "vllm")


async def test_auto_follows_simulated_replicas_by_pages_and_by_stream(fleet: Fleet) -> None:
    with Fleet(
        1, spec=EngineSpec().scaled(20), middleware=["mlbalance_client.reporter.LoadReporter"]
    ) as reporters:
        replicas = [*reporters.urls, *fleet.urls[:1]]
        config_ = mlb.BalancerConfig(
            discovery={"kind": "static", "replicas": replicas}, load_reports={"interval_s": 0.05}
        )
        async with mlb.AsyncClient(config_) as client:
            await client.post(CHAT, json=chat("x" * 5000))
            await until(
                lambda: (told(client, 0).get("source"), told(client, 1).get("source")) == ("stream", "vllm")
            )
            for number in range(20):
                await client.post(CHAT, json=chat(f"{number} " * 3000))
            await until(lambda: published(client, 0) > 0)


async def test_a_call_says_its_number_only_to_a_replica_that_speaks_the_stream() -> None:
    with Scripted(speaks(load(prefill_tokens=0))) as one, Scripted(has_pages) as other:
        async with mlb.AsyncClient(config(one, other, policy="round_robin")) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: bool(told(client, 0) and told(client, 1)))
            before = len(asked(one, CHAT))
            for _ in range(6):
                await client.post(CHAT, json=chat())
            name = client.balancer.engine.reporting.client
    numbers = [exchange.header("x-mlbalance-call") for exchange in asked(one, CHAT)[before:]]
    assert len(numbers) == 3
    assert all(number is not None and number.startswith(f"{name}.") for number in numbers)
    assert len(asked(other, CHAT)) >= 3
    assert not any(exchange.header("x-mlbalance-call") for exchange in asked(other, CHAT))
    assert asked(one, LOAD)[0].header("x-mlbalance-client") == name


async def test_it_comes_back_to_its_place_and_a_restarted_replica_starts_anew() -> None:
    lives = iter([[prefixes(5, 1, 2, 3), load(5, "e1")], [prefixes(1, 2, 9, epoch="e2"), load(6, "e2")]])

    def script(exchange: Exchange) -> None:
        if exchange.path != LOAD:
            exchange.answer(200)
            return
        events = next(lives, None)
        exchange.start_stream()
        for event in events or ():
            exchange.chunk(event)
        if events and b'"e1"' in events[1]:
            exchange.end_stream()
        else:
            exchange.wait_gone(30)

    with Scripted(script) as server:
        async with mlb.AsyncClient(config(server, kind="stream")) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("epoch") == "e2" and published(client) == 2)
            assert len(Reporting.shared()._publishers) == 1
    assert [e.header("last-event-id") for e in asked(server, LOAD)] == [None, "5"]


async def test_a_wrong_token_is_told_once_and_pages_are_read_instead(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.path == LOAD:
            exchange.answer(401)
        else:
            has_pages(exchange)

    with Scripted(script) as server, caplog.at_level(logging.WARNING, "mlbalance_client"):
        async with mlb.AsyncClient(config(server, token="wrong")) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("source") == "vllm")
    assert asked(server, LOAD)[0].header("authorization") == "Bearer wrong"
    assert not any(e.header("authorization") for e in server.exchanges if e.path != LOAD)
    assert [r.levelname for r in caplog.records if "token" in r.getMessage()] == ["WARNING"]


async def test_a_wrong_token_is_told_once_however_often_it_is_tried(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cadence, "failed", lambda self: 0.0)
    with Scripted(lambda exchange: exchange.answer(401 if exchange.path == LOAD else 200)) as server:
        with caplog.at_level(logging.WARNING, "mlbalance_client"):
            async with mlb.AsyncClient(config(server, kind="stream")) as client:
                await client.post(CHAT, json=chat())
                await until(lambda: len(asked(server, LOAD)) >= 5)
    assert len([r for r in caplog.records if "token" in r.getMessage()]) == 1


@pytest.mark.parametrize(
    ("kind", "there"), [("stream", "/mlbalance/v1/load: status 404"), ("ollama", "/api/ps: answers 404")]
)
async def test_a_replica_that_has_no_reports_of_the_kind_that_is_configured_is_told_once(
    kind: str, there: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cadence, "failed", lambda self: 0.0)
    with Scripted(has_pages) as server, caplog.at_level(logging.WARNING, "mlbalance_client"):
        async with mlb.AsyncClient(config(server, kind=kind)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: len([e for e in server.exchanges if e.path not in ("/health", CHAT)]) >= 9)
    (line,) = [r.getMessage() for r in caplog.records if "load_reports.kind" in r.getMessage()]
    assert there in line
    assert f"of load_reports.kind '{kind}'" in line


def lines_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of load reports, but for whose they are."""
    said = [(r.levelname, r.getMessage()) for r in caplog.records if r.levelno >= logging.INFO]
    return [
        f"{level} {text.partition(': ')[2]}" for level, text in said if text.startswith("load reports of ")
    ]


async def test_each_outage_is_told_of_and_its_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complaints, "_BETWEEN_S", 0.0)
    monkeypatch.setattr(Cadence, "failed", lambda self: 0.02)
    metrics = {"status": 200, "body": VLLM}

    def script(exchange: Exchange) -> None:
        if exchange.path == "/metrics":
            exchange.answer(metrics["status"], metrics["body"])
        else:
            has_pages(exchange)

    outages: list[tuple[int, bytes, str]] = [
        (200, VLLM.replace(b"1.0", b"NaN"), "(vllm): vllm:num_requests_running has no usable value"),
        (500, b"", "/metrics: answers 500"),
        (404, b"", "(vllm): neither /metrics nor /load is there"),
        (200, b"<html>", "(vllm): no vllm:num_requests_running; no vllm:num_requests_waiting"),
    ]
    with Scripted(script) as server, caplog.at_level(logging.INFO, "mlbalance_client"):
        async with mlb.AsyncClient(config(server, kind="vllm")) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("waiting") == 2)
            for status, body, line in outages:
                metrics.update(status=status, body=body)
                await until(lambda line=line: any(line in said for said in lines_of(caplog)))
                metrics.update(status=200, body=VLLM)
                await until(lambda: lines_of(caplog)[-1] == "INFO understood again")

    said = [line for line in lines_of(caplog) if line != "INFO understood again"]
    assert [line.partition(" ")[0] for line in said] == ["WARNING"] * 4
    assert all(line in text for (_, _, line), text in zip(outages, said, strict=True))


async def test_auto_tells_of_a_stream_that_is_gone_but_of_none_that_never_was(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complaints, "_BETWEEN_S", 0.0)
    streams = iter([load()])

    def script(exchange: Exchange) -> None:
        if exchange.path == LOAD and (event := next(streams, None)):
            exchange.start_stream()
            exchange.chunk(event)
            exchange.end_stream()
        else:
            has_pages(exchange)

    with (
        Scripted(script) as server,
        Scripted(has_pages) as other,
        Scripted(lambda exchange: exchange.answer(404)) as stranger,
        caplog.at_level(logging.INFO, "mlbalance_client"),
    ):
        checks = {"enabled": False}
        async with mlb.AsyncClient(config(server, other, stranger, health_checks=checks)) as client:
            await client.post(CHAT, json=chat())
            await until(
                lambda: (
                    told(client, 0).get("source") == "vllm"
                    and told(client, 1).get("source") == "vllm"
                    and len(asked(stranger, "/metrics")) > 0
                )
            )
    assert lines_of(caplog) == ["WARNING /mlbalance/v1/load: status 404"]


# -- what reports are for ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["draining", "starting", "overloaded"])
async def test_a_replica_that_takes_no_calls_gets_none(state: str) -> None:
    with Scripted(speaks(load(state=state))) as closed, Scripted(speaks(load())) as open_:
        async with mlb.AsyncClient(config(closed, open_)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: bool(told(client, 0) and told(client, 1)))
            before = len(asked(closed, CHAT))
            for number in range(20):
                await client.post(CHAT, json=chat(str(number)))
    assert len(asked(closed, CHAT)) == before
    assert len(asked(open_, CHAT)) >= 20


async def test_calls_go_to_whoever_says_that_it_holds_their_beginning() -> None:
    text = "a long shared beginning " * 400
    with Scripted(speaks(load(prefill_tokens=0))) as other:
        async with mlb.AsyncClient(config(other, kind="none")) as asker:
            engine = asker.balancer.engine
            reading = engine._dialect("POST", CHAT).read(CHAT, json.dumps(chat(text)).encode())
            chain = engine.demand(reading, mlb.CallOptions()).fingerprint.chain
        with Scripted(speaks(load(prefill_tokens=0), prefixes(1, *chain))) as holder:
            async with mlb.AsyncClient(config(other, holder)) as client:
                await client.post(CHAT, json=chat())
                await until(lambda: published(client, 1) == len(chain) and bool(told(client, 0)))
                answer = await client.post(CHAT, json=chat(text))
    assert answer.json() == {"from": holder.address}
    assert "says that it holds" in answer.extensions["mlbalance"].reason


@pytest.mark.parametrize(
    ("header", "source"),
    [
        ("endpoint-load-metrics: TEXT named_metrics.num_requests_waiting=4", "orca"),
        ("x-mlbalance-load: v=1;epoch=e;seq=3;state=ready;waiting=4", "answer"),
    ],
)
async def test_what_answers_say_in_passing_is_heard(header: str, source: str) -> None:
    with Scripted(lambda exchange: exchange.answer(200, headers=f"{header}\r\n")) as server:
        async with mlb.AsyncClient(config(server, kind="orca")) as client:
            await client.post(CHAT, json=chat())
            assert (told(client)["source"], told(client)["waiting"]) == (source, 4)
    assert server.exchanges[0].header("endpoint-load-metrics-format") == "text"
    assert [exchange.path for exchange in server.exchanges] == [CHAT]


@pytest.mark.parametrize(("status", "source"), [(200, "stream"), (401, "answer")])
async def test_a_report_says_whether_the_stream_or_an_answer_told_it(status: int, source: str) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.path == LOAD and status == 200:
            speaks(load(9, "e", waiting=1))(exchange)
        elif exchange.path == LOAD:
            exchange.answer(status)
        else:
            exchange.answer(200, headers="x-mlbalance-load: v=1;epoch=e;seq=3;state=ready;waiting=4\r\n")

    with Scripted(script) as server:
        async with mlb.AsyncClient(config(server, kind="stream")) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("source") == source)
            assert told(client).get("pushed", False) is (source == "stream")


@pytest.mark.parametrize(
    ("sent", "line"),
    [
        ({}, "WARNING none of its first 16 answers bears an endpoint-load-metrics header"),
        ({0: "JSON {", 1: "JSON {", 9: "JSON {"}, "WARNING ORCA: not JSON"),
        ({5: "TEXT eps=0"}, ""),
        ({5: "TEXT named_metrics.num_requests_waiting=4"}, ""),
    ],
)
async def test_headers_that_never_come_or_cannot_be_read_are_told_of_once(
    sent: dict[int, str], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = itertools.count()

    def script(exchange: Exchange) -> None:
        value = sent.get(next(numbers))
        exchange.answer(200, headers=f"endpoint-load-metrics: {value}\r\n" if value else "")

    checks = {"enabled": False}
    with Scripted(script) as server, caplog.at_level(logging.INFO, "mlbalance_client"):
        async with mlb.AsyncClient(config(server, kind="orca", health_checks=checks)) as client:
            for _ in range(15):
                await client.post(CHAT, json=chat())
            assert "none of" not in "".join(lines_of(caplog))
            for _ in range(10):
                await client.post(CHAT, json=chat())
    assert len(lines_of(caplog)) == (1 if line else 0)
    assert all(said.startswith(line) for said in lines_of(caplog))


@pytest.mark.parametrize("value", ["v=9", "v=1;epoch=e;seq=nan;state=ready", ";" * 9000, "v=1;epoch=%;seq=1"])
async def test_nonsense_in_passing_harms_no_call(value: str) -> None:
    header = f"x-mlbalance-load: {value}\r\nendpoint-load-metrics: JSON {{{{\r\n"
    with Scripted(lambda exchange: exchange.answer(200, headers=header)) as server:
        async with mlb.AsyncClient(config(server, kind="orca")) as client:
            assert (await client.post(CHAT, json=chat())).status_code == 200
            assert told(client) == {}


@pytest.mark.alone
async def test_an_expensive_call_asks_afresh_before_it_is_placed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cadence, "first_s", lambda self: 0.0)
    page = json.dumps({"loads": [{"num_running_reqs": 1, "num_waiting_reqs": 0}]}).encode()

    def script(exchange: Exchange) -> None:
        exchange.answer(200, page if exchange.path.startswith("/v1/loads") else None)

    with Scripted(script) as server:
        reports = {
            "kind": "sglang",
            "interval_s": 60,
            "expiry_s": 60,
            "on_demand_tokens": 1000,
            "timeout_s": 60,
        }
        async with mlb.AsyncClient(config(server, **reports)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("age_s", 0.0) > 0.25)
            asked_before = len(server.exchanges)
            await client.post(CHAT, json=chat())
            assert [e.path for e in server.exchanges[asked_before:]] == [CHAT]
            await client.post(CHAT, json=chat("word " * 100_000))
    paths = [e.path.partition("?")[0] for e in server.exchanges[asked_before + 1 :]]
    assert "/v1/loads" in paths
    assert paths[-1] == CHAT


async def test_asking_that_fails_in_any_way_harms_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cadence, "first_s", lambda self: 0.0)
    reports = {"kind": "sglang", "interval_s": 60, "expiry_s": 60, "on_demand_tokens": 1, "timeout_s": 60}
    page = json.dumps({"loads": [{"num_running_reqs": 1, "num_waiting_reqs": 0}]}).encode()
    with Scripted(lambda exchange: exchange.answer(200, page)) as server:
        async with mlb.AsyncClient(config(server, **reports)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("age_s", 0.0) > 0.25)
            followed = next(iter(client.balancer.engine.reporting._followed.values()))
            broken = anyio.Event()

            async def fail(*args: object) -> None:
                broken.set()
                raise LookupError("a plugin's own mistake")

            monkeypatch.setattr(type(followed.format), "read", fail)
            assert (await client.post(CHAT, json=chat("word " * 100_000))).status_code == 200
            assert broken.is_set()


# -- bad replicas -----------------------------------------------------------------------------------------------------


def floods(exchange: Exchange) -> None:
    exchange.start_stream()
    seq = 0
    while True:
        seq += 1
        exchange.chunk(load(seq) + prefixes(seq, seq) + b"event: load\ndata: nonsense\n\n")


swallowed: list[bool] = []


def huge(exchange: Exchange) -> None:
    exchange.start_stream()
    for _ in range(170):
        exchange.chunk(b"x" * 60_000)
    swallowed.append(False)


def lies(exchange: Exchange) -> None:
    exchange.start_stream()
    for seq, figures in enumerate(
        [
            {"prefill_tokens": -5, "expected_wait_s": -1e9, "gpu_utilization": 77},
            {"waiting": 10**400, "running": 1e308},
            {"state": "fine"},
            {"models": {str(n): "ready" for n in range(2000)}},
            {"acked": {"x": "y"}},
        ],
        1,
    ):
        exchange.chunk(load(seq, **figures))
    exchange.chunk(
        b'event: load\ndata: {"v":1,"epoch":"e1","seq":9,"state":"ready","prefill_tokens":NaN}\n\n'
    )
    exchange.wait_gone(30)


def silent(exchange: Exchange) -> None:
    exchange.start_stream()
    exchange.wait_gone(30)


def hangs(exchange: Exchange) -> None:
    exchange.wait_gone(30)


def many_lives(exchange: Exchange) -> None:
    exchange.start_stream()
    for seq in range(1, 150):
        exchange.chunk(prefixes(seq, *range(seq << 48, (seq << 48) + 50), epoch=f"e{seq}"))
    exchange.wait_gone(30)


@pytest.mark.alone
@pytest.mark.parametrize("bad", [floods, huge, lies, silent, hangs, many_lives])
async def test_a_bad_stream_harms_nobody_else(bad: Script) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.path == LOAD:
            bad(exchange)
        else:
            exchange.answer(200, {"from": "bad"})

    honest = speaks(load(2, prefill_tokens=100, replica="honest"), prefixes(1, 5, 6))
    with Scripted(script) as liar, Scripted(honest) as other:
        async with mlb.AsyncClient(config(liar, other)) as client:
            for number in range(40):
                assert (await client.post(CHAT, json=chat(str(number) * 100))).status_code == 200
            await until(lambda: bool(asked(liar, LOAD)) and published(client, 1) == 2)
            assert told(client, 1)["replica"] == "honest"
            for number in range(40):
                assert (await client.post(CHAT, json=chat(str(number) * 100))).status_code == 200
            assert len(Reporting.shared()._publishers) <= 2
            assert all(row.waiting_s >= 0 for row in client.snapshot().replicas)
            assert client.snapshot().outstanding_tokens == 0
    assert not swallowed  # nobody has read 10 MB of an event to their end


async def test_who_claims_anothers_name_or_prefixes_takes_neither_from_it() -> None:
    with Scripted(speaks(load(prefill_tokens=0), prefixes(1, 5, 6))) as other:
        lie = speaks(load(prefill_tokens=0, replica=other.address), prefixes(1, 5, 6))
        with Scripted(lie) as liar:
            async with mlb.AsyncClient(config(liar, other)) as client:
                await client.post(CHAT, json=chat())
                await until(lambda: published(client, 0) == published(client, 1) == 2)
                fleet = client.balancer.engine.fleet
                assert fleet.serving.identities == {}
                found = fleet.publishers.deepest([5, 6], 0b11, 2)
    assert sorted(found) == [(0, 2), (1, 2)]


async def test_who_changes_its_name_all_the_time_is_not_followed_in_it() -> None:
    events = [load(seq, replica=f"name-{seq}") for seq in range(1, 20)]
    with Scripted(speaks(*events)) as server:
        async with mlb.AsyncClient(config(server)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client).get("seq") == 19)
            assert client.balancer.engine.fleet.serving.identities == {0: "name-1"}


# -- letting go -------------------------------------------------------------------------------------------------------


async def test_nothing_is_left_after_closing(anyio_backend: str) -> None:
    with Scripted(speaks(load(), prefixes(1, 5))) as one, Scripted(has_pages) as two:
        tasks_before = asyncio.all_tasks() if anyio_backend == "asyncio" else set()
        client = mlb.AsyncClient(config(one, two))
        await client.post(CHAT, json=chat())
        await until(lambda: published(client, 0) == 1 and bool(told(client, 1)))
        await client.aclose()
        engine = client.balancer.engine
        assert engine.wire.counts() == (0, 0)
        assert Reporting.shared()._publishers == {}
        if anyio_backend == "asyncio":
            assert asyncio.all_tasks() == tasks_before


async def test_a_client_dropped_unclosed_is_collected_and_leaves_nothing() -> None:
    def script(exchange: Exchange) -> None:
        if exchange.path == LOAD:
            exchange.start_stream()
            exchange.chunk(load() + prefixes(1, 5))
            exchange.wait_gone(30)
            gone.append(True)
        else:
            exchange.answer(200)

    gone: list[bool] = []
    with Scripted(script) as server:
        held = [mlb.AsyncClient(config(server))]
        await held[0].post(CHAT, json=chat())
        await until(lambda: published(held[0]) == 1)
        engine = weakref.ref(held[0].balancer.engine)
        held.clear()
        gc.collect()
        assert engine() is None
        await until(lambda: bool(gone))
        await until(lambda: Reporting.shared()._publishers == {})


def now_in_the_fleet(engine: Engine, *replicas: Replica) -> None:
    engine.fleet.update(replicas)
    engine._on_change()


async def test_a_replica_that_leaves_the_fleet_is_let_go_at_once_and_one_that_moves_is_followed() -> None:
    with (
        Scripted(speaks(load(1, "e1"), prefixes(1, 5))) as one,
        Scripted(speaks(load(1, "e2"), prefixes(1, 5, 6, epoch="e2"))) as two,
    ):
        async with mlb.AsyncClient(config(one)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: published(client) == 1)
            engine = client.balancer.engine
            (replica,) = engine.fleet.replicas
            moved = type(replica)(replica.id, f"http://{two.address}")
            now_in_the_fleet(engine, moved)
            assert Reporting.shared()._publishers == {}
            await until(lambda: published(client) == 2)
            now_in_the_fleet(engine)
            assert Reporting.shared()._publishers == {}
            assert engine.reporting._followed == {}
            now_in_the_fleet(engine, moved)
            await until(lambda: published(client) == 2)


async def test_two_clients_share_what_a_replica_publishes() -> None:
    with Scripted(speaks(load(), prefixes(1, 5, 6))) as server:
        async with mlb.AsyncClient(config(server)) as one, mlb.AsyncClient(config(server)) as two:
            for client in (one, two):
                await client.post(CHAT, json=chat())
            await until(lambda: published(one) == published(two) == 2)
            (publisher,) = Reporting.shared()._publishers.values()
            assert publisher.followers == 2
            await one.aclose()
            assert (published(two), publisher.followers) == (2, 1)


async def test_a_client_without_calls_asks_less_until_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rested = []
    monkeypatch.setattr(Cadence, "first_s", lambda self: 0.0)
    answered = Cadence.answered

    def rests(self: Cadence, took_s: float, *, calls: bool) -> float:
        rested.append(not calls)
        pause_s = answered(self, took_s, calls=calls)
        return pause_s if calls else 3600.0

    monkeypatch.setattr(Cadence, "answered", rests)
    with Scripted(has_pages) as server:
        async with mlb.AsyncClient(config(server, kind="vllm")) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: rested[-1:] == [True])
            before = len(asked(server, "/metrics"))
            await client.post(CHAT, json=chat())
            await until(lambda: len(asked(server, "/metrics")) > before)


# -- leases, whose callers and servers describe calls by hand ---------------------------------------------------------


def serves(board: LoadBoard) -> Script:
    """The load stream of a board, as a server without ASGI has it."""

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        for data in events(board, exchange.header("last-event-id"), exchange.header("x-mlbalance-client")):
            exchange.chunk(data)

    return script


def replicas(picking: mlb.Balancer) -> list[dict[str, Any]]:
    return [row.report or {} for row in picking.snapshot().replicas]


async def test_a_lease_is_counted_when_its_server_says_so_by_the_id_that_it_was_sent() -> None:
    board = LoadBoard(ReporterSettings(gpu=False))
    first, call, other = (mlb.Call(prompt=f"{word} " * 100_000, model="llama") for word in ("a", "bb", "ccc"))
    with Scripted(serves(board)) as server:
        async with mlb.Balancer(config(server, kind="stream")) as picking:
            async with picking.acquire(first) as lease:
                lease.first_content()
                await until(lambda: replicas(picking) != [{}])
            account = picking._engine.fleet.ledger.account(0)
            async with picking.acquire(call) as lease:
                client, _, number = lease.call_id.partition(".")
                assert lease.call_id == f"{client}.{number}"
                board.begin(prompt_tokens=10, call_id=f"{client}x.1")
                await until(lambda: replicas(picking)[0].get("running") == 1)
                assert account.unknown == 1
                with board.begin(prompt=call.prompt, model="llama", call_id=lease.call_id):
                    await until(lambda: replicas(picking)[0].get("acked") == int(number))
                    assert account.unknown == 0
            async with picking.acquire(other):  # whose caller sends nothing along: by time
                assert account.unknown == 1
                board.begin(prompt_tokens=10)
                await until(lambda: account.unknown == 0)
        board.close()


@pytest.mark.parametrize("model", [None, "llama"])
async def test_a_lease_goes_where_its_text_and_model_are_held(model: str | None) -> None:
    boards = [LoadBoard(ReporterSettings(gpu=False)) for _ in range(3)]
    text = "policy line " * 800
    with boards[1].begin(prompt=text, model=model) as served:
        served.first_content()
    with Scripted(serves(boards[0])) as a, Scripted(serves(boards[1])) as b, Scripted(serves(boards[2])) as c:
        async with mlb.Balancer(config(a, b, c, kind="stream")) as picking:
            async with picking.acquire(mlb.Call(prompt="warm")):
                await until(lambda: all(replicas(picking)))
            await until(lambda: picking.snapshot().replicas[1].published_prefixes > 0)
            async with picking.acquire(mlb.Call(prompt=text, model=model)) as lease:
                assert lease.replica.url.endswith(b.address)
                assert lease.report.predicted_hit_tokens > 0
            other = picking.explain(mlb.Call(prompt=text, model="another"))
            assert other.predicted_hit_tokens == 0
        for board in boards:
            board.close()


# -- plugins ----------------------------------------------------------------------------------------------------------


class _AbacusConfig(LoadReportsConfig):
    kind: Literal["abacus"] = "abacus"  # type: ignore[assignment]


def plugin(monkeypatch: pytest.MonkeyPatch, read: Callable[[float], Awaitable[Any]]) -> None:
    """Installs the kind ``abacus``, which reads so."""

    class Abacus:
        config_type = _AbacusConfig
        kind = "abacus"
        cheap = False

        def __init__(self, config: _AbacusConfig) -> None: ...

        async def recognises(self, fetch: Fetch) -> bool:
            return True

        async def read(self, fetch: Fetch, at: float) -> Any:
            return await read(at)

    monkeypatch.setattr(Cadence, "first_s", lambda self: 0.0)
    monkeypatch.setattr(report_kinds, "load", lambda kind: Abacus)


async def test_figures_of_a_plugin_that_cannot_be_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    insane: dict[str, Any] = {"running": -5, "prefill_tokens": 10**30, "kv_used": "all", "state": "ready"}

    async def read(at: float) -> LoadReport:
        return LoadReport(source="abacus", at=at + 1e6, waiting=3, **insane)

    plugin(monkeypatch, read)
    with Scripted(has_pages) as server:
        async with mlb.AsyncClient(config(server, kind="abacus")) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: told(client) != {})
            report = dict(told(client))
    assert 0.0 <= report.pop("age_s") < 60.0
    assert {name: value for name, value in report.items() if value} == {"source": "abacus", "waiting": 3}


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        (anyio.sleep_forever, "plugin 'abacus': read has not returned within 0.08 s"),
        (anyio.lowlevel.checkpoint, "plugin 'abacus': read returned None, not a LoadReport"),
    ],
)
async def test_what_a_plugin_does_wrong_is_told_once_as_its_fault(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    reads: Callable[[], Awaitable[None]],
    said: str,
) -> None:
    begun = []

    async def read(at: float) -> None:
        begun.append(at)
        await reads()

    plugin(monkeypatch, read)
    monkeypatch.setattr(Cadence, "failed", lambda self: 0.01)
    with Scripted(has_pages) as server, caplog.at_level(logging.INFO, "mlbalance_client"):
        async with mlb.AsyncClient(config(server, kind="abacus", timeout_s=0.01)) as client:
            await client.post(CHAT, json=chat())
            await until(lambda: len(begun) > 2)
            assert (await client.post(CHAT, json=chat())).status_code == 200
    (line,) = [record.getMessage() for record in caplog.records if record.levelno > logging.INFO]
    assert said in line
