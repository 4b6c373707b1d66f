"""The wire against a scripted server: connections are reused, replaced and closed; every failure has one kind."""

from __future__ import annotations

import gc
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from unittest.mock import Mock

import anyio
import httpcore
import httpx
import pytest
import trustme

import mlbalance_client as mlb
from mlbalance_client.errors import FailureKind
from mlbalance_client.wire import (
    Origin,
    Resending,
    Timeouts,
    Wire,
    WireAnswer,
    WireError,
    WireOptions,
    WireRequest,
)
from mlbalance_client.wire.closing import Closing
from mlbalance_client.wire.pool import Connection
from mlbalance_client.wire.tcp import Patience, Tcp

from ..conftest import eventually
from ..scripted import Exchange, Script, Scripted

pytestmark = pytest.mark.anyio

PATIENT = Timeouts(10.0, 10.0, 10.0)
CHUNKED = (b"Transfer-Encoding", b"chunked")


class Resends:
    """Allows one more sending, or not; keeps what came of it."""

    def __init__(self, *, allowed: bool = True) -> None:
        self.allowed = allowed
        self.ended: list[bool] = []

    def begin_resend(self) -> bool:
        return self.allowed

    def end_resend(self, *, sent: bool) -> None:
        self.ended.append(sent)


def request(
    body: bytes | AsyncIterable[bytes] = b"hello",
    timeouts: Timeouts = PATIENT,
    resending: Resending | None = None,
) -> WireRequest:
    length = (b"Content-Length", str(len(body)).encode()) if isinstance(body, bytes) else CHUNKED
    return WireRequest(b"POST", b"/x", [(b"Host", b"replica"), length], body, timeouts, {}, resending)


def origin(server: Scripted, scheme: str = "http") -> Origin:
    return Origin.from_url(f"{scheme}://{server.address}")


async def read(answer: WireAnswer) -> bytes:
    return b"".join([chunk async for chunk in answer])


async def closed_by_peer(answer: WireAnswer) -> None:
    """Wait until the end that the server has sent is here: then the idle connection's socket is readable."""
    file = answer.extensions["network_stream"].get_extra_info("socket").fileno()
    readable, _, _ = await anyio.to_thread.run_sync(select.select, [file], [], [], 10)
    assert readable


def ok(exchange: Exchange) -> None:
    exchange.answer(200, b"fine")


@contextmanager
def closing(wire: Wire) -> Iterator[Wire]:
    """However the test goes, no connection is left busy."""
    yield wire
    assert wire.counts()[1] == 0


async def test_connections_are_reused_newest_first() -> None:
    with Scripted(ok) as server, closing(Wire(WireOptions())) as wire:
        held = [await wire.open(origin(server), request()) for _ in range(3)]
        assert wire.counts() == (0, 3)
        for answer in held:
            await read(answer)
        assert wire.counts() == (3, 0)
        for _ in range(5):
            await read(await wire.open(origin(server), request()))
        assert server.connections == 3
        assert {id(e.connection) for e in server.exchanges[3:]} == {id(server.exchanges[2].connection)}
        await wire.aclose()
        assert wire.counts() == (0, 0)


async def test_a_connection_that_the_server_closed_is_not_used_again() -> None:
    def once(exchange: Exchange) -> None:
        ok(exchange)
        exchange.connection.shutdown(socket.SHUT_RDWR)

    with Scripted(once) as server, closing(Wire(WireOptions())) as wire:
        for _ in range(3):
            answer = await wire.open(origin(server), request())
            assert await read(answer) == b"fine"
            await closed_by_peer(answer)
        assert len(server.exchanges) == 3
        await wire.aclose()


def close(exchange: Exchange) -> None:
    exchange.connection.shutdown(socket.SHUT_RDWR)
    exchange.connection.close()


def reset(exchange: Exchange) -> None:
    exchange.reset()


@pytest.mark.parametrize("end", [close, reset])
@pytest.mark.parametrize("resends", [Resends(), Resends(allowed=False), None])
async def test_a_request_that_met_a_closing_connection_is_sent_once_more_if_it_may(
    end: Script, resends: Resends | None
) -> None:
    resend = resends is not None and resends.allowed
    with (
        Scripted(lambda exchange: (end if exchange.number == 2 else ok)(exchange)) as server,
        closing(Wire(WireOptions())) as wire,
    ):
        await read(await wire.open(origin(server), request()))
        again = request(resending=resends)
        if resend:
            assert await read(await wire.open(origin(server), again)) == b"fine"
        else:
            with pytest.raises(WireError) as caught:
                await wire.open(origin(server), again)
            assert caught.value.kind in (FailureKind.PROTOCOL, FailureKind.READ)
        assert len(server.exchanges) == (3 if resend else 2)
        if resends is not None:
            assert resends.ended == [True] * resend
            resends.ended.clear()
        await wire.aclose()


@pytest.mark.parametrize("end", [close, reset])
@pytest.mark.parametrize("began", [b"HTTP/1.1 200 OK\r\ncontent-len", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_request_of_whose_answer_anything_came_is_not_sent_again(end: Script, began: bytes) -> None:
    def break_off(exchange: Exchange) -> None:
        if exchange.number == 1:
            return ok(exchange)
        exchange.send(began)
        return end(exchange)

    with Scripted(break_off) as server, closing(Wire(WireOptions())) as wire:
        await read(await wire.open(origin(server), request()))
        with pytest.raises(WireError) as caught:
            await wire.open(origin(server), request(resending=Resends()))
        assert caught.value.sent
        assert len(server.exchanges) == 2


async def test_a_replica_that_a_request_may_have_killed_is_not_one_that_it_was_never_sent_to() -> None:
    resends = Resends()

    def crash(exchange: Exchange) -> None:
        if exchange.number == 1:
            return ok(exchange)
        server.stop_listening()
        return exchange.reset()

    with Scripted(crash) as server, closing(Wire(WireOptions())) as wire:
        await read(await wire.open(origin(server), request()))
        with pytest.raises(WireError, match="onnect") as caught:
            await wire.open(origin(server), request(resending=resends))
        assert caught.value.sent
        assert resends.ended == [False]


async def test_a_fresh_connection_that_dies_is_not_tried_again() -> None:
    def die(exchange: Exchange) -> None:
        exchange.reset()

    with Scripted(die) as server, closing(Wire(WireOptions())) as wire:
        with pytest.raises(WireError):
            await wire.open(origin(server), request())
        assert len(server.exchanges) == 1


async def test_nobody_there_is_a_failure_to_connect() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        free = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with closing(Wire(WireOptions())) as wire:
        with pytest.raises(WireError) as caught:
            await wire.open(Origin.from_url(free), request())
        assert caught.value.kind is FailureKind.CONNECT
        assert caught.value.kind.never_sent


@pytest.mark.parametrize("host", ["a..b", "a" * 64])
async def test_a_name_that_cannot_be_looked_up_is_a_failure_to_connect(host: str) -> None:
    with closing(Wire(WireOptions())) as wire:
        with pytest.raises(WireError) as caught:
            await wire.open(Origin(b"http", host.encode(), 80), request())
        assert caught.value.kind is FailureKind.CONNECT


async def test_a_connection_that_cannot_have_its_options_is_closed() -> None:
    unheard_of = [(socket.IPPROTO_TCP, 9_999, 1)]
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        closing(Wire(WireOptions(socket_options=unheard_of))) as wire,
    ):
        place = Origin.from_url(f"http://127.0.0.1:{listener.getsockname()[1]}")
        gc.disable()  # which would close what nobody has closed
        with pytest.raises(WireError) as caught:
            await wire.open(place, request())
        accepted, _ = listener.accept()
        with accepted:
            accepted.settimeout(10)
            rest = await anyio.to_thread.run_sync(accepted.recv, 1)
        gc.enable()
        assert caught.value.kind is FailureKind.CONNECT
        assert rest == b""


@asynccontextmanager
async def beside(loop: Callable[..., Awaitable[None]], *args: object) -> AsyncIterator[None]:
    """While a loop runs, which has begun."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(loop, *args)
        await anyio.lowlevel.checkpoint()
        yield
        tasks.cancel_scope.cancel()


def never(exchange: Exchange) -> None:
    """Do not answer."""
    exchange.wait_gone()


@pytest.fixture(params=["alone", "tended"])
async def patient(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, authority: trustme.CA
) -> AsyncIterator[Wire]:
    """A wire whose reads and writes are timed one by one, or by one look at all of them."""
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    monkeypatch.setattr("mlbalance_client.wire.closing.LOOKS_EVERY_S", 0.01)
    monkeypatch.setattr("mlbalance_client.wire.tcp.LONG_S", 0.0)
    with closing(Wire(WireOptions(ssl_context=trusting))) as wire:
        async with anyio.create_task_group() as tasks:
            if request.param == "tended":
                tasks.start_soon(wire.tend)
                await anyio.lowlevel.checkpoint()
            yield wire
            tasks.cancel_scope.cancel()


BRIEF = Timeouts(10.0, 0.05, 0.05)


async def test_a_slow_answer_is_a_read_timeout(patient: Wire) -> None:
    with Scripted(never) as server:
        with pytest.raises(WireError) as caught:
            await patient.open(origin(server), request(timeouts=BRIEF))
        assert caught.value.kind is FailureKind.READ_TIMEOUT


async def test_an_answer_that_stalls_is_a_read_timeout(patient: Wire) -> None:
    def stall(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(b"a")
        exchange.wait_gone()

    with Scripted(stall) as server:
        answer = await patient.open(origin(server), request(timeouts=BRIEF))
        assert await anext(answer) == b"a"
        with pytest.raises(WireError) as caught:
            await anext(answer)
        assert caught.value.kind is FailureKind.READ_TIMEOUT


async def test_a_stall_under_tls_is_a_read_timeout(patient: Wire, authority: trustme.CA) -> None:
    with https_server(authority, answers=False) as url:
        with pytest.raises(WireError) as caught:
            await patient.open(Origin.from_url(url), request(timeouts=BRIEF))
        assert caught.value.kind is FailureKind.READ_TIMEOUT


async def test_a_server_that_takes_in_nothing_is_a_write_timeout(patient: Wire) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        deaf = Origin.from_url(f"http://127.0.0.1:{listener.getsockname()[1]}")
        with pytest.raises(WireError) as caught:
            await patient.open(deaf, request(b"x" * 50_000_000, BRIEF))
        assert caught.value.kind is FailureKind.WRITE_TIMEOUT


async def test_what_is_written_meanwhile_keeps_no_read_from_its_timeout(patient: Wire) -> None:
    def upgrade(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: chat\r\n\r\n")
        exchange.wait_gone()

    wish = request(b"", BRIEF)
    wish.headers += [(b"Connection", b"upgrade"), (b"Upgrade", b"chat")]
    with Scripted(upgrade) as server:
        answer = await patient.open(origin(server), wish)
        stream = answer.extensions["network_stream"]

        async def read_on() -> None:
            with pytest.raises(httpcore.ReadTimeout):
                await stream.read(1, 0.05)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read_on)
                await anyio.lowlevel.checkpoint()
                await stream.write(b"more", 10.0)
        await answer.aclose()


async def test_a_connection_that_is_overdue_is_not_used_again_though_its_answer_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    may_answer, has_answered = threading.Event(), threading.Event()

    def slow(exchange: Exchange) -> None:
        may_answer.wait(10)
        ok(exchange)
        has_answered.set()

    monkeypatch.setattr("mlbalance_client.wire.tcp.LONG_S", 0.0)
    closer = Closing()
    patience = Patience(closer)
    answers = []

    async def call() -> None:
        answers.append(
            await read(await wire.open(origin(server), request(timeouts=Timeouts(10.0, 1e-9, 10.0))))
        )

    with Scripted(slow) as server, closing(Wire(WireOptions(network_backend=Tcp(patience)))) as wire:
        async with beside(closer.tend, tuple):
            async with anyio.create_task_group() as calls:
                await anyio.wait_all_tasks_blocked()
                calls.start_soon(call)
                assert await anyio.to_thread.run_sync(eventually, lambda: server.exchanges)
                await anyio.wait_all_tasks_blocked()
                may_answer.set()
                has_answered.wait(10)  # in this thread, so that nobody reads it yet
                assert patience.overdue() or patience.overdue()
            answers.append(await read(await wire.open(origin(server), request())))
        await wire.aclose()
    assert answers == [b"fine", b"fine"]
    assert server.connections == 2


async def test_what_came_while_the_event_loop_was_kept_busy_is_not_late(
    patient: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Mock()
    clock.monotonic.return_value = 0.0
    monkeypatch.setattr("mlbalance_client.wire.tcp.time", clock)
    may_begin, has_begun, may_end = (threading.Semaphore(0) for _ in range(3))

    def slow(exchange: Exchange) -> None:
        may_begin.acquire(timeout=10)
        exchange.start_stream()
        exchange.chunk(b"a")
        has_begun.release()
        may_end.acquire(timeout=10)
        exchange.chunk(b"b")
        exchange.end_stream()

    async def call() -> None:
        answer = await patient.open(origin(server), request())
        assert await anext(answer) == b"a"
        may_end.release()
        assert await read(answer) == b"b"

    with Scripted(slow) as server:
        for number in range(1, 11):  # for trio runs its tasks in no order
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                assert await anyio.to_thread.run_sync(eventually, lambda n=number: len(server.exchanges) == n)
                may_begin.release()
                assert has_begun.acquire(timeout=10)
                time.sleep(0.02)  # noqa: ASYNC251 - the event loop is kept busy, until a look is due
                clock.monotonic.return_value += 100.0
        await patient.aclose()


async def test_who_has_what_he_waited_for_is_not_late_ever_after(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Mock()
    clock.monotonic.return_value = 0.0
    monkeypatch.setattr("mlbalance_client.wire.tcp.time", clock)
    closer = Closing()
    patience = Patience(closer)
    with Scripted(ok) as server, closing(Wire(WireOptions(network_backend=Tcp(patience)))) as wire:
        async with beside(closer.tend, tuple):
            await read(await wire.open(origin(server), request()))
            for _ in range(2):
                clock.monotonic.return_value += 100.0
                assert not patience.overdue()
        await wire.aclose()


async def test_a_short_time_is_kept_to_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlbalance_client.wire.closing.LOOKS_EVERY_S", 1_000.0)
    with (
        Scripted(never) as server,
        closing(Wire(WireOptions())) as wire,
    ):
        async with beside(wire.tend):
            with pytest.raises(WireError) as caught:
                await wire.open(origin(server), request(timeouts=BRIEF))
        assert caught.value.kind is FailureKind.READ_TIMEOUT


async def test_when_nobody_looks_any_more_each_is_timed_and_closed_by_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mlbalance_client.wire.tcp.LONG_S", 0.0)
    with (
        Scripted(never) as server,
        closing(Wire(WireOptions())) as wire,
    ):
        async with beside(wire.tend):
            pass
        with pytest.raises(WireError) as caught:
            await wire.open(origin(server), request(timeouts=BRIEF))
        assert caught.value.kind is FailureKind.READ_TIMEOUT


async def test_nobody_looks_for_what_is_late_because_a_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[object] = []

    def look() -> list[httpcore.AsyncNetworkStream]:
        looks.append(None)
        return []

    monkeypatch.setattr("mlbalance_client.wire.closing.LOOKS_EVERY_S", 1_000.0)
    closer = Closing()
    async with beside(closer.tend, look):
        for _ in range(10):
            await closer.close(httpcore.AsyncMockStream([]))
            await anyio.wait_all_tasks_blocked()
    assert not looks


@pytest.mark.parametrize("length", [b"3", b"30"])
async def test_a_body_of_another_length_than_said_is_the_callers_fault(length: bytes) -> None:
    wrong = request()
    wrong.headers[1] = (b"Content-Length", length)
    with Scripted(ok) as server, closing(Wire(WireOptions())) as wire:
        with pytest.raises(WireError) as caught:
            await wire.open(origin(server), wrong)
        assert caught.value.kind is FailureKind.REQUEST
        assert wire.counts() == (0, 0)


@pytest.mark.parametrize("own", [FileNotFoundError("mine"), LookupError("mine"), TimeoutError("mine")])
async def test_what_the_callers_body_raises_is_the_callers(own: Exception) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"x"
        raise own

    with Scripted(ok) as server, closing(Wire(WireOptions())) as wire:
        with pytest.raises(type(own), match="mine") as caught:
            await wire.open(origin(server), request(broken()))
        assert caught.value is own
        assert wire.counts() == (0, 0)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"bye",
    ],
)
async def test_an_answer_that_is_no_http_is_one_clear_failure(nonsense: bytes) -> None:
    def babble(exchange: Exchange) -> None:
        exchange.send(nonsense)
        exchange.connection.shutdown(socket.SHUT_RDWR)

    with Scripted(babble) as server, closing(Wire(WireOptions())) as wire:
        with pytest.raises(WireError) as caught:
            await wire.open(origin(server), request())
        assert caught.value.kind in (FailureKind.PROTOCOL, FailureKind.READ)
        assert str(caught.value)


@pytest.mark.parametrize(
    "body",
    [
        b"content-length: 99\r\n\r\nshort",
        b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"transfer-encoding: chunked\r\n\r\nzz\r\nhello\r\n",
    ],
)
async def test_a_body_that_breaks_off_is_a_failure_after_what_came(body: bytes) -> None:
    def breaking(exchange: Exchange) -> None:
        exchange.send(b"HTTP/1.1 200 OK\r\n" + body)
        exchange.connection.shutdown(socket.SHUT_RDWR)

    with Scripted(breaking) as server, closing(Wire(WireOptions())) as wire:
        answer = await wire.open(origin(server), request())
        with pytest.raises(WireError):
            await read(answer)
        assert wire.counts() == (0, 0)


class EndlessBody:
    """Not a generator: nobody would close it."""

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return b"x" * 65536


@pytest.mark.parametrize("stage", ["connecting", "sending", "waiting", "reading"])
async def test_a_cancel_at_any_stage_leaves_no_connection(stage: str) -> None:
    reached = threading.Event()

    def stuck(exchange: Exchange) -> None:
        if stage == "reading":
            exchange.start_stream()
            exchange.chunk(b"a")
        reached.set()
        exchange.wait_gone()

    async def call(wire: Wire, server: Scripted) -> None:
        answer = await wire.open(origin(server), request(EndlessBody() if stage == "sending" else b"x"))
        if stage == "reading":
            await read(answer)

    with Scripted(stuck) as server, closing(Wire(WireOptions())) as wire:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, wire, server)
            await anyio.lowlevel.checkpoint()
            if stage in ("waiting", "reading"):
                assert await anyio.to_thread.run_sync(reached.wait, 10)
            elif stage == "sending":
                assert await anyio.to_thread.run_sync(eventually, lambda: server.connections == 1)
            tasks.cancel_scope.cancel()
        assert wire.counts() == (0, 0)


async def test_a_body_that_is_closed_while_it_is_read_says_so() -> None:
    def endless(exchange: Exchange) -> None:
        exchange.start_stream()
        exchange.chunk(b"a")
        exchange.wait_gone()

    async def read_on(answer: WireAnswer) -> None:
        with pytest.raises(WireError, match="closed while it was being read") as caught:
            await read(answer)
        assert caught.value.kind is FailureKind.READ

    with Scripted(endless) as server, closing(Wire(WireOptions())) as wire:
        answer = await wire.open(origin(server), request())
        async with anyio.create_task_group() as tasks:
            assert await anext(answer) == b"a"
            tasks.start_soon(read_on, answer)
            await anyio.wait_all_tasks_blocked()
            await answer.aclose()
        assert wire.counts() == (0, 0)


async def test_a_cancel_while_tls_is_agreed_on_closes_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, closing(Wire(WireOptions())) as wire:
        silent = Origin.from_url(f"https://127.0.0.1:{listener.getsockname()[1]}")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wire.open, silent, request())
            accepted, _ = await anyio.to_thread.run_sync(listener.accept)
            with accepted:
                accepted.settimeout(10)
                hello = await anyio.to_thread.run_sync(accepted.recv, 65536)
                tasks.cancel_scope.cancel()
                gc.disable()  # which would close what nobody has closed
                with anyio.CancelScope(shield=True):
                    rest = await anyio.to_thread.run_sync(accepted.recv, 65536)
        gc.enable()
        assert hello
        assert rest == b""


async def test_many_calls_cancelled_at_random_leave_nothing() -> None:
    rng = random.Random(5)
    with Scripted(ok) as server, closing(Wire(WireOptions())) as wire:

        async def call() -> None:
            with anyio.move_on_after(rng.random() * 0.01):
                await read(await wire.open(origin(server), request()))

        async with anyio.create_task_group() as tasks:
            for _ in range(200):
                tasks.start_soon(call)
        assert wire.counts()[1] == 0
        assert await read(await wire.open(origin(server), request())) == b"fine"
        await wire.aclose()


async def test_closing_an_origin_closes_its_idle_connections_and_keeps_no_other() -> None:
    with Scripted(ok) as one, Scripted(ok) as two, closing(Wire(WireOptions())) as wire:
        busy = await wire.open(origin(one), request())
        for server in (one, two):
            await read(await wire.open(origin(server), request()))
        wire.forget(origin(one))
        await wire.reap()
        assert wire.counts()[0] == 1
        assert await read(busy) == b"fine"
        assert wire.counts()[0] == 1
        await wire.aclose()


async def idle_sockets(wire: Wire, server: Scripted, number: int) -> list[socket.socket]:
    """Those of so many connections that have served and wait for use."""
    held = [await wire.open(origin(server), request()) for _ in range(number)]
    sockets = [answer.extensions["network_stream"].get_extra_info("socket") for answer in held]
    for answer in held:
        await read(answer)
    return sockets


async def test_reaping_closes_what_the_replica_closed_and_no_other() -> None:
    with Scripted(ok) as server, closing(Wire(WireOptions())) as wire:
        sockets = await idle_sockets(wire, server, 3)
        server.exchanges[0].connection.shutdown(socket.SHUT_RDWR)
        await anyio.to_thread.run_sync(select.select, [sockets[0].fileno()], [], [], 10)
        await wire.reap()
        assert wire.counts() == (2, 0)
        assert [each.fileno() == -1 for each in sockets] == [True, False, False]
        await wire.aclose()


async def test_expired_connections_are_closed_side_by_side_and_delay_no_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closing_now: list[Connection] = []
    all_at_once = anyio.Event()

    async def close_together(connection: Connection) -> None:
        closing_now.append(connection)
        if len(closing_now) == 5:
            all_at_once.set()
        await all_at_once.wait()
        await httpcore.AsyncHTTPConnection.aclose(connection)

    with Scripted(ok) as server, closing(Wire(WireOptions(keepalive_expiry_s=0.0))) as wire:
        sockets = await idle_sockets(wire, server, 5)
        monkeypatch.setattr(Connection, "aclose", close_together)
        answer = await wire.open(origin(server), request())
        assert not closing_now
        await wire.reap()
        assert all_at_once.is_set()
        assert {each.fileno() for each in sockets} == {-1}
        monkeypatch.undo()
        assert await read(answer) == b"fine"
        await wire.aclose()


async def test_closing_ends_what_still_waits_on_an_origin_that_is_gone() -> None:
    reached = threading.Event()

    def silent(exchange: Exchange) -> None:
        reached.set()
        exchange.wait_gone()

    async def wait(wire: Wire, server: Scripted) -> None:
        with pytest.raises(WireError):
            await wire.open(origin(server), request())

    with Scripted(silent) as server, closing(Wire(WireOptions())) as wire:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, wire, server)
            assert await anyio.to_thread.run_sync(reached.wait, 10)
            wire.forget(origin(server))
            assert wire.counts() == (0, 1)
            await wire.aclose()
        assert wire.counts() == (0, 0)


@pytest.mark.parametrize("met", [True, False])
async def test_closing_an_origin_closes_the_expired_too(met: bool) -> None:
    with Scripted(ok) as server, closing(Wire(WireOptions(keepalive_expiry_s=0.0))) as wire:
        sockets = await idle_sockets(wire, server, 2)
        if met:
            sockets += await idle_sockets(wire, server, 1)
        wire.forget(origin(server))
        await wire.reap()
        assert {each.fileno() for each in sockets} == {-1}


async def test_a_tls_context_that_cannot_be_made_leaves_no_connection_busy() -> None:
    def broken() -> ssl.SSLContext:
        raise mlb.ConfigError("no such file")

    with closing(Wire(WireOptions(ssl_context=broken))) as wire:
        with pytest.raises(mlb.ConfigError):
            await wire.open(Origin.from_url("https://127.0.0.1:1"), request())
        assert wire.counts() == (0, 0)


async def test_no_more_idle_connections_are_kept_than_allowed() -> None:
    with Scripted(ok) as server, closing(Wire(WireOptions(max_idle_per_replica=1))) as wire:
        held = [await wire.open(origin(server), request()) for _ in range(3)]
        for answer in held:
            await read(answer)
        assert wire.counts() == (1, 0)
        await wire.aclose()


async def test_a_closed_wire_refuses() -> None:
    wire = Wire(WireOptions())
    await wire.aclose()
    await wire.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await wire.open(Origin.from_url("http://127.0.0.1:1"), request())


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@contextmanager
def https_server(authority: trustme.CA, *, answers: bool = True) -> Iterator[str]:
    """One that answers every connection once, or never, over TLS, for as long as the block lasts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as connection:
                    while connection.recv(65536) and not answers:
                        pass
                    connection.sendall(
                        b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nsafe"
                    )
            except OSError:
                plain.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"https://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def config(url: str) -> mlb.BalancerConfig:
    return mlb.BalancerConfig(discovery={"kind": "static", "replicas": [url]}, load_reports={"kind": "none"})


async def test_replicas_over_tls_are_verified_by_the_callers_authority(authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with https_server(authority) as url:
        async with mlb.AsyncClient(config(url), verify=trusting) as client:
            assert (await client.get("/")).text == "safe"


async def test_a_replica_whose_certificate_nobody_vouches_for_gets_nothing(authority: trustme.CA) -> None:
    with https_server(authority) as url:
        async with mlb.AsyncClient(config(url)) as client:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.post("/", headers={"authorization": "Bearer secret"}, json={})


async def test_verification_can_be_turned_off_by_name(authority: trustme.CA) -> None:
    with https_server(authority) as url:
        async with mlb.AsyncClient(config(url), verify=False) as client:
            assert (await client.get("/")).text == "safe"


class _Cut(httpcore.AsyncNetworkStream):
    """Answers one request; the next one's body it does not take."""

    def __init__(self) -> None:
        self._writes = 0
        self._answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not self._answer:
            raise httpcore.ReadError("broken pipe")
        answer, self._answer = self._answer, b""
        return answer

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._writes += 1
        if self._writes > 3:
            raise httpcore.WriteError("broken pipe")

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> object:
        return None


class _Once(httpcore.AsyncNetworkBackend):
    """Connects once, then refuses."""

    def __init__(self) -> None:
        self._connected = False

    async def connect_tcp(self, *address: object, **options: object) -> httpcore.AsyncNetworkStream:
        if self._connected:
            raise httpcore.ConnectError("refused")
        self._connected = True
        return _Cut()


async def test_what_was_cut_while_it_was_sent_and_could_not_be_sent_anew_was_never_sent() -> None:
    wire, place = Wire(WireOptions(network_backend=_Once())), Origin.from_url("http://replica:80")
    with closing(wire):
        await read(await wire.open(place, request()))
        resends = Resends()
        with pytest.raises(WireError) as raised:
            await wire.open(place, request(resending=resends))
        assert raised.value.kind is FailureKind.CONNECT
        assert resends.ended == [False]
        await wire.aclose()
