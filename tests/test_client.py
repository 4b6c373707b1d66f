"""The httpx face end to end: a drop-in, with failover, exact streams, and nothing left behind on any way out."""

from __future__ import annotations

import asyncio
import gc
import json
import ssl
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from typing import Any

import anyio
import httpx
import pytest

import mlbalance_client as mlb
from mlbalance_client import events, httpx2
from mlbalance_client.dialects import FunctionDialect, Reading
from mlbalance_client.events import Settled
from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.spec import EngineSpec

from .conftest import eventually
from .scripted import Exchange, Scripted

pytestmark = pytest.mark.anyio

PATH = "/v1/chat/completions"
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
WORD = b'data: {"choices":[{"index":0,"delta":{"content":"tok"},"finish_reason":null}]}\n\n'
OVERLOADED = b'data: {"error":{"message":"busy","type":"Service Unavailable","code":503}}\n\ndata: [DONE]\n\n'


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": 4, **more}


def config(*servers: Scripted, **sections: Any) -> mlb.BalancerConfig:
    replicas = [f"http://{server.address}" for server in servers]
    sections.setdefault("picking", {"residual_s": 0.0, "policy": "round_robin"})
    sections.setdefault("load_reports", {"kind": "none"})
    sections.setdefault("health_checks", {"enabled": False})
    return mlb.BalancerConfig(discovery={"kind": "static", "replicas": replicas}, seed=4, **sections)


def settled(client: mlb.AsyncClient) -> bool:
    """Nothing outstanding: no charge, no stream, no busy connection."""
    engine = client.balancer.engine
    return (client.snapshot().outstanding_tokens, engine.open_streams, engine.wire.counts()[1]) == (0, 0, 0)


def ok(exchange: Exchange) -> None:
    exchange.answer(200, {"from": exchange.header("host")})


def refuse(exchange: Exchange) -> None:
    exchange.answer(503, {"error": "busy"})


def reset(exchange: Exchange) -> None:
    exchange.reset()


def endless(exchange: Exchange) -> None:
    exchange.start_stream()
    exchange.chunk(ROLE)
    exchange.chunk(WORD)
    exchange.gone = exchange.wait_gone()


# -- a drop-in ------------------------------------------------------------------------------------------------------


async def test_it_is_an_httpx_client(fleet: Fleet) -> None:
    async with mlb.AsyncClient(fleet.target) as client:
        assert isinstance(client, httpx.AsyncClient)
        answer = await client.post(PATH, json=chat())

        assert answer.json()["usage"]["completion_tokens"] == 4
        report = answer.extensions["mlbalance"]
        assert report.replica in fleet.target
        assert [a.status for a in report.attempts] == [200]
        assert report.usage.output_tokens == 4
        assert report.replica in str(report.explain())
        assert settled(client)


async def test_streamed_bytes_are_what_the_replica_sent() -> None:
    sent = [ROLE, WORD[:20], WORD[20:] + WORD, b": ping\n\n", WORD, b"data: [DONE]\n\n"]

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        for piece in sent:
            exchange.chunk(piece)
        exchange.end_stream()

    with Scripted(script) as server:
        async with mlb.AsyncClient(config(server)) as client:
            async with client.stream("POST", PATH, json=chat(stream=True)) as answer:
                received = [chunk async for chunk in answer.aiter_raw()]

            assert b"".join(received) == b"".join(sent)
            assert server.exchanges[0].header("accept-encoding") == "identity"
            assert settled(client)


async def test_the_pace_of_a_stream_shows_how_busy_its_replica_is() -> None:
    stop = threading.Event()

    def talk_until_told(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(ROLE)
        while not stop.wait(0.005):
            exchange.chunk(WORD)
        exchange.wait_gone()

    def looks() -> str:
        return client.snapshot().replicas[0].looks

    with Scripted(talk_until_told) as server:
        async with mlb.AsyncClient(config(server)) as client:
            assert looks() == "unseen"
            async with client.stream("POST", PATH, json=chat(stream=True)) as response:
                async with aclosing(response.aiter_raw()) as pieces:
                    async for _ in pieces:
                        if looks() == "free":
                            break
                stop.set()
            assert looks() == "free"
            stop.clear()
            async with client.stream("POST", PATH, json=chat(stream=True)) as response:
                async with aclosing(response.aiter_raw()) as pieces:
                    await anext(pieces)
                    stop.set()
                    while looks() != "long busy":
                        await anyio.sleep(0.01)


async def test_headers_come_before_the_first_token_but_the_answer_begins_with_it(fleet: Fleet) -> None:
    async with (
        mlb.AsyncClient(fleet.target) as client,
        client.stream("POST", PATH, json=chat("x" * 40_000, stream=True)) as answer,
    ):
        async with aclosing(answer.aiter_raw()) as chunks:
            first = await anext(chunks)

    assert b'"content":"tok' in first or b'"role":"assistant"' in first
    assert answer.extensions["mlbalance"].ttft_s > 0


async def test_the_host_is_the_replicas_unless_it_is_set() -> None:
    with Scripted(ok) as server:
        async with mlb.AsyncClient(config(server)) as client:
            await client.post(PATH, json=chat())
            await client.post(PATH, json=chat(), headers={"host": "model.example"})

        assert [e.header("host") for e in server.exchanges] == [server.address, "model.example"]


async def test_wishes_are_not_sent_on_and_wrong_ones_are_refused() -> None:
    with Scripted(ok) as server:
        async with mlb.AsyncClient(config(server)) as client:
            await client.post(
                PATH, json=chat(), headers={"x-mlbalance-session": "s", "x-mlbalance-priority": "3"}
            )
            with pytest.raises(mlb.ConfigError, match="x-mlbalance-sesion is not known"):
                await client.post(PATH, json=chat(), headers={"x-mlbalance-sesion": "s"})
            with pytest.raises(mlb.ConfigError, match="must be a mlbalance_client.CallOptions"):
                await client.post(PATH, json=chat(), extensions={"mlbalance": {"session": "s"}})

        assert "x-mlbalance" not in server.exchanges[0].head.decode().lower()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("priority", "1.5", "must be a whole number, not '1.5'"),
        ("deadline", "soon", "must be a number of seconds, not 'soon'"),
        ("hedge", "maybe", "must be true or false, not 'maybe'"),
    ],
)
async def test_a_wish_that_cannot_be_read_is_named(name: str, text: str, said: str) -> None:
    async with mlb.AsyncClient("static://127.0.0.1:1") as client:
        with pytest.raises(mlb.ConfigError, match=f"^header x-mlbalance-{name} {said}$"):
            await client.post(PATH, json=chat(), headers={f"x-mlbalance-{name}": text})


async def test_a_header_counts_before_the_options_in_what_it_names() -> None:
    with Scripted(ok) as server:
        async with mlb.AsyncClient(config(server), headers={"x-mlbalance-priority": "2"}) as client:
            answer = await client.post(
                PATH,
                json=chat(),
                headers={"x-mlbalance-tenant": "header"},
                extensions={"mlbalance": mlb.CallOptions(tenant="options", priority=1)},
            )
            kept = await client.post(
                PATH, json=chat(), extensions={"mlbalance": mlb.CallOptions(tenant="options")}
            )

    told, told_of_kept = answer.extensions["mlbalance"], kept.extensions["mlbalance"]
    assert (told.tenant, told.priority) == ("header", 2)
    assert (told_of_kept.tenant, told_of_kept.priority) == ("options", 2)


@pytest.mark.parametrize("kind", [dict, lambda pairs: list(pairs.items())])
async def test_a_wish_beyond_ascii_is_told_the_way_out(kind: Any) -> None:
    with Scripted(ok) as server:
        async with mlb.AsyncClient(config(server)) as client:
            for _ in range(2):  # the second time the path is known
                with pytest.raises(
                    mlb.ConfigError, match="^header X-MLBalance-Tenant: .* 'Zürich'.*CallOptions"
                ):
                    await client.post(PATH, json=chat(), headers=kind({"X-MLBalance-Tenant": "Zürich"}))
                with pytest.raises(UnicodeEncodeError):
                    await client.post(PATH, json=chat(), headers=kind({"x-own": "Zürich"}))
                wishes = mlb.CallOptions(tenant="Zürich")
                answer = await client.post(PATH, json=chat(), extensions={"mlbalance": wishes})
                assert answer.extensions["mlbalance"].tenant == "Zürich"


async def test_another_host_is_refused_unless_allowed() -> None:
    with Scripted(ok) as fleet, Scripted(ok) as stranger:
        async with mlb.AsyncClient(config(fleet)) as client:
            with pytest.raises(mlb.ConfigError, match="allow_other_hosts"):
                await client.get(f"http://{stranger.address}/")
        async with mlb.AsyncClient(config(fleet, http={"allow_other_hosts": True})) as client:
            assert (
                await client.get(f"http://{stranger.address.replace('127.0.0.1', 'localhost')}/")
            ).status_code == 200

        assert not fleet.exchanges
        assert len(stranger.exchanges) == 1


@pytest.mark.parametrize("prefix", ["", "/pre"])
@pytest.mark.parametrize("absolute", [True, False])
async def test_a_redirect_stays_in_the_fleet(prefix: str, absolute: bool) -> None:
    def script(exchange: Exchange) -> None:
        if exchange.path == prefix + "/old":
            where = f"http://{exchange.header('host')}" if absolute else ""
            exchange.answer(307, headers=f"location: {where}{prefix}/new\r\n")
        else:
            exchange.answer(200, {"path": exchange.path})

    with Scripted(script) as server:
        async with mlb.AsyncClient(f"static://{server.address}{prefix}", follow_redirects=True) as client:
            assert (await client.post("/old", json={})).json() == {"path": prefix + "/new"}


async def test_a_stranger_gets_no_wishes_and_a_refusal_shows_no_secrets() -> None:
    with Scripted(ok) as fleet, Scripted(ok) as stranger:
        other = f"http://{stranger.address.replace('127.0.0.1', 'localhost')}/"
        async with mlb.AsyncClient(config(fleet, http={"allow_other_hosts": True})) as client:
            await client.get(other, headers={"X-MLBalance-Session": "s", "x-mine": "kept"})
        assert "x-mlbalance" not in stranger.exchanges[0].head.decode().lower()
        assert stranger.exchanges[0].header("x-mine") == "kept"
        async with mlb.AsyncClient(config(fleet), base_url="http://u:hidden1@fleet") as client:
            with pytest.raises(mlb.ConfigError) as caught:
                await client.get("https://u:hidden2@other.example/?key=hidden3")
        assert "hidden" not in str(caught.value)


def test_a_transport_that_lets_others_through_must_know_the_fleet() -> None:
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": ["http://127.0.0.1:1"]}, http={"allow_other_hosts": True}
    )
    with pytest.raises(mlb.ConfigError, match="fleet_url"):
        mlb.AsyncBalancerTransport(settings)


@pytest.mark.parametrize(
    "base_url", ["127.0.0.1", "127.0.0.1:8000", "localhost:1/v1", "fleet/v1", "ftp://fleet"]
)
@pytest.mark.parametrize("made", [mlb.AsyncClient, mlb.Client, httpx2.AsyncClient, httpx2.Client])
def test_a_base_url_that_is_not_http_is_refused_by_name(made: Any, base_url: str) -> None:
    with pytest.raises(mlb.ConfigError, match=f"base_url .*'{base_url}'.*http://fleet"):
        made("static://127.0.0.1:1", base_url=base_url)


@pytest.mark.parametrize(
    "base_url", ["http://fleet/v1", "HTTPS://fleet/v1/", "/v1", httpx.URL("http://fleet/v1")]
)
async def test_what_a_base_url_may_be(base_url: Any) -> None:
    with Scripted(ok) as server:
        async with mlb.AsyncClient(config(server), base_url=base_url) as client:
            for path in ("/chat/completions", "chat/completions"):
                assert (await client.post(path, json=chat())).status_code == 200

        assert [exchange.path for exchange in server.exchanges] == [PATH, PATH]


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_timeout_says_how_long_it_was_and_who_set_it(streamed: bool) -> None:
    def stall(exchange: Exchange) -> None:
        if streamed:
            exchange.start_stream()
            exchange.chunk(WORD)
        exchange.gone = exchange.wait_gone()

    set_by_key = {"http": {"read_timeout_s": 0.05}}
    with Scripted(stall) as server:
        for sections, options, said in (
            (set_by_key, {}, "0.05 s (http.read_timeout_s)"),
            ({}, {"timeout": httpx.Timeout(5, read=0.04)}, "0.04 s (timeout)"),
        ):
            async with mlb.AsyncClient(config(server, **sections), **options) as client:
                with pytest.raises(mlb.BalancerError) as caught:
                    await client.post(PATH, json=chat(stream=streamed))
            assert f"nothing came within {said}" in str(caught.value)


@pytest.mark.parametrize("body", [None, 5, [1], "{}", object()])
async def test_what_is_no_body_is_not_explained(body: Any) -> None:
    with Scripted(ok) as server:
        with mlb.Client(config(server)) as client:
            with pytest.raises(mlb.ConfigError, match=f"explain.*not a {type(body).__name__}"):
                client.explain(body)
        async with mlb.AsyncClient(config(server)) as client, mlb.Balancer(config(server)) as picking:
            for each in (client, picking):
                with pytest.raises(mlb.ConfigError, match=f"explain.*not a {type(body).__name__}"):
                    each.explain(body)


async def test_a_callers_own_dialect_comes_first() -> None:
    def read(body: bytes) -> Reading:
        return Reading("mine", prompt=body[4:], prompt_bytes=len(body) - 4, replayable=True)

    mine = FunctionDialect("mine", "/v1/chat/completions", read)
    with Scripted(refuse) as bad, Scripted(ok) as good:
        async with mlb.AsyncClient(config(bad, good), dialects=[mine]) as client:
            for _ in range(2):
                answer = await client.post(PATH, content=b"skipREST" * 100)
                assert answer.status_code == 200
        assert bad.exchanges


def test_a_synchronous_body_beyond_the_limit_is_sent_once_as_it_comes() -> None:
    pieces = iter([b'{"messages": [', b" " * 50, b"]}"])
    with Scripted(refuse) as one, Scripted(refuse) as two:
        with mlb.Client(config(one, two, http={"max_replay_body_bytes": 20})) as client:
            headers = {"content-length": "66"}
            assert client.post(PATH, content=pieces, headers=headers).status_code == 503

        assert [len(e.body) for e in (*one.exchanges, *two.exchanges)] == [66]


@pytest.mark.parametrize(
    "option", [{"proxy": "http://p"}, {"mounts": {"all://": None}}, {"transport": object()}, {"http2": True},
               {"limits": httpx.Limits(max_connections=5)}]
)  # fmt: skip
def test_options_that_cannot_be_honoured_are_refused_by_name(option: dict[str, Any]) -> None:
    with pytest.raises(mlb.ConfigError, match=next(iter(option))):
        mlb.AsyncClient("static://127.0.0.1:1", **option)
    with pytest.raises(mlb.ConfigError, match=next(iter(option))):
        mlb.Client("static://127.0.0.1:1", **option)


@pytest.mark.parametrize(
    "options",
    [
        {"verify": "/none.pem"},
        {"cert": "/none.pem"},
        {"cert": (__file__, "/none.key")},
        {"verify": ssl.create_default_context(), "cert": "/none.pem"},
    ],
)
def test_tls_files_that_do_not_exist_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(mlb.ConfigError, match=f"{list(options)[-1]}.*/none"):
        mlb.AsyncClient("static+https://127.0.0.1:1", **options)


@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("context", [True, ssl.create_default_context()])
async def test_tls_files_that_are_none_are_a_wrong_option(context: Any) -> None:
    async with mlb.AsyncClient("static+https://127.0.0.1:1", verify=context, cert=__file__) as client:
        with pytest.raises(mlb.ConfigError, match="'verify' and 'cert'"):
            await client.get("/")
        assert client.balancer.engine.wire.counts() == (0, 0)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        (
            "hedging",
            r"BalancerConfig.from_target\(target, hedging=...\) as the target.* MLBALANCE_HEDGING__<KEY>",
        ),
        ("discovery", r"BalancerConfig\(discovery=...\) as the target"),
        ("seed", r"BalancerConfig.from_target\(target, seed=...\) as the target.* MLBALANCE_SEED$"),
        ("config", "BalancerConfig as the target"),
        ("timeuot", "did you mean 'timeout'.*known: auth, base_url, .*, dialects, .*, target, .*, verify$"),
    ],
)
@pytest.mark.parametrize(
    "made", [mlb.AsyncClient, mlb.Client, mlb.AsyncBalancerTransport, mlb.BalancerTransport]
)
def test_an_option_that_there_is_not_is_told_the_way_out(made: Any, option: str, said: str) -> None:
    if option == "timeuot" and "Transport" in made.__name__:
        said = "unknown option 'timeuot'; known: cert, .*fleet_url.*, verify"
    with pytest.raises(mlb.ConfigError, match=said):
        made("static://127.0.0.1:1", **{option: {"enabled": False}})


def test_a_refused_option_may_say_what_is_so_anyway() -> None:
    mlb.AsyncClient("static://127.0.0.1:1", http2=False, http1=True, proxy=None, mounts=None, transport=None)


def test_a_transport_refuses_unknown_options() -> None:
    with pytest.raises(mlb.ConfigError, match="'verfy'.*verify"):
        mlb.AsyncBalancerTransport("static://127.0.0.1:1", verfy=False)


async def test_the_transport_alone_serves_a_plain_client() -> None:
    with Scripted(ok) as server:
        transport = mlb.AsyncBalancerTransport(config(server))
        async with httpx.AsyncClient(transport=transport, base_url="http://llm.example/v1") as client:
            assert (await client.post("chat/completions", json=chat())).status_code == 200

        assert server.exchanges[0].path == PATH


async def test_a_replica_with_a_path_prefix() -> None:
    with Scripted(ok) as server:
        async with mlb.AsyncClient(f"static://{server.address}/models/a") as client:
            await client.post("/v1/x?q=1", json={})

        assert server.exchanges[0].path == "/models/a/v1/x?q=1"


@pytest.mark.parametrize("prefix", ["/v1", "/gateway/v1"])
async def test_a_version_that_is_in_the_target_and_in_the_path_is_refused_in_words(prefix: str) -> None:
    with Scripted(ok) as server:
        async with mlb.AsyncClient(f"static://{server.address}{prefix}") as client:
            for path in (PATH, "/v1?x=1"):
                with pytest.raises(
                    mlb.ConfigError, match="leave it out of the target, as in http://"
                ) as caught:
                    await client.post(path, json=chat())
                assert str(caught.value).endswith(f"http://{server.address}{prefix.removesuffix('/v1')}")
            for path in ("/chat/completions", "/v10/x", "/x/v1/v1"):
                assert (await client.post(path, json=chat())).status_code == 200

        assert [exchange.path for exchange in server.exchanges] == [
            f"{prefix}/chat/completions", f"{prefix}/v10/x", f"{prefix}/x/v1/v1",
        ]  # fmt: skip


# -- failover -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("failing", "attempts"), [(refuse, 2), (reset, 2)])
async def test_what_one_replica_fails_another_answers(failing: Any, attempts: int) -> None:
    with Scripted(failing) as bad, Scripted(ok) as good:
        async with mlb.AsyncClient(config(bad, good)) as client:
            for _ in range(4):
                answer = await client.post(PATH, json=chat())

                assert answer.status_code == 200
                assert len(answer.extensions["mlbalance"].attempts) <= attempts
            assert settled(client)
        assert bad.exchanges


async def test_an_overload_inside_a_200_is_a_failure_of_its_replica() -> None:
    def overloaded(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(OVERLOADED)
        exchange.end_stream()

    def good(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(ROLE + WORD + b"data: [DONE]\n\n")
        exchange.end_stream()

    with Scripted(overloaded) as one, Scripted(good) as two:
        async with mlb.AsyncClient(config(one, two)) as client:
            for _ in range(2):
                async with client.stream("POST", PATH, json=chat(stream=True)) as answer:
                    assert b"tok" in await answer.aread()
        assert one.exchanges
    with Scripted(overloaded) as only:
        async with mlb.AsyncClient(config(only)) as client:
            answer = await client.post(PATH, json=chat(stream=True))

            assert (answer.status_code, answer.content) == (200, OVERLOADED)
            assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("way", ["breaks off", "is an error"])
async def test_a_whole_answer_that_fails_midway_is_a_failure_of_its_replica(way: str) -> None:
    def bad(exchange: Exchange) -> None:
        if way == "breaks off":
            exchange.send(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{")
            exchange.reset()
        else:
            exchange.answer(200, {"error": {"message": "busy", "type": "overloaded", "code": 503}})

    with Scripted(bad) as one, Scripted(ok) as two:
        async with mlb.AsyncClient(config(one, two)) as client:
            for _ in range(2):
                answer = await client.post(PATH, json=chat())
                assert answer.json() == {"from": two.address}
            assert settled(client)
        assert one.exchanges


async def test_a_replica_that_is_down_costs_no_call() -> None:
    with ExitStack() as stack:
        up = stack.enter_context(Scripted(ok))
        with Scripted(ok) as down:
            settings = config(up, down, retries={"max_attempts": 1})
        async with mlb.AsyncClient(settings) as client:
            for _ in range(4):
                once = mlb.CallOptions(replayable=False)
                answer = await client.post(PATH, json=chat(), extensions={"mlbalance": once})

                assert answer.status_code == 200
            assert settled(client)


async def test_what_may_not_be_sent_twice_is_not() -> None:
    with Scripted(reset) as one, Scripted(reset) as two:
        async with mlb.AsyncClient(config(one, two)) as client:
            with pytest.raises(httpx.HTTPError) as caught:
                await client.post(PATH, json=chat(store=True))
            assert isinstance(caught.value, mlb.AttemptsExhausted)

        assert len(one.exchanges) + len(two.exchanges) == 1


@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("dies", [True, False])
async def test_a_call_that_kills_its_replicas_kills_no_more_than_it_has_attempts(
    limit: int, dies: bool
) -> None:
    hit: list[Scripted] = []

    def script(exchange: Exchange) -> None:
        if b"poison" not in exchange.body:
            return ok(exchange)
        server = next(s for s in servers if s.address == exchange.header("host"))
        hit.append(server)
        if dies:
            server.stop_listening()
        return exchange.reset()

    with ExitStack() as stack:
        servers = [stack.enter_context(Scripted(script)) for _ in range(5)]
        async with mlb.AsyncClient(config(*servers, retries={"max_attempts": limit})) as client:
            for _ in servers:  # so that every replica has an idle connection
                await client.post(PATH, json=chat())
            with pytest.raises(mlb.AttemptsExhausted):
                await client.post(PATH, json=chat("poison"))
            assert settled(client)

    assert len({id(server) for server in hit}) == limit
    again = limit > 1 and not dies  # to the first one, whose connection had been idle
    assert len(hit) == limit + again


async def test_one_that_reads_and_resets_loses_no_call_that_another_can_serve() -> None:
    def script(exchange: Exchange) -> None:
        if b"second" in exchange.body and exchange.header("host") == bad.address:
            exchange.reset()
        else:
            ok(exchange)

    with Scripted(script) as bad, Scripted(script) as good:
        settings = config(bad, good, picking={"policy": "round_robin"})
        async with mlb.AsyncClient(settings) as client:
            for _ in range(2):
                await client.post(PATH, json=chat())
            for _ in range(2):
                answer = await client.post(PATH, json=chat("second"))
                assert answer.status_code == 200
            failed = [a for a in answer.extensions["mlbalance"].attempts if a.failure]
            assert all("sent again at once" in attempt.detail for attempt in failed)
            assert settled(client)

        assert sum(b"second" in exchange.body for exchange in bad.exchanges) == 2


async def test_an_answer_in_hand_is_returned_not_raised() -> None:
    with Scripted(refuse) as one, Scripted(reset) as two:
        async with mlb.AsyncClient(
            config(one, two, picking={"policy": "round_robin", "residual_s": 0})
        ) as client:
            statuses = set()
            for _ in range(2):
                answer = await client.post(PATH, json=chat())
                statuses.add(answer.status_code)
                assert answer.headers["x-should-retry"] == "false"

            assert statuses == {503}
            assert settled(client)


async def test_errors_are_also_the_librarys_own() -> None:
    with Scripted(ok) as gone:
        settings = config(gone)
    async with mlb.AsyncClient(settings) as client:
        with pytest.raises(httpx.ConnectError) as caught:
            await client.post(PATH, json=chat())

        assert isinstance(caught.value, mlb.AttemptsExhausted)
        assert isinstance(caught.value.request, httpx.Request)
        assert [a.failure for a in caught.value.attempts] == [mlb.FailureKind.CONNECT]
        sdk = {"x-stainless-retry-count": "0"}
        answer = await client.post(PATH, json=chat(), headers=sdk)
        assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
        assert float(answer.headers["retry-after"]) > 0


async def test_timeouts_are_the_callers_and_are_not_retried() -> None:
    def silent(exchange: Exchange) -> None:
        exchange.wait_gone()

    with Scripted(silent) as one, Scripted(silent) as two:
        async with mlb.AsyncClient(config(one, two), timeout=httpx.Timeout(5, read=0.1)) as client:
            with pytest.raises(httpx.ReadTimeout):
                await client.post(PATH, json=chat())
            with pytest.raises(httpx.ReadTimeout) as caught:
                soon = mlb.CallOptions(deadline_s=0.05)
                await client.post(PATH, json=chat(), extensions={"mlbalance": soon}, timeout=5)
            assert isinstance(caught.value, mlb.DeadlineExceeded)
            assert settled(client)

        assert len(one.exchanges) + len(two.exchanges) == 2


async def test_a_header_that_cannot_be_sent_is_the_callers_fault() -> None:
    with Scripted(ok) as server:
        async with mlb.AsyncClient(config(server)) as client:
            with pytest.raises(httpx.LocalProtocolError):
                await client.post(PATH, json=chat(), headers={"x": "a\nb"})
            assert settled(client)


class Pieces:
    """No generator: when a call fails midway nobody would end it."""

    def __init__(self, number: int) -> None:
        self._left = number

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        self._left -= 1
        return b"x" * 1000


async def test_a_body_too_large_to_keep_is_sent_once() -> None:
    received = []

    def count(exchange: Exchange) -> None:
        received.append(exchange.header("transfer-encoding"))
        exchange.reset()

    with Scripted(count) as one, Scripted(count) as two:
        async with mlb.AsyncClient(config(one, two, http={"max_replay_body_bytes": 1500})) as client:
            with pytest.raises(mlb.AttemptsExhausted):
                await client.post("/upload", content=Pieces(4))

    assert received == ["chunked"]


async def test_what_the_callers_body_raises_passes_unchanged() -> None:
    own = FileNotFoundError("mine")

    async def pieces() -> Any:
        yield b"x" * 2000
        raise own

    with Scripted(ok) as one, Scripted(ok) as two:
        async with mlb.AsyncClient(config(one, two, http={"max_replay_body_bytes": 1500})) as client:
            with pytest.raises(FileNotFoundError) as caught:
                await client.post("/upload", content=pieces())
            assert caught.value is own
            assert settled(client)


# -- streams that end early -----------------------------------------------------------------------------------------


async def test_leaving_a_stream_early_is_seen_by_the_replica() -> None:
    with Scripted(endless) as server:
        async with mlb.AsyncClient(config(server)) as client:
            async with client.stream("POST", PATH, json=chat(stream=True)) as answer:
                async with aclosing(answer.aiter_raw()) as chunks:
                    async for _ in chunks:
                        break

            assert settled(client)
            await anyio.to_thread.run_sync(lambda: eventually(lambda: hasattr(server.exchanges[0], "gone")))
            assert server.exchanges[0].gone


@pytest.mark.parametrize("moment", ["before the first token", "mid-stream"])
async def test_cancelling_a_call_is_seen_by_the_replica(moment: str) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        if moment == "mid-stream":
            exchange.chunk(ROLE + WORD)
        reached.set()
        exchange.gone = exchange.wait_gone()

    reached = threading.Event()
    with Scripted(script) as server:
        async with mlb.AsyncClient(config(server)) as client:

            async def call() -> None:
                async with client.stream("POST", PATH, json=chat(stream=True)) as answer:
                    await answer.aread()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await anyio.to_thread.run_sync(reached.wait)
                tasks.cancel_scope.cancel()

            assert settled(client)
            await anyio.to_thread.run_sync(lambda: eventually(lambda: hasattr(server.exchanges[0], "gone")))
            assert server.exchanges[0].gone


async def test_a_dropped_stream_is_closed_and_settled() -> None:
    with Scripted(endless) as server:
        async with mlb.AsyncClient(config(server)) as client:
            request = client.build_request("POST", PATH, json=chat(stream=True))
            answer = await client.send(request, stream=True)
            assert not settled(client)
            del answer
            gc.collect()

            with anyio.fail_after(10):
                while not settled(client):
                    await anyio.sleep(0.01)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_closing_that_asyncio_cancels_leaves_nothing(anyio_backend: str) -> None:
    with Scripted(endless) as server:
        client = mlb.AsyncClient(config(server))
        answer = await client.send(client.build_request("POST", PATH, json=chat(stream=True)), stream=True)
        ending = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)
        ending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await ending
        assert settled(client)
        await answer.aclose()


async def used(server: Scripted) -> weakref.ref:
    """Only its loops may keep this client's engine, and they may not."""
    client = mlb.AsyncClient(config(server))
    assert (await client.post(PATH, json=chat())).status_code == 200
    return weakref.ref(client.balancer.engine)


async def test_clients_that_are_dropped_unclosed_leave_nothing(anyio_backend: str) -> None:
    if anyio_backend == "asyncio":
        asyncio.get_running_loop().set_debug(True)
    with Scripted(lambda exchange: (ok(exchange), gone.append(exchange.wait_gone()))) as server:
        gone: list[bool] = []
        engines = [await used(server) for _ in range(20)]
        gc.collect()
        assert [engine() for engine in engines] == [None] * 20
        with anyio.fail_after(10):
            while len(gone) < 20:
                await anyio.sleep(0.01)
            while [task for task in anyio.get_running_tasks() if "mlbalance" in (task.name or "")]:
                await anyio.sleep(0.01)
        assert gone == [True] * 20


async def test_a_stream_of_a_dropped_client_can_be_read_and_then_dropped() -> None:
    with Scripted(endless) as server:
        client = mlb.AsyncClient(config(server))
        request = client.build_request("POST", PATH, json=chat(stream=True))
        answer = await client.send(request, stream=True)
        engine = weakref.ref(client.balancer.engine)
        del client
        gc.collect()
        async with aclosing(answer.aiter_raw()) as chunks:
            assert await anext(chunks) == ROLE
        await answer.aclose()
        del answer, chunks, request
        gc.collect()
        assert engine() is None
        assert await anyio.to_thread.run_sync(
            lambda: eventually(lambda: hasattr(server.exchanges[0], "gone"))
        )


async def test_a_stream_that_is_held_and_not_read_is_closed() -> None:
    with Scripted(endless) as server:
        async with mlb.AsyncClient(config(server, http={"max_unread_s": 0.2})) as client:
            request = client.build_request("POST", PATH, json=chat(stream=True))
            answer = await client.send(request, stream=True)
            with anyio.fail_after(10):
                while not settled(client):
                    await anyio.sleep(0.01)

            with pytest.raises(mlb.StreamInterrupted, match="unread"):
                await answer.aread()


@pytest.mark.parametrize("way", ["reset", "unterminated"])
async def test_a_stream_that_breaks_says_how_far_it_came(way: str) -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(ROLE + WORD)
        read.wait(10)
        if way == "reset":
            exchange.reset()
        else:
            exchange.connection.close()

    read = threading.Event()
    with Scripted(script) as server:
        async with mlb.AsyncClient(config(server)) as client:
            async with client.stream("POST", PATH, json=chat(stream=True)) as answer:
                async with aclosing(answer.aiter_raw()) as chunks:
                    first = await anext(chunks)
                    read.set()
                    with pytest.raises(mlb.StreamInterrupted) as caught:
                        await anext(chunks)

            assert caught.value.bytes_delivered == len(first) == len(ROLE + WORD)
            assert isinstance(caught.value, httpx.TransportError)
            assert settled(client)


DIED = b'data: {"error":{"message":"engine died","code":500}}\n\n'


@pytest.mark.parametrize("reads_on", [True, False])
@pytest.mark.parametrize(("code", "speaks"), [(b"500", True), (b"429", False), (b"400", False)])
async def test_a_stream_that_ends_in_an_error_event_says_so_and_counts_against_its_replica(
    reads_on: bool, code: bytes, speaks: bool
) -> None:
    """Also where its reader, an SDK say, leaves at that event. A refusal for load, and the call's own fault, do not."""
    died = DIED.replace(b"500", code)

    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        if exchange.header("host") == bad.address:
            exchange.chunk(ROLE + WORD)
            exchange.chunk(died)
        else:
            exchange.chunk(ROLE + WORD + b"data: [DONE]\n\n")
        exchange.end_stream()

    told: list[events.Event] = []
    raised: list[mlb.StreamInterrupted] = []
    with Scripted(script) as bad, Scripted(script) as good:
        settings = config(
            *(bad, good),
            picking={"policy": "round_robin"},
            outlier_detection={"rest_base_s": 0},
            hedging={"enabled": False},
        )
        async with mlb.AsyncClient(settings) as client:
            client.subscribe(told.append)
            for _ in range(12):
                async with client.stream("POST", PATH, json=chat(stream=True)) as answer:
                    got = b""
                    try:
                        async for piece in answer.aiter_raw():
                            got += piece
                            if died in got and not reads_on:
                                break
                    except mlb.StreamInterrupted as error:
                        raised.append(error)
            assert settled(client)

    ejected = [event for event in told if isinstance(event, events.ReplicaEjected)]
    assert [event.replica for event in ejected] == [bad.address] * speaks
    assert bool(raised) is reads_on
    for error in raised:
        assert error.bytes_delivered == len(ROLE + WORD + died)
        assert f"ended in an error {code.decode()} after" in str(error)
        assert str(error).endswith("engine died")
        assert isinstance(error, httpx.RemoteProtocolError)


async def test_an_error_in_the_first_event_that_is_delivered_is_an_answer() -> None:
    def script(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(OVERLOADED)
        exchange.end_stream()

    with Scripted(script) as server:
        async with mlb.AsyncClient(config(server)) as client:
            async with client.stream("POST", PATH, json=chat(stream=True)) as answer:
                assert await answer.aread() == OVERLOADED


async def test_a_killed_replica_fails_no_call_that_had_not_begun() -> None:
    with Fleet(2, spec=EngineSpec().scaled(20)) as fleet:
        async with mlb.AsyncClient(fleet.target, timeout=20) as client:
            await client.post(PATH, json=chat())
            await anyio.to_thread.run_sync(fleet.kill, 0)

            statuses = [(await client.post(PATH, json=chat(f"{n}" * 9000))).status_code for n in range(6)]

            assert statuses == [200] * 6


async def churn(client: mlb.AsyncClient, calls: int, seed: int) -> None:
    from random import Random

    rng = Random(seed)

    async def one(text: str, patience_s: float) -> None:
        with anyio.move_on_after(patience_s):
            async with client.stream("POST", PATH, json=chat(text, stream=True, max_tokens=50)) as answer:
                async for _ in answer.aiter_raw():
                    pass

    for _ in range(calls // 50):
        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(one, "x" * rng.randrange(20_000), rng.random() * 0.05)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["mlbalance_client", "mlbalance_client.httpx2"])
async def test_after_two_thousand_cancelled_calls_all_calls_succeed(fleet: Fleet, module: str) -> None:
    from importlib import import_module

    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls},
        picking={"residual_s": 0.0},
        load_reports={"kind": "none"},
        seed=1,
    )
    async with import_module(module).AsyncClient(settings, timeout=60) as client:
        await churn(client, 2000, seed=3)

        assert settled(client)
        statuses = [(await client.post(PATH, json=chat(str(n)))).status_code for n in range(100)]
        assert statuses == [200] * 100
        assert settled(client)


# -- the synchronous face -------------------------------------------------------------------------------------------


def test_the_synchronous_client_from_many_threads(fleet: Fleet) -> None:
    settings = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls},
        picking={"residual_s": 0.0},
        load_reports={"kind": "none"},
    )
    with mlb.Client(settings, timeout=60) as client:
        results: list[int] = []

        def work(number: int) -> None:
            for turn in range(5):
                results.append(client.post(PATH, json=chat(f"{number} {turn}")).status_code)
                with client.stream("POST", PATH, json=chat(f"{number} {turn}", stream=True)) as answer:
                    for line in answer.iter_lines():
                        if "tok" in line:
                            break

        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert results == [200] * 80
        assert client.snapshot().outstanding_requests == 0
        assert json.loads(json.dumps(client.snapshot().as_dict()))["policy"] == "prefix_tokens"
        assert client.explain(chat()).replica in fleet.target
    assert not [t for t in threading.enumerate() if t.name == "mlbalance"]


def test_a_dropped_synchronous_client_leaves_no_thread(fleet: Fleet) -> None:
    client = mlb.Client(fleet.target)
    client.post(PATH, json=chat())
    del client
    gc.collect()

    assert eventually(lambda: not [t for t in threading.enumerate() if t.name == "mlbalance"])


def held_stream(client: mlb.Client) -> httpx.Response:
    return client.send(client.build_request("POST", PATH, json=chat(stream=True)), stream=True)


def test_closing_a_synchronous_client_ends_the_calls_of_other_threads() -> None:
    reached = threading.Event()
    outcome: list[BaseException] = []

    def silent(exchange: Exchange) -> None:
        reached.set()
        exchange.wait_gone()

    def call() -> None:
        try:
            client.post(PATH, json=chat())
        except BaseException as error:
            outcome.append(error)

    with Scripted(silent) as server:
        client = mlb.Client(config(server, http={"drain_s": 0}))
        caller = threading.Thread(target=call)
        caller.start()
        assert reached.wait(10)
        client.close()
        caller.join(10)

    assert isinstance(outcome[0], mlb.ClientClosed)
    assert isinstance(outcome[0], httpx.ReadError)
    assert isinstance(outcome[0].request, httpx.Request)


def test_a_stream_of_a_closed_synchronous_client_can_be_closed_but_not_read() -> None:
    with Scripted(endless) as server:
        client = mlb.Client(config(server))
        closed, read = held_stream(client), held_stream(client)
        client.close()

        closed.close()
        with pytest.raises(httpx.ReadError, match="closed"):
            read.read()


def test_a_subscriber_may_look_at_its_synchronous_client_but_not_call_it() -> None:
    seen: list[object] = []

    def look(event: object) -> None:
        if isinstance(event, Settled):
            seen.append(client.snapshot().outstanding_requests)
            seen.append(client.explain(chat()).replica)
            try:
                client.post(PATH, json=chat())
            except RuntimeError as error:
                seen.append("subscribers" in str(error))

    with Scripted(ok) as server:
        with mlb.Client(config(server)) as client:
            client.subscribe(look)
            client.post(PATH, json=chat())

        assert seen == [0, server.address, True]


FORKING = """
import os, signal, sys
import mlbalance_client as mlb

def child(work):
    sys.stdout.flush()
    if not (pid := os.fork()):
        signal.alarm(20)
        try:
            work()
            sys.stdout.flush()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

def use_used():
    try:
        used.get("/")
    except RuntimeError as error:
        print("after forking" in str(error))
    used.close()

def use_unused():
    unused.get("/")
    print(unused.balancer.engine.fleet._rng.random(), unused.balancer.engine._client_id)
    unused.close()

used, unused = mlb.Client(sys.argv[1]), mlb.Client(sys.argv[1])
used.get("/")
child(use_used)
child(use_unused)
child(use_unused)
used.get("/")
used.close()
"""


def test_after_a_fork_a_used_client_refuses_and_an_unused_one_draws_anew() -> None:
    with Scripted(ok) as server:
        command = [sys.executable, "-W", "ignore", "-c", FORKING, f"static://{server.address}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    assert said[0] == "True"
    assert len(said) == 5
    assert len(set(said[1:])) == 4


async def test_requests_are_built_as_by_the_library(fleet: Fleet) -> None:
    client = mlb.AsyncClient(
        ",".join(fleet.urls[:1]), cookies={"a": "1"}, headers={"x-own": "ours"}, timeout=3.0
    )
    plain = httpx.AsyncClient(
        base_url="http://fleet", cookies={"a": "1"}, headers={"x-own": "ours"}, timeout=3.0
    )
    asked: list[tuple[Any, dict[str, Any]]] = [
        ("/v1/models", {}),
        ("/v1/models?x=1", {}),
        ("/v1/models", {"params": {"y": "2"}}),
        ("v1/%41", {"cookies": {"b": "2"}}),
        (httpx.URL("/v1/models"), {}),
        ("/v1/models", {"json": {"a": [1, "ä"]}}),
        ("/v1/models", {"content": b"x", "headers": {"Content-Type": "text/plain", "X-Own": "called"}}),
        ("/v1/models", {"content": b"x", "headers": {"x-other": "1"}, "timeout": None}),
        ("/v1/models", {"content": b"", "headers": [("x-other", "1"), ("x-other", "2")]}),
        ("/v1/models", {"content": b"x", "timeout": httpx.Timeout(5.0, read=7.0)}),
        ("/v1/models", {"content": b"x", "timeout": 9.0, "extensions": {"sni_hostname": "s"}}),
        ("/v1/models", {"content": b"x", "extensions": {"timeout": {"read": 1.0}}}),
        ("/v1/models", {"content": b"x", "headers": {"content-length": "9"}}),
        ("/v1/models", {"content": b"x", "headers": {"Transfer-Encoding": "chunked"}}),
        ("/v1/models", {"content": b"x", "headers": {"host": "elsewhere"}}),
        ("http://other/v1/models", {"content": b"x"}),
        ("/v1/models", {"data": {"a": "b"}, "headers": {"x-other": "1"}}),
        ("/v1/models", {"headers": {"x-other": "1", "host": "elsewhere"}}),
        ("/v1/models", {"headers": {b"x-bytes": b"\xff"}}),
    ]
    parts = ("method", "url", "headers", "content", "extensions")
    try:
        for cookies in ({"a": "1"}, {}):
            for own in ("ours", "changed"):
                for each in (client, plain):
                    each.cookies = cookies
                    each.headers["x-own"] = own
                for _ in range(2):
                    for url, given in asked:
                        ours = client.build_request("POST", url, **given)
                        theirs = plain.build_request("POST", url, **given)
                        assert ours.headers.raw == theirs.headers.raw
                        assert [getattr(ours, part) for part in parts] == [
                            getattr(theirs, part) for part in parts
                        ]
        for each in (client, plain):
            each.base_url = "http://moved"
        for _ in range(2):
            ours, theirs = (
                each.build_request("POST", "/v1/models", content=b"x") for each in (client, plain)
            )
            assert ours.headers.raw == theirs.headers.raw
        for each in (client, plain):
            each.cookies = {"a": "1"}
        for each in (client, plain):
            each.base_url = "http://fleet/below"
            each.params = {"p": "1"}
            each.cookies = {"c": "3"}
        assert client.build_request("GET", "/v1/models").url == plain.build_request("GET", "/v1/models").url
        answer = httpx.Response(200, headers={"set-cookie": "d=4"}, request=client.build_request("GET", "/x"))
        client.cookies.extract_cookies(answer)
        plain.cookies.extract_cookies(answer)
        assert dict(client.cookies) == dict(plain.cookies) == {"c": "3", "d": "4"}
    finally:
        await client.aclose()
        await plain.aclose()


@pytest.mark.parametrize("deadline_s", [0, -0.2])
async def test_a_deadline_that_has_passed_is_one_and_nothing_is_sent(deadline_s: float) -> None:
    with Scripted(lambda exchange: exchange.answer(200)) as server:
        async with mlb.AsyncClient(config(server)) as client:
            wishes = mlb.CallOptions(deadline_s=deadline_s)
            with pytest.raises(mlb.DeadlineExceeded, match="had passed before"):
                await client.post(PATH, json=chat(), extensions={"mlbalance": wishes})
            with pytest.raises(mlb.DeadlineExceeded):
                await client.post(PATH, json=chat(), headers={"x-mlbalance-deadline": str(deadline_s)})
            assert (await client.post(PATH, json=chat())).status_code == 200
            assert client.snapshot().outstanding_tokens == 0
        assert len(server.exchanges) == 1


@pytest.mark.parametrize("wish", [{"hedge": "no"}, {"replayable": "false"}, {"replayable": 0}])
def test_a_wish_that_is_neither_true_nor_false_is_refused(wish: dict[str, Any]) -> None:
    with pytest.raises(mlb.ConfigError, match="must be True, False or None"):
        mlb.CallOptions(**wish)


@pytest.mark.parametrize("subscriber", ["a string", None])
def test_what_cannot_be_called_with_an_event_is_no_subscriber(subscriber: Any) -> None:
    async def coroutine(event: object) -> None: ...

    client = mlb.AsyncClient("static://127.0.0.1:1")
    for wrong in (subscriber, coroutine):
        with pytest.raises(mlb.ConfigError, match="plain function"):
            client.subscribe(wrong)


async def test_a_request_to_a_stranger_is_told_what_an_sdk_is_given() -> None:
    async with mlb.AsyncClient("static://127.0.0.1:1") as client:
        with pytest.raises(mlb.ConfigError, match="base_url='http://fleet/v1'"):
            await client.post("https://api.example.com/v1/chat/completions", json=chat())
