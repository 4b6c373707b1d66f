"""Driving an ASGI app by hand, on any event loop: every message in the test's sight."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from mlbalance_client.core.load.format import decode_load
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.reporter import LoadReporter, snapshot

CHAT = {"model": "m", "messages": [{"role": "user", "content": "why " * 1000}], "max_tokens": 9}
STREAM = {**CHAT, "stream": True}
EVENTS = [
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":null}]}\n\n',
    b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":2}}\n\n',
    b"data: [DONE]\n\n",
]


def scope_of(path: str, method: str = "POST", **headers: str) -> dict[str, Any]:
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http", "method": method, "path": path, "root_path": "", "headers": raw, "server": None}


class Exchange:
    """One request: the app's ``receive`` and ``send``, and what has been sent."""

    def __init__(
        self, body: Any = b"", path: str = "/v1/chat/completions", method: str = "POST", **headers: str
    ) -> None:
        self.scope = scope_of(path, method, **headers)
        self.sent: list[dict[str, Any]] = []
        self.gone = anyio.Event()
        self.writable = anyio.Event()
        self.writable.set()
        self._changed = anyio.Event()
        self._body: bytes | None = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await self.writable.wait()
        self.sent.append(message)
        self._changed.set()

    async def until(self, count: int) -> None:
        """Until ``count`` messages have been sent."""
        while len(self.sent) < count:
            self._changed = anyio.Event()
            await self._changed.wait()

    @property
    def head(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


def answering(
    *pieces: bytes,
    status: int = 200,
    content: bytes = b"text/event-stream",
    release: anyio.Event | None = None,
) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """An app that reads its request and, once it is released, sends these pieces."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if release is not None:
            await release.wait()
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", content)]})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return app


def load_of(reporter: LoadReporter, client: str | None = None) -> LoadReport:
    """The load now, not the one shared for a moment."""
    publisher = reporter.board.publisher
    publisher.tell(reporter.board.clock())
    return decode_load(snapshot(reporter.board, client), at=0.0, client=client)
