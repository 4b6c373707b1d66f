"""The load endpoint: snapshots, the stream and its resumption, who may read it, and readers that do not read."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mlbalance_client.core.load.format import PrefixDelta, decode_load, decode_prefixes
from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.reporter import BoardFull, LoadApp, LoadBoard, LoadReporter, ReporterSettings, events
from mlbalance_client.reporter import publisher as publishing
from mlbalance_client.reporter.serving import PATH
from mlbalance_client.simulator.model.virtual_time import run

from .asgi import CHAT, EVENTS, STREAM, Exchange, answering, load_of

pytestmark = pytest.mark.anyio
Seen = list[tuple[str | None, LoadReport | PrefixDelta]]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told at the latest, and of small changes, after a moment."""
    monkeypatch.setattr(publishing.Publisher, "most_s", 0.2)
    monkeypatch.setattr(publishing, "SMALL_S", 0.06)


def parsed(data: bytes, client: str | None = None) -> Seen:
    """(id, what it says) of events."""
    found: Seen = []
    for block in data.split(b"\n\n")[:-1]:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
        number = fields.get(b"id")
        if fields[b"event"] == b"load":
            report = decode_load(fields[b"data"], at=0.0, client=client)
            assert number == str(report.seq).encode()
            found.append((number.decode(), report))
        else:
            assert number is None
            found.append((None, decode_prefixes(fields[b"data"])))
    return found


@asynccontextmanager
async def stream(app: Any, **headers: str) -> AsyncIterator[Exchange]:
    exchange = Exchange(path=PATH, method="GET", accept="text/event-stream", **headers)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app, exchange.scope, exchange.receive, exchange.send)
        await exchange.until(2)
        yield exchange
        exchange.gone.set()


async def call(reporter: LoadReporter, body: Any = STREAM, **headers: str) -> Exchange:
    exchange = Exchange(body, **headers)
    await reporter(exchange.scope, exchange.receive, exchange.send)
    return exchange


def prompt(letter: str) -> dict[str, Any]:
    return {**STREAM, "messages": [{"role": "user", "content": letter * 4096}]}


async def test_a_snapshot() -> None:
    reporter = LoadReporter(answering(*EVENTS), replica="llm-7")
    await call(reporter, x_mlbalance_call="c.3")
    exchange = Exchange(path=PATH, method="GET", x_mlbalance_client="c")
    await reporter(exchange.scope, exchange.receive, exchange.send)

    assert exchange.sent[0]["status"] == 200
    assert exchange.head[b"content-type"] == b"application/json"
    report = decode_load(exchange.body, at=0.0, client="c")
    assert (report.replica, report.state, report.acked, report.models) == (
        "llm-7",
        State.READY,
        3,
        {"m": "ready"},
    )
    assert json.loads(exchange.body)["partial"] is False


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("POST", {"authorization": "Bearer right"}, 405),
        ("GET", {}, 401),
        ("GET", {"authorization": "Bearer wrong"}, 401),
        ("GET", {"authorization": "Basic right"}, 401),
        ("GET", {"authorization": "Bearer \xff"}, 401),
        ("GET", {"authorization": "Bearer wrong", "accept": "text/event-stream"}, 401),
        ("GET", {"authorization": "bearer right"}, 200),
        ("HEAD", {"authorization": "Bearer right"}, 200),
    ],
)
async def test_who_may_read(method: str, headers: dict[str, str], status: int) -> None:
    reporter = LoadReporter(answering(), token="right")
    exchange = Exchange(path=PATH, method=method, **headers)
    await reporter(exchange.scope, exchange.receive, exchange.send)

    assert exchange.sent[0]["status"] == status
    assert (b"epoch" in exchange.body) == (status == 200)


async def test_a_mounted_app_is_asked_under_its_root() -> None:
    reporter = LoadReporter(answering())
    exchange = Exchange(path="/root" + PATH, method="GET")
    exchange.scope["root_path"] = "/root"
    await reporter(exchange.scope, exchange.receive, exchange.send)

    assert exchange.head[b"content-type"] == b"application/json"


async def test_a_subscriber_gets_all_prefixes_then_the_load_then_changes() -> None:
    release = anyio.Event()

    reporter = LoadReporter(answering(*EVENTS, release=release))
    async with stream(reporter, x_mlbalance_client="c") as exchange, anyio.create_task_group() as tasks:
        first = parsed(exchange.body, "c")
        tasks.start_soon(lambda: call(reporter, prompt("a"), x_mlbalance_call="c.9"))
        while not any(
            isinstance(each, LoadReport) and each.running for _, each in parsed(exchange.body, "c")
        ):
            await exchange.until(len(exchange.sent) + 1)
        busy = parsed(exchange.body, "c")[-1][1]
        release.set()
        while not any(isinstance(each, PrefixDelta) and each.add for _, each in parsed(exchange.body, "c")):
            await exchange.until(len(exchange.sent) + 1)
        delta = next(e for _, e in parsed(exchange.body, "c") if isinstance(e, PrefixDelta) and e.add)

    assert exchange.head[b"content-type"] == b"text/event-stream"
    reset, load = (each for _, each in first)
    assert isinstance(reset, PrefixDelta)
    assert (reset.reset, reset.add) == (True, ())
    assert isinstance(load, LoadReport)
    assert (load.running, load.subscribers, load.acked) == (0, 1, None)
    assert isinstance(busy, LoadReport)
    assert (busy.running, busy.acked) == (1, 9)
    assert not delta.reset
    assert len(delta.add) == 4


async def test_an_idle_stream_says_so_again_and_again() -> None:
    async with stream(LoadReporter(answering())) as exchange:
        await exchange.until(4)

    numbers = [each.seq for _, each in parsed(exchange.body) if isinstance(each, LoadReport)]
    assert numbers == sorted(set(numbers))


async def test_a_stream_is_resumed_where_it_was() -> None:
    reporter = LoadReporter(answering(*EVENTS))
    await call(reporter, prompt("a"))
    async with stream(reporter) as exchange:
        pass
    last = next(number for number, each in reversed(parsed(exchange.body)) if number)
    held = set(parsed(exchange.body)[0][1].add)  # type: ignore[union-attr]

    await call(reporter, prompt("b"))
    async with stream(reporter, last_event_id=last) as exchange:
        while not (deltas := [each for _, each in parsed(exchange.body) if isinstance(each, PrefixDelta)]):
            await exchange.until(len(exchange.sent) + 1)

    assert not deltas[0].reset
    assert deltas[0].add
    assert held.isdisjoint(deltas[0].add)
    assert held | set(deltas[0].add) <= set(reporter.board.chains._held)


@pytest.mark.parametrize("last", ["1", "-1", "x", "9" * 30, "999999999999999", "²", ""])
async def test_who_has_lost_its_place_begins_anew(last: str) -> None:
    reporter = LoadReporter(answering(*EVENTS))
    await call(reporter)
    async with stream(reporter, last_event_id=last) as exchange:
        first = parsed(exchange.body)[0][1]

    assert isinstance(first, PrefixDelta)
    assert first.reset


async def test_whose_place_is_no_longer_kept_begins_anew() -> None:
    reporter = LoadReporter(answering(*EVENTS), kv_tokens=1024)
    async with stream(reporter) as exchange:
        last = parsed(exchange.body)[-1][0]
    chains = reporter.board.chains
    for number in range(300):
        chains.touch(tuple(range(number * 10, number * 10 + 4)))
        reporter.board.publisher._page_at -= 1
        load_of(reporter)
    async with stream(reporter, last_event_id=last or "") as exchange:
        first = parsed(exchange.body)[0][1]

    assert isinstance(first, PrefixDelta)
    assert first.reset
    assert set(first.add) <= set(chains._held)


async def test_a_follower_knows_what_the_board_holds() -> None:
    reporter = LoadReporter(answering(*EVENTS), kv_tokens=4096)
    publisher, follower, place = reporter.board.publisher, set(), None
    for number in range(50):
        await call(reporter, prompt("abcdefg"[number % 7]))
        publisher._page_at -= 1
        load_of(reporter)
        place, found = publisher.prefixes(place)
        for _, delta in parsed(b"".join(found)):
            assert isinstance(delta, PrefixDelta)
            follower = set() if delta.reset else follower
            follower = (follower | set(delta.add)) - set(delta.drop)

    assert follower == set(reporter.board.chains._held)
    assert 0 < len(follower) <= reporter.board.chains.capacity


async def test_one_who_does_not_read_holds_up_nobody_and_is_told_the_newest_when_it_does() -> None:
    reporter = LoadReporter(answering(*EVENTS))
    async with stream(reporter) as slow:
        slow.writable = anyio.Event()
        sent = len(slow.sent)
        for number in range(100):
            await call(reporter, prompt(chr(97 + number % 20)))
            await anyio.lowlevel.checkpoint()
        newest = load_of(reporter).seq
        assert len(slow.sent) == sent
        slow.writable.set()
        await slow.until(sent + 2)

    _blocked, after = [each for _, each in parsed(slow.body) if isinstance(each, LoadReport)][-2:]
    assert after.seq is not None
    assert newest is not None
    assert after.seq >= newest


async def test_one_who_never_reads_is_left() -> None:
    reporter = LoadReporter(answering())
    exchange = Exchange(path=PATH, method="GET", accept="text/event-stream")
    publisher = reporter.board.publisher
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reporter, exchange.scope, exchange.receive, exchange.send)
        await exchange.until(2)
        exchange.writable = anyio.Event()
        while not any(each.sending for each in publisher._subscribers.values()):
            await anyio.wait_all_tasks_blocked()
            await anyio.sleep(0.01)
        for each in publisher._subscribers.values():
            each.sent_at -= 100
        publisher._looked_at -= 100
        load_of(reporter)

    assert len(publisher.grants) == 0


@pytest.mark.parametrize("how", ["gone", "cancelled", "broken"])
async def test_a_subscriber_that_goes_leaves_nothing(how: str) -> None:
    reporter = LoadReporter(answering())
    exchange = Exchange(path=PATH, method="GET", accept="text/event-stream")

    async def send(message: Any) -> None:
        await exchange.send(message)
        if how == "broken" and len(exchange.sent) == 3:
            raise OSError("gone")

    async def run() -> None:
        try:
            await reporter(exchange.scope, exchange.receive, send)
        except* OSError:
            assert how == "broken"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await exchange.until(2)
        assert load_of(reporter).subscribers == 1
        if how == "gone":
            exchange.gone.set()
        elif how == "cancelled":
            tasks.cancel_scope.cancel()

    publisher = reporter.board.publisher
    assert load_of(reporter).subscribers == 0
    assert (len(publisher.grants), len(publisher._calm), len(publisher._hasty)) == (0, 0, 0)


async def test_no_more_subscribers_than_are_allowed() -> None:
    reporter = LoadReporter(answering(), max_subscribers=1)
    async with stream(reporter):
        second = Exchange(path=PATH, method="GET", accept="text/event-stream")
        await reporter(second.scope, second.receive, second.send)

    assert second.sent[0]["status"] == 503


async def test_streams_end_with_the_server_saying_so() -> None:
    reporter = LoadReporter(answering())
    exchange = Exchange(path=PATH, method="GET", accept="text/event-stream")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(reporter, exchange.scope, exchange.receive, exchange.send)
        await exchange.until(2)
        await anyio.wait_all_tasks_blocked()
        reporter.board.close()

    last = parsed(exchange.body)[-1][1]
    assert isinstance(last, LoadReport)
    assert last.state is State.DRAINING
    assert exchange.sent[-1].get("more_body", False) is False


async def test_a_change_counted_in_another_thread_reaches_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing.Publisher, "most_s", 60.0)
    board = LoadBoard()
    exchange = Exchange(path="/anywhere", method="GET", accept="text/event-stream")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(LoadApp(board), exchange.scope, exchange.receive, exchange.send)
        await exchange.until(2)
        counting = threading.Thread(target=lambda: board.begin(prompt_tokens=10**6))
        counting.start()
        await exchange.until(3)
        exchange.gone.set()
        counting.join()

    last = parsed(exchange.body)[-1][1]
    assert isinstance(last, LoadReport)
    assert last.prefill_tokens == 10**6


async def test_a_large_change_too_soon_is_told_as_soon_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing.Publisher, "most_s", 60.0)
    monkeypatch.setattr(publishing, "MOST_S", 60.0)
    monkeypatch.setattr(publishing, "SMALL_S", 60.0)
    board = LoadBoard()
    exchange = Exchange(path="/anywhere", method="GET", accept="text/event-stream")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(LoadApp(board), exchange.scope, exchange.receive, exchange.send)
        await exchange.until(2)
        await anyio.wait_all_tasks_blocked()
        board.begin(prompt_tokens=10**6)
        with anyio.fail_after(10):
            await exchange.until(3)
        exchange.gone.set()

    last = parsed(exchange.body)[-1][1]
    assert isinstance(last, LoadReport)
    assert last.prefill_tokens == 10**6


@pytest.mark.parametrize("limit", [1, 10, 40])
async def test_the_first_place_in_a_full_batch_is_told_at_once(
    limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing.Publisher, "most_s", 60.0)
    monkeypatch.setattr(publishing, "MOST_S", 60.0)
    monkeypatch.setattr(publishing, "SMALL_S", 60.0)
    board = LoadBoard(ReporterSettings(batch_limit=limit))
    board.begin(prompt_tokens=8).succeed()  # it is ready: no change of state tells of the next
    calls = [board.begin(prompt_tokens=8, max_output_tokens=1) for _ in range(limit + 1)]
    exchange = Exchange(path="/anywhere", method="GET", accept="text/event-stream")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(LoadApp(board), exchange.scope, exchange.receive, exchange.send)
        await exchange.until(2)
        await anyio.wait_all_tasks_blocked()
        calls[0].succeed()
        await anyio.wait_all_tasks_blocked()
        calls[1].succeed()
        with anyio.fail_after(10):
            await exchange.until(3)
        exchange.gone.set()

    full, free = (each for _, each in parsed(exchange.body)[-2:])
    assert isinstance(full, LoadReport)
    assert isinstance(free, LoadReport)
    assert (full.free_requests, free.free_requests) == (0, 1)


def test_nobody_wakes_for_a_large_change_before_it_may_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look reads the clock. On trio a stream looks at once, and then waits."""
    monkeypatch.setattr(
        publishing, "LEAST_S", 1 / 16
    )  # times that are exact: virtual time stands where they are not
    looks: list[float] = []

    async def follow() -> float:
        loop = asyncio.get_running_loop()

        def clock() -> float:
            looks.append(loop.time())
            return loop.time()

        board = LoadBoard(clock=clock)
        exchange = Exchange(path="/anywhere", method="GET", accept="text/event-stream")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(LoadApp(board), exchange.scope, exchange.receive, exchange.send)
            await exchange.until(2)
            told_at = loop.time()
            await anyio.sleep(1 / 32)
            board.begin(prompt_tokens=10**6)
            looks.clear()
            await exchange.until(3)
            exchange.gone.set()
        return told_at

    assert run(follow) + 1 / 16 == looks[0]


def test_events_for_servers_that_give_a_thread_to_a_request() -> None:
    board = LoadBoard()
    found: Iterator[bytes] = events(board, client="c")
    reset, first = (each for _, each in parsed(next(found)))
    with board.begin(prompt_tokens=10**6, call_id="c.1"):
        busy = parsed(next(found), "c")[-1][1]
    board.close()
    last = [parsed(each)[-1][1] for each in found][-1]

    assert isinstance(reset, PrefixDelta)
    assert reset.reset
    assert isinstance(first, LoadReport)
    assert first.running == 0
    assert isinstance(busy, LoadReport)
    assert (busy.running, busy.acked) == (1, 1)
    assert isinstance(last, LoadReport)
    assert last.state is State.DRAINING
    assert len(board.publisher.grants) == 0


def test_a_generator_that_is_closed_is_no_subscriber() -> None:
    board = LoadBoard(ReporterSettings(max_subscribers=1))
    found = events(board)
    next(found)
    with pytest.raises(BoardFull):
        next(events(board))
    found.close()  # type: ignore[attr-defined]

    assert len(board.publisher.grants) == 0


async def test_whole_answers_are_seen_on_the_stream_too() -> None:
    reporter = LoadReporter(answering(b"{}", content=b"application/json"))
    async with stream(reporter) as exchange:
        await call(reporter, CHAT)
        while not any(isinstance(e, LoadReport) and e.state is State.READY for _, e in parsed(exchange.body)):
            await exchange.until(len(exchange.sent) + 1)
