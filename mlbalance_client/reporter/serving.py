"""``GET /mlbalance/v1/load`` as an ASGI app, and what it is made of for any other framework."""

from __future__ import annotations

from collections.abc import Iterator
from secrets import compare_digest

import anyio

from . import waiting
from .acks import client_name
from .asgi import Receive, Scope, Send, answer, header
from .board import LoadBoard
from .endings import hear_signals
from .publisher import BoardFull
from .subscriber import Subscriber, Waiter

PATH = "/mlbalance/v1/load"
CLIENT_HEADER = b"x-mlbalance-client"
_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


def allowed(board: LoadBoard, authorization: str | None) -> bool:
    """Whether a request with this ``Authorization`` may read the board."""
    token = board.settings.token
    if token is None:
        return True
    kind, _, given = (authorization or "").partition(" ")
    wanted = token.get_secret_value().encode()
    return compare_digest(given.strip().encode(), wanted) and kind.lower() == "bearer"


def snapshot(board: LoadBoard, client: str | None = None) -> bytes:
    """The load now, as JSON. ``client``: the request's ``x-mlbalance-client``."""
    with board.lock:
        now = board.clock()
        told = board.publisher.newest(now)
        return board.publisher.load(told, client_name(client or ""), None, now)


def events(board: LoadBoard, last_event_id: str | None = None, client: str | None = None) -> Iterator[bytes]:
    """The stream's bytes as they fall due, for servers that give a thread to a request; close it when it is left.

    Raises BoardFull at the first ``next``.
    """
    waiter = waiting.InThread()
    subscriber = _subscribe(board, last_event_id, client, waiter)
    try:
        while not subscriber.over:
            if data := subscriber.next():
                yield data
            wait_s, wakeable = subscriber.pause()
            waiter.wait(wait_s, wakeable)
    finally:
        subscriber.close()


class LoadApp:
    """An ASGI app that serves one board at any path: mount it at ``/mlbalance/v1/load``, or run it on its own port."""

    def __init__(self, board: LoadBoard) -> None:
        self.board = board
        self._hears_signals = not board.settings.signals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Snapshot or stream, as ``Accept`` asks."""
        if scope["type"] != "http":
            return
        if scope["method"] not in ("GET", "HEAD"):
            await answer(send, 405, b'{"error":"method not allowed"}', (b"allow", b"GET, HEAD"))
        elif not allowed(self.board, header(scope, b"authorization")):
            await answer(send, 401, b'{"error":"unauthorized"}', (b"www-authenticate", b"Bearer"))
        elif scope["method"] == "GET" and "text/event-stream" in (header(scope, b"accept") or "").lower():
            await self._stream(scope, receive, send)
        else:
            await answer(send, 200, snapshot(self.board, header(scope, CLIENT_HEADER)))

    async def _stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        client, last = header(scope, CLIENT_HEADER), header(scope, b"last-event-id")
        if not self._hears_signals:
            self._hears_signals = True
            hear_signals(self.board)
        leaving = anyio.CancelScope()
        waiter = waiting.waiting(leaving.cancel)
        try:
            subscriber = _subscribe(self.board, last, client, waiter)
        except BoardFull:
            await answer(send, 503, b'{"error":"too many subscribers"}', (b"retry-after", b"5"))
            return
        try:
            with leaving:
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(_until_gone, receive, leaving)
                    await _follow(subscriber, waiter, send)
                    leaving.cancel()
        finally:
            subscriber.close()


async def _follow(subscriber: Subscriber, waiter: waiting.Waiting, send: Send) -> None:
    while not subscriber.over:
        if data := subscriber.next():
            await send({"type": "http.response.body", "body": data, "more_body": True})
        wait_s, wakeable = subscriber.pause()
        await waiter.wait(wait_s, wakeable)
    await send({"type": "http.response.body", "body": b""})


async def _until_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _subscribe(board: LoadBoard, last_event_id: str | None, client: str | None, waiter: Waiter) -> Subscriber:
    with board.lock:
        return board.publisher.subscribe(client_name(client or ""), last_event_id, waiter)
