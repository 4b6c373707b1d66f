"""The middleware around apps of every kind: what passes is untouched, what is counted is counted out."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.load.format import decode_header
from mlbalance_client.core.load.report import State
from mlbalance_client.dialects import Ending, Sign, find
from mlbalance_client.errors import ConfigError
from mlbalance_client.reporter import LoadBoard, LoadReporter, ReporterSettings, middleware

from .asgi import CHAT, EVENTS, STREAM, Exchange, answering, load_of

pytestmark = pytest.mark.anyio
App = Callable[[Any, Any, Any], Awaitable[None]]
WHOLE = json.dumps(
    {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 5},
    }
).encode()


def idle(reporter: LoadReporter) -> bool:
    report = load_of(reporter)
    return (report.running, report.waiting, report.prefill_tokens, report.decode_tokens) == (0, 0, 0, 0)


async def test_a_stream_passes_as_it_is_with_the_load_in_its_head() -> None:
    reporter = LoadReporter(answering(*EVENTS))
    exchange = Exchange(STREAM, x_mlbalance_call="c.4")
    await reporter(exchange.scope, exchange.receive, exchange.send)

    assert [m["body"] for m in exchange.sent[1:]] == [*EVENTS, b""]
    assert exchange.head[b"content-type"] == b"text/event-stream"
    head = decode_header(exchange.head[b"x-mlbalance-load"].decode(), at=0.0)
    assert (head.running, head.acked, head.epoch) == (1, 4, reporter.board.epoch)
    assert idle(reporter)
    assert load_of(reporter).state is State.READY


@pytest.mark.parametrize("status", [200, 400])
async def test_the_head_of_a_whole_answer_tells_of_the_load_without_it(status: int) -> None:
    """Who hears of the load by answers alone would else hold the work of this one for work to come."""
    release = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if scope["headers"]:
            await release.wait()
        head = [(b"content-type", b"application/json"), (b"Content-Length", b"%d" % len(WHOLE))]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": WHOLE})

    reporter = LoadReporter(app)
    other, whole = Exchange(CHAT, x_wait="1"), Exchange(CHAT)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reporter, other.scope, other.receive, other.send)
        await anyio.wait_all_tasks_blocked()
        await reporter(whole.scope, whole.receive, whole.send)
        release.set()

    beside = decode_header(whole.head[b"x-mlbalance-load"].decode(), at=0.0)
    alone = decode_header(other.head[b"x-mlbalance-load"].decode(), at=0.0)
    assert ((beside.running or 0) + (beside.waiting or 0), (beside.prefill_tokens or 0) > 0) == (1, True)
    assert (alone.running, alone.waiting, alone.prefill_tokens) == (0, 0, 0)
    assert idle(reporter)


async def test_the_heads_of_whole_answers_tell_of_all_that_is_left_for_the_others() -> None:
    """The time of a prompt that is answered is not taken for work on the next one."""
    now = 0.0
    board = LoadBoard(ReporterSettings(), clock=lambda: now)
    heads: list[int | None] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        heads.append(
            decode_header(dict(sent[-1]["headers"])[b"x-mlbalance-load"].decode(), at=0.0).prefill_tokens
        )
        await send({"type": "http.response.body", "body": b"{}"})

    reporter, sent = LoadReporter(app, board=board), []

    async def keep(message: Any) -> None:
        sent.append(message)

    with board.begin(prompt_tokens=4000, max_output_tokens=0):
        now = 4.0  # so 1,000 tokens a second
    calls = [board.begin(prompt_tokens=2000, max_output_tokens=0) for _ in range(2)]
    now = 6.0
    exchange = Exchange(CHAT)
    board.answered(calls[0])
    await reporter(exchange.scope, exchange.receive, keep)
    assert heads == [2000]
    for call in calls:
        call.succeed()


@pytest.mark.parametrize(
    ("content", "running"), [(b"text/event-stream", 1), (b"application/json", 0), (b"text/plain", 0)]
)
async def test_a_stream_is_under_way_whatever_length_it_claims(content: bytes, running: int) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        head = [(b"content-type", content), (b"content-length", b"99")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b""})

    reporter, exchange = LoadReporter(app), Exchange(STREAM)
    await reporter(exchange.scope, exchange.receive, exchange.send)

    assert decode_header(exchange.head[b"x-mlbalance-load"].decode(), at=0.0).running == running


async def test_every_answer_bears_the_load_and_the_apps_message_stays_as_it_is() -> None:
    started: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.append(
            {"type": "http.response.start", "status": 404, "headers": ((b"x-mlbalance-load", b"old"),)}
        )
        await send(started[-1])
        await send({"type": "http.response.body", "body": b"no"})

    reporter = LoadReporter(app)
    for exchange in (Exchange(path="/health", method="GET"), Exchange(b"{}", path="/other"), Exchange(CHAT)):
        await reporter(exchange.scope, exchange.receive, exchange.send)
        values = [value for name, value in exchange.sent[0]["headers"] if name == b"x-mlbalance-load"]
        assert len(values) == 1
        assert values[0].startswith(b"v=1;epoch=")
        assert exchange.sent[1] == {"type": "http.response.body", "body": b"no"}
    assert all(message["headers"] == ((b"x-mlbalance-load", b"old"),) for message in started)


async def test_chains_are_those_that_a_client_computes() -> None:
    reporter = LoadReporter(answering(*EVENTS))
    exchange = Exchange(STREAM)
    await reporter(exchange.scope, exchange.receive, exchange.send)
    load_of(reporter)

    reading = find("POST", "/v1/chat/completions").read("", json.dumps(STREAM).encode())
    chain = fingerprint(reading.prompt).chain
    assert chain
    assert all(block in reporter.board.chains for block in chain)


async def test_phases_of_a_stream() -> None:
    steps = [anyio.Event() for _ in range(4)]
    reached = [anyio.Event() for _ in range(4)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        for number, message in enumerate(
            [
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"text/event-stream")],
                },
                *({"type": "http.response.body", "body": event, "more_body": True} for event in EVENTS[:3]),
            ]
        ):
            await send(message)
            reached[number].set()
            await steps[number].wait()
        await send({"type": "http.response.body", "body": b"".join(EVENTS[3:])})

    reporter = LoadReporter(app)
    exchange = Exchange(STREAM)
    seen = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reporter, exchange.scope, exchange.receive, exchange.send)
        for number in range(4):
            await reached[number].wait()
            report = load_of(reporter)
            seen.append((report.running, report.prefill_tokens, report.decode_tokens))
            steps[number].set()

    assert seen == [(1, 1000, 9), (1, 1000, 9), (1, 0, 8), (1, 0, 7)]  # head, role, first content, second
    assert idle(reporter)


async def test_a_message_is_sent_on_before_the_app_goes_on() -> None:
    passed: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            passed.append(number)

    exchange = Exchange(STREAM)
    exchange.writable = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(LoadReporter(app), exchange.scope, exchange.receive, exchange.send)
        await anyio.wait_all_tasks_blocked()
        assert passed == []
        exchange.writable.set()
        await exchange.until(4)
    assert passed == [0, 1, 2]


class Broken(Exception):
    pass


async def _raises(scope: Any, receive: Any, send: Any) -> None:
    raise Broken


async def _raises_after_the_body(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    raise Broken


async def _raises_midway(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
    )
    await send({"type": "http.response.body", "body": EVENTS[1], "more_body": True})
    raise Broken


async def _says_nothing(scope: Any, receive: Any, send: Any) -> None:
    await receive()


async def _never_reads(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def _notices_that_the_client_is_gone(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    assert (await receive())["type"] == "http.disconnect"


@pytest.mark.parametrize(
    "app",
    [
        _raises, _raises_after_the_body, _raises_midway, _says_nothing, _never_reads,
        _notices_that_the_client_is_gone, answering(WHOLE, content=b"application/json"), answering(status=500),
        answering(b"not json", content=b"application/json"), answering(EVENTS[1]), answering(),
    ],
)  # fmt: skip
@pytest.mark.parametrize("body", [STREAM, CHAT, b"", b"{", b"[" * 10_000])
async def test_counts_return_to_zero_on_every_way_out(app: App, body: Any) -> None:
    reporter = LoadReporter(app)
    exchange = Exchange(body)
    exchange.gone.set()
    try:
        await reporter(exchange.scope, exchange.receive, exchange.send)
    except Broken:
        assert app in (_raises, _raises_after_the_body, _raises_midway)

    assert idle(reporter)


@pytest.mark.parametrize("body", [STREAM, CHAT])
async def test_a_cancelled_request_is_counted_out(body: Any) -> None:
    began = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        began.set()
        await anyio.sleep_forever()

    reporter = LoadReporter(app)
    exchange = Exchange(body)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reporter, exchange.scope, exchange.receive, exchange.send)
        await began.wait()
        assert load_of(reporter).running == 1
        tasks.cancel_scope.cancel()

    assert idle(reporter)


async def test_a_client_that_cannot_be_written_to_is_counted_out() -> None:
    reporter = LoadReporter(answering(*EVENTS))
    exchange = Exchange(STREAM)

    async def send(message: Any) -> None:
        if message.get("body"):
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await reporter(exchange.scope, exchange.receive, send)

    assert idle(reporter)


async def test_an_answer_that_is_whole_counts_although_its_client_leaves_at_the_last_byte() -> None:
    reporter = LoadReporter(answering(*EVENTS))
    exchange = Exchange(STREAM)

    async def send(message: Any) -> None:
        if message == {"type": "http.response.body", "body": b""}:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        await reporter(exchange.scope, exchange.receive, send)

    assert idle(reporter)
    assert load_of(reporter).models == {"m": "ready"}


@pytest.mark.parametrize("status", [429, 503])
async def test_refusals_of_a_warm_replica_mean_overload(status: int) -> None:
    answers = iter([answering(*EVENTS), answering(b"{}", status=status, content=b"application/json")])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await next(answers)(scope, receive, send)

    reporter = LoadReporter(app)
    for _ in range(2):
        exchange = Exchange(STREAM)
        await reporter(exchange.scope, exchange.receive, exchange.send)

    assert load_of(reporter).state is State.OVERLOADED
    assert load_of(reporter).free_tokens == 0


async def test_a_refusal_in_band_means_overload_too() -> None:
    error = b'data: {"error":{"message":"The engine is currently busy","code":503}}\n\n'
    answers = iter([answering(*EVENTS), answering(error, EVENTS[-1])])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await next(answers)(scope, receive, send)

    reporter = LoadReporter(app)
    for _ in range(2):
        exchange = Exchange(STREAM)
        await reporter(exchange.scope, exchange.receive, exchange.send)

    assert load_of(reporter).state is State.OVERLOADED
    assert idle(reporter)


async def test_a_large_body_is_counted_by_its_size_and_kept_by_nobody() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        seen.append(load_of(reporter))

    reporter = LoadReporter(app, max_body_bytes=1000)
    pieces = [b"x" * 400] * 10

    async def receive() -> Any:
        return {"type": "http.request", "body": pieces.pop(), "more_body": bool(pieces)}

    exchange = Exchange()
    await reporter(exchange.scope, receive, exchange.send)

    assert seen[0].prefill_tokens == 1000
    assert len(reporter.board.chains) == 0


async def test_only_calls_are_counted_and_further_paths_if_named() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        seen.append(load_of(reporter).running)

    for reporter in (LoadReporter(app), LoadReporter(app, paths=("/predict",))):
        for path, method in (("/tokenize", "POST"), ("/m/predict", "POST"), ("/v1/chat/completions", "GET")):
            exchange = Exchange(b"{}", path=path, method=method)
            await reporter(exchange.scope, exchange.receive, exchange.send)

    assert seen == [0, 0, 0, 0, 1, 0]


async def test_web_sockets_pass_untouched() -> None:
    got: list[Any] = []

    async def app(*args: Any) -> None:
        got.extend(args)

    scope, exchange = {"type": "websocket", "path": "/mlbalance/v1/load", "headers": []}, Exchange()
    await LoadReporter(app)(scope, exchange.receive, exchange.send)

    assert got == [scope, exchange.receive, exchange.send]


async def test_the_servers_life_is_followed_and_passed_on() -> None:
    states: list[Any] = []
    got: list[Any] = []
    given = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for said in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
            got.append(await receive())
            states.append(load_of(reporter).state)
            await send({"type": said})
            states.append(load_of(reporter).state)

    async def receive() -> Any:
        return given[len(got)]

    async def send(message: Any) -> None:
        sent.append(message)

    reporter = LoadReporter(app)
    await reporter({"type": "lifespan"}, receive, send)

    assert got == given
    assert [message["type"] for message in sent] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]
    assert states == [State.STARTING, State.WARMING, State.DRAINING, State.DRAINING]


async def test_an_app_that_goes_on_loading_says_so_itself() -> None:
    """A server is up as soon as its startup is complete, and the app may not be."""
    states: list[State | None] = []
    board = LoadBoard()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        board.starting()
        await send({"type": "lifespan.startup.complete"})
        states.append(load_of(reporter).state)
        board.starting(False)
        states.append(load_of(reporter).state)

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None: ...

    reporter = LoadReporter(app, board=board)
    await reporter({"type": "lifespan"}, receive, send)

    assert states == [State.STARTING, State.WARMING]


async def test_an_app_without_a_life_may_say_so() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise Broken

    reporter = LoadReporter(app)

    async def receive() -> Any:
        return {"type": "lifespan.startup"}

    with pytest.raises(Broken):
        await reporter({"type": "lifespan"}, receive, receive)
    assert load_of(reporter).state is State.WARMING


PATHS = ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v2/models/m/infer", "/v1/embeddings"]
messages = st.one_of(
    st.builds(
        lambda status, content: {
            "type": "http.response.start",
            "status": status,
            "headers": [(b"content-type", content)],
        },
        st.sampled_from([200, 201, 400, 429, 500, 503]),
        st.sampled_from([b"text/event-stream", b"application/json", b"\xff", b""]),
    ),
    st.builds(
        lambda body, more: {"type": "http.response.body", "body": body, "more_body": more},
        st.sampled_from([*EVENTS, WHOLE, b"", b"\xff\x00", b'data: {"error":{"code":503}}\n\n'])
        | st.binary(),
        st.booleans(),
    ),
    st.just({"type": "http.response.body"}),
    st.just({"type": "http.response.body", "more_body": True}),
    st.just({"type": "http.response.trailers", "headers": []}),
)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@settings(deadline=None)
@given(
    said=st.lists(messages, max_size=8),
    reads=st.integers(0, 2),
    raises=st.booleans(),
    body=st.sampled_from([json.dumps(STREAM).encode(), json.dumps(CHAT).encode()]) | st.binary(),
    path=st.sampled_from(
        ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v2/models/m/infer", "/v1/embeddings"]
    ),
    call_id=st.text(st.characters(codec="latin-1"), max_size=20),
)
async def test_whatever_an_app_and_a_client_do_the_same_passes_and_nothing_is_left(
    anyio_backend: str, said: list[Any], reads: int, raises: bool, body: bytes, path: str, call_id: str
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(reads):
            await receive()
        for message in said:
            await send(message)
        if raises:
            raise Broken

    reporter = LoadReporter(app)
    exchange = Exchange(body, path=path, x_mlbalance_call=call_id)
    exchange.gone.set()
    try:
        await reporter(exchange.scope, exchange.receive, exchange.send)
    except Broken:
        assert raises

    assert [
        {**m, "headers": [h for h in m["headers"] if h[0] != b"x-mlbalance-load"]} if "headers" in m else m
        for m in exchange.sent
    ] == said
    assert idle(reporter)


class Failing:
    """A plugin's dialect that fails wherever it is asked, from ``step`` on."""

    name = "failing"
    commits_at_head = False
    error = None

    def __init__(self, step: str) -> None:
        self.step = step

    def _maybe(self, step: str) -> None:
        if step == self.step:
            raise RuntimeError("a plugin's bug")

    def matches(self, method: str, path: str) -> bool:
        return True

    def read(self, path: str, body: bytes) -> Any:
        self._maybe("read")
        return find("POST", "/v1/chat/completions").read(path, body)

    def watch(self, status: int, content_type: str) -> Any:
        self._maybe("watch")
        return self

    def feed(self, chunk: bytes) -> Any:
        self._maybe("feed")
        return Sign.CONTENT

    def passed(self, chunk: bytes) -> None:
        self._maybe("passed")

    def end(self) -> Any:
        self._maybe("end")
        return Ending(None, None, complete=True)


@pytest.mark.parametrize("step", ["nowhere", "read", "watch", "feed", "passed", "end"])
async def test_a_plugin_that_fails_holds_up_no_answer(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(middleware, "find", lambda method, path: Failing(step))
    reporter = LoadReporter(answering(*EVENTS))
    exchange = Exchange(STREAM)
    await reporter(exchange.scope, exchange.receive, exchange.send)

    assert exchange.body == b"".join(EVENTS)
    assert idle(reporter)
    assert load_of(reporter).state is State.READY


async def test_a_plugin_that_cannot_be_loaded_holds_up_no_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(method: str, path: str) -> Any:
        raise ConfigError("the dialect 'x' cannot be loaded")

    monkeypatch.setattr(middleware, "find", broken)
    reporter = LoadReporter(answering(*EVENTS))
    for _ in range(3):
        exchange = Exchange(STREAM)
        await reporter(exchange.scope, exchange.receive, exchange.send)
        assert exchange.body == b"".join(EVENTS)

    assert len(caplog.records) == 1


def test_a_board_that_is_given_has_its_settings() -> None:
    with pytest.raises(ConfigError, match="replica"):
        LoadReporter(answering(), board=LoadBoard(), replica="x")


async def test_a_page_whose_stream_waits_for_its_client_to_go_is_read_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As Starlette streams: it receives until the disconnect, beside its sending."""
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    page = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="100"} 1.0\n'

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(gone)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await anyio.lowlevel.checkpoint()
            await send({"type": "http.response.body", "body": page, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    exchange = Exchange(path="/mlbalance/v1/load", method="GET")
    with anyio.fail_after(10):
        reporter = LoadReporter(app)
        await reporter(exchange.scope, exchange.receive, exchange.send)

    assert load_of(reporter).kv_capacity_tokens == 1600
