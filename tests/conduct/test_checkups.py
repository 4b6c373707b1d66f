"""Replicas of whom calls tell nothing are checked: they return without a caller's help, and cost what was allowed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest

import mlbalance_client as mlb
from mlbalance_client.events import (
    Event,
    HealthCheckFailed,
    HealthCheckPassed,
    ReplicaEjected,
    ReplicaReturned,
)
from mlbalance_client.simulator.model.fleet import Fleet

from ..scripted import Exchange, Scripted
from ..test_client import PATH, chat, config

pytestmark = pytest.mark.anyio

OFTEN = {"interval_s": 0.1, "timeout_s": 5.0}
EJECTS = {"consecutive_failures": 1, "ejection_base_s": 600, "ejection_max_s": 600, "rest_base_s": 0}
ANSWER = {"choices": [{"finish_reason": "length"}], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
REPORT = "x-mlbalance-load: v=1;epoch=e;seq=1;state=ready;running=1;subscribers=600\r\n"
REPORTS = {"kind": "stream", "expiry_s": 600}

BUSY = {"error": {"message": "The engine is currently busy and cannot accept new requests.", "code": 503}}


class Engine:
    """An engine whose server and model are well or ill, with these words; notes who asked for what."""

    def __init__(
        self,
        *,
        calls: int = 200,
        health: int = 200,
        model: int = 200,
        words: dict[str, Any] | None = None,
        report: str = "",
    ) -> None:
        self.report = report
        self.calls, self.health, self.model, self.words = calls, health, model, words or {}
        self.checks: list[Exchange] = []
        self.models: list[Exchange] = []
        self.called = 0

    def asked(self, path: str) -> int:
        """How often it was for this page."""
        return sum(exchange.path == path for exchange in self.checks)

    def __call__(self, exchange: Exchange) -> None:
        if exchange.head.startswith(b"GET"):
            self.checks.append(exchange)
            exchange.answer(self.health if exchange.path == "/health" else 404)
        elif b'"content":"."' in exchange.body:
            self.models.append(exchange)
            exchange.answer(self.model, ANSWER if self.model < 400 else self.words)
        else:
            self.called += 1
            exchange.answer(self.calls, ANSWER if self.calls < 400 else self.words, self.report)


def checked(
    *servers: Scripted, load_reports: dict[str, Any] | None = None, **health: Any
) -> mlb.BalancerConfig:
    return config(
        *servers,
        load_reports=load_reports or {"kind": "none"},
        health_checks={**OFTEN, **health},
        outlier_detection=EJECTS,
        slow_start={"window_s": 1},
    )


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(20):
        while not condition():
            await anyio.sleep(0.005)


def of(heard: list[Event], *kinds: type[Any]) -> list[Any]:
    return [event for event in heard if isinstance(event, kinds)]


async def eject(client: mlb.AsyncClient, heard: list[Event]) -> None:
    """Call until one is out."""
    while not of(heard, ReplicaEjected):
        assert (await client.post(PATH, json=chat(model="m"))).status_code == 200


async def test_an_ejected_replica_returns_when_its_model_answers_and_no_call_is_sacrificed() -> None:
    ill, heard = Engine(calls=500, model=500), []
    with Scripted(ill) as bad, Scripted(Engine()) as one, Scripted(Engine()) as two:
        async with mlb.AsyncClient(
            checked(bad, one, two), headers={"authorization": "Bearer secret"}
        ) as client:
            client.subscribe(heard.append)
            await eject(client, heard)
            called = ill.called
            await until(
                lambda: len(ill.models) >= 3
            )  # its server says that all is well, as a dead vLLM's does
            assert not of(heard, ReplicaReturned)
            assert len(of(heard, HealthCheckFailed)) == 1

            ill.calls = ill.model = 200
            await until(lambda: of(heard, ReplicaReturned))
            assert ill.called == called
            replica = next(r for r in client.snapshot().replicas if r.id == bad.address)
            assert replica.ejected is None
            assert (replica.last_check["check"], replica.last_check["result"]) == ("model", "passed")
            for _ in range(30):
                assert (await client.post(PATH, json=chat(model="m"))).status_code == 200
            assert ill.called > called

        asked = ill.models[0]
        assert asked.path == PATH
        assert json.loads(asked.body) == {
            "model": "m",
            "messages": [{"role": "user", "content": "."}],
            "max_tokens": 1,
        }
        assert {exchange.header("authorization") for exchange in (*ill.models, *ill.checks)} == {None}
        (failed,), (passed,) = of(heard, HealthCheckFailed), of(heard, HealthCheckPassed)
        assert (failed.replica, failed.check, passed.check) == (bad.address, "model", "model")
        assert "500" in failed.why
        assert passed.after_s > 0


async def test_an_engine_that_says_it_is_busy_is_neither_ejected_nor_ill() -> None:
    full, heard = Engine(calls=503, words=BUSY), []
    with Scripted(full) as one, Scripted(Engine()) as two, Scripted(Engine()) as three:
        async with mlb.AsyncClient(checked(one, two, three)) as client:
            client.subscribe(heard.append)
            for _ in range(30):
                assert (await client.post(PATH, json=chat(model="m"))).status_code == 200
            assert full.called >= 10
            assert not of(heard, ReplicaEjected)

            full.calls = 500
            await eject(client, heard)
            full.model = 503
            await until(lambda: len(full.models) >= 3)
            assert not of(heard, ReplicaReturned, HealthCheckFailed)
            full.calls = full.model = 200
            await until(lambda: of(heard, ReplicaReturned))


async def test_a_server_that_is_ill_is_not_asked_for_its_model() -> None:
    ill, heard = Engine(calls=500, health=503), []
    with Scripted(ill) as bad, Scripted(Engine()) as one, Scripted(Engine()) as two:
        async with mlb.AsyncClient(checked(bad, one, two)) as client:
            client.subscribe(heard.append)
            await eject(client, heard)
            await until(lambda: len(ill.checks) >= 3)
            assert not ill.models
            ill.calls = ill.health = 200
            await until(lambda: of(heard, ReplicaReturned))
            assert ill.models


@pytest.mark.parametrize("never", [{"model": "never"}, {"max_tokens_per_min": 0}])
async def test_a_server_alone_proves_nothing_of_a_model_that_failed_calls(never: dict[str, Any]) -> None:
    ill, heard = Engine(calls=500), []
    with Scripted(ill) as bad, Scripted(Engine()) as one, Scripted(Engine()) as two:
        async with mlb.AsyncClient(checked(bad, one, two, **never)) as client:
            client.subscribe(heard.append)
            await eject(client, heard)
            await until(lambda: len(ill.checks) >= 4)
            assert not ill.models
            assert not of(heard, ReplicaReturned)


async def test_one_that_refused_connections_returns_when_its_server_answers() -> None:
    heard: list[Event] = []
    with Scripted(Engine()) as one, Scripted(Engine()) as two:
        with Scripted(Engine()) as gone:
            settings = checked(gone, one, two, model="never")
        async with mlb.AsyncClient(settings) as client:
            client.subscribe(heard.append)
            await eject(client, heard)
            await until(lambda: of(heard, HealthCheckFailed))
            host, _, port = gone.address.rpartition(":")
            with Scripted(Engine(), host, int(port)):
                await until(lambda: of(heard, ReplicaReturned))
                assert of(heard, HealthCheckPassed)


async def test_however_many_clients_one_had_it_is_looked_at_soon_again_after_it_fell() -> None:
    heard: list[Event] = []
    with Scripted(Engine(report=REPORT)) as gone, Scripted(Engine()) as one:
        async with mlb.AsyncClient(checked(gone, one, load_reports=REPORTS, model="never")) as client:
            client.subscribe(heard.append)
            for _ in range(4):
                await client.post(PATH, json=chat(model="m"))
            gone.stop()
            await eject(client, heard)
            await until(lambda: of(heard, HealthCheckFailed))
            assert next(r for r in client.snapshot().replicas if r.id == gone.address).report is not None
            host, _, port = gone.address.rpartition(":")
            with Scripted(Engine(), host, int(port)):
                await until(lambda: of(heard, ReplicaReturned))


async def test_the_many_clients_of_one_that_answers_share_its_checks() -> None:
    ill, idle, heard = Engine(report=REPORT), Engine(), []
    with Scripted(ill) as bad, Scripted(idle) as one, Scripted(Engine()) as two:
        async with mlb.AsyncClient(checked(bad, one, two, load_reports=REPORTS, model="never")) as client:
            client.subscribe(heard.append)
            for _ in range(3):
                await client.post(PATH, json=chat(model="m"))
            ill.calls = 500
            await eject(client, heard)
            await until(lambda: ill.asked("/health"))
            before = idle.asked("/health")
            await until(lambda: idle.asked("/health") >= before + 3)
            assert ill.asked("/health") == 1


@pytest.mark.parametrize("kind", ["none", "stream"])
async def test_one_without_a_health_page_returns_only_once_it_can_be_reached(kind: str) -> None:
    def bare(exchange: Exchange) -> None:
        page = exchange.head.startswith(b"GET")
        exchange.answer(404 if page else 200, ANSWER, "" if page else REPORT)

    heard: list[Event] = []
    with Scripted(bare) as gone, Scripted(bare) as one:
        reports = {**REPORTS, "kind": kind}
        async with mlb.AsyncClient(checked(gone, one, load_reports=reports, model="never")) as client:
            client.subscribe(heard.append)
            client.balancer.engine.start()
            await until(lambda: all(replica.last_check for replica in client.snapshot().replicas))
            for _ in range(4):
                await client.post(PATH, json=chat(model="m"))
            gone.stop()
            await eject(client, heard)
            await until(lambda: of(heard, HealthCheckFailed, ReplicaReturned))
            assert not of(heard, ReplicaReturned)
            host, _, port = gone.address.rpartition(":")
            with Scripted(bare, host, int(port)):
                await until(lambda: of(heard, ReplicaReturned))


async def test_silent_replicas_are_asked_for_their_server_and_no_more() -> None:
    idle = Engine()
    with Scripted(idle) as server:
        async with mlb.AsyncClient(checked(server)) as client:
            await client.post(PATH, json=chat(model="m"))
            await until(lambda: len(idle.checks) >= 2)
            assert not idle.models
            assert {exchange.path for exchange in idle.checks} == {"/health"}
            assert client.snapshot().replicas[0].last_check["result"] == "passed"


async def test_of_those_whose_report_is_fresh_not_even_the_server_is_asked() -> None:
    told, untold = Engine(report=REPORT), Engine()
    with Scripted(told) as one, Scripted(untold) as two:
        async with mlb.AsyncClient(checked(one, two, load_reports=REPORTS)) as client:
            for _ in range(2):
                await client.post(PATH, json=chat(model="m"))
            await until(lambda: untold.asked("/health") >= 3)
            assert not told.asked("/health")


async def test_their_models_too_where_that_is_wished() -> None:
    idle = Engine()
    with Scripted(idle) as server:
        async with mlb.AsyncClient(checked(server, model="silent")) as client:
            await client.post(PATH, json=chat(model="m"))
            await until(lambda: idle.models)


async def test_a_silent_replica_that_fails_its_checks_is_ejected_before_a_call_finds_out() -> None:
    ill, heard = Engine(health=503), []
    with Scripted(ill) as bad, Scripted(Engine()) as one, Scripted(Engine()) as two:
        async with mlb.AsyncClient(checked(bad, one, two)) as client:
            client.subscribe(heard.append)
            client.balancer.engine.start()
            await until(lambda: of(heard, ReplicaEjected))
        assert of(heard, ReplicaEjected)[0].replica == bad.address
        assert ill.called == 0


async def test_checks_bear_the_headers_that_are_configured_and_show_them_to_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "mlbalance_client")
    idle, heard = Engine(), []
    with Scripted(idle) as server:
        settings = checked(server, model="silent", headers={"Authorization": "Bearer hidden"})
        assert "hidden" not in f"{settings!r} {settings.redacted()}"
        async with mlb.AsyncClient(settings) as client:
            client.subscribe(heard.append)
            await client.post(PATH, json=chat(model="m"))
            await until(lambda: idle.models and idle.checks)
            assert "hidden" not in f"{heard} {client.snapshot()} {caplog.text}"
        assert {e.header("authorization") for e in (*idle.models, *idle.checks)} == {"Bearer hidden"}


async def test_a_check_that_may_not_see_says_so_once_and_nothing_of_health(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guarded = Engine(health=401)
    with Scripted(guarded) as server:
        async with mlb.AsyncClient(checked(server)) as client:
            client.balancer.engine.start()
            await until(lambda: len(guarded.checks) >= 3)
            assert client.snapshot().replicas[0].ejected is None
    assert [record.message.count("health_checks.headers") for record in caplog.records] == [1]


async def test_a_page_that_is_configured_and_not_there_is_warned_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    one, two = Engine(model=401), Engine()
    with Scripted(one) as first, Scripted(two) as second:
        async with mlb.AsyncClient(checked(first, second, path="/nix", model="silent")) as client:
            await client.post(PATH, json=chat(model="m"))
            await until(lambda: one.models and len(one.checks) >= 3 and len(two.checks) >= 3)
            assert [row.ejected for row in client.snapshot().replicas] == [None, None]
    # Of what is wrong besides there is a warning of its own.
    told = [record.message for record in caplog.records]
    assert [sum(setting in line for line in told) for setting in ("health_checks.path", ".headers")] == [1, 1]


@pytest.mark.parametrize(
    "headers",
    [{"": "x"}, {"a b": "x"}, {"Host": "x"}, {"ok": "two\r\nlines"}, {"ok": "ä"}, {"ok": " padded"}],
)
def test_headers_that_cannot_be_sent_are_refused_without_showing_them(headers: dict[str, str]) -> None:
    with pytest.raises(mlb.ConfigError, match=r"health_checks\.headers") as caught:
        mlb.BalancerConfig(
            discovery={"kind": "static", "replicas": ["http://a:1"]}, health_checks={"headers": headers}
        )
    assert "lines" not in str(caught.value)


async def test_nothing_is_asked_where_checks_are_off() -> None:
    watched, ignored = Engine(), Engine()
    with Scripted(watched) as one, Scripted(ignored) as two:
        async with (
            mlb.AsyncClient(checked(one)) as client,
            mlb.AsyncClient(checked(two, enabled=False)) as other,
        ):
            client.balancer.engine.start()
            other.balancer.engine.start()
            await until(lambda: len(watched.checks) >= 3)
        assert not ignored.checks


async def test_of_the_open_inference_protocol_the_models_readiness_is_asked() -> None:
    asked: list[str] = []

    def triton(exchange: Exchange) -> None:
        asked.append(exchange.head.split(b" HTTP", 1)[0].decode())
        exchange.answer(200, b"")

    infer = "/v2/models/m%2F1/versions/2/infer"
    with Scripted(triton) as server:
        async with mlb.AsyncClient(checked(server, model="silent", max_tokens_per_min=0)) as client:
            await client.post(infer, json={"inputs": []})
            await until(lambda: "GET /v2/models/m%2F1/ready" in asked)


async def test_a_check_under_way_ends_with_its_client() -> None:
    def hangs(exchange: Exchange) -> None:
        reached.append(exchange)
        gone.append(exchange.wait_gone())

    reached: list[Exchange] = []
    gone: list[bool] = []
    with Scripted(hangs) as server:
        async with mlb.AsyncClient(checked(server, timeout_s=600)) as client:
            client.balancer.engine.start()
            await until(lambda: reached)
            with anyio.fail_after(10):
                await client.aclose()
            assert client.balancer.engine.wire.counts() == (0, 0)
        await until(lambda: gone == [True])


# -- the simulated fleet ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [{"loading": True}, {"hanging": True}, {"failing": 1.0}])
async def test_a_simulated_replica_that_recovers_is_back_without_a_caller(
    fleet: Fleet, fault: dict[str, Any]
) -> None:
    heard: list[Event] = []
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls},
        load_reports={"kind": "none"},
        picking={"policy": "round_robin"},
        hedging={"first_guess": 1.0, "floor_s": 0.1, "saturated_at": 100.0},
        health_checks={**OFTEN, "timeout_s": 1.0, "model_timeout_s": 0.5},
        outlier_detection=EJECTS,
        slow_start={"window_s": 1},
    )
    async with mlb.AsyncClient(settings) as client:
        client.subscribe(heard.append)
        await anyio.to_thread.run_sync(lambda: fleet.set_faults(0, **fault))
        with anyio.fail_after(60):
            while not of(heard, ReplicaEjected):
                answer = await client.post(PATH, json=chat())
                assert answer.status_code == 200
        assert of(heard, ReplicaEjected)[0].replica in fleet.urls[0]
        await until(lambda: of(heard, HealthCheckFailed))
        assert not of(heard, ReplicaReturned)

        await anyio.to_thread.run_sync(lambda: fleet.set_faults(0))
        await until(lambda: of(heard, ReplicaReturned))


async def test_a_killed_replica_that_is_back_is_checked_though_its_report_is_fresh() -> None:
    heard: list[Event] = []
    with Fleet(2) as fleet:
        settings = mlb.BalancerConfig(
            discovery={"kind": "static", "replicas": fleet.urls},
            load_reports={"kind": "vllm", "interval_s": 0.05},
            picking={"policy": "round_robin"},
            health_checks={"interval_s": 2.0},
            outlier_detection=EJECTS,
        )
        async with mlb.AsyncClient(settings) as client:
            client.subscribe(heard.append)
            await anyio.to_thread.run_sync(lambda: fleet.kill(0))
            while not of(heard, ReplicaEjected):
                assert (await client.post(PATH, json=chat())).status_code == 200
            assert of(heard, ReplicaEjected)[0].unreachable
            await anyio.to_thread.run_sync(lambda: fleet.restart(0))
            await until(lambda: client.snapshot().replicas[0].report)
            await until(lambda: of(heard, ReplicaReturned))
            assert client.snapshot().replicas[0].last_check["check"] == "system"
