"""One request on its way through the app: its call is counted in when its body is whole, and out on every way."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import Any

from ..core.load.format import HEADER
from ..dialects import AnswerWatch, Dialect, Ending, Reading, Sign
from ..dialects.watches import BlindWatch
from .asgi import Message, Receive, Scope, Send
from .board import LoadBoard
from .call import BoardCall

LOGGER = logging.getLogger("mlbalance_client")
_HEADER = HEADER.encode("ascii")
_BUSY = frozenset({429, 503})
_PIECES, _SMALL = 32, 4096


def with_load(message: Message, value: str) -> Message:
    """The head of an answer with the load in it; the app's own message stays as it is."""
    headers = [pair for pair in message.get("headers", ()) if pair[0] != _HEADER]
    headers.append((_HEADER, value.encode("ascii")))
    return {**message, "headers": headers}


class WatchedCall:
    """``receive`` and ``send`` for the app, around those of the server. Bytes pass as they are, at once."""

    __slots__ = (
        "_app_send", "_board", "_call", "_call_id", "_chunks", "_client", "_dialect", "_passing", "_receive", "_scope",
        "_send", "_size", "_watch", "_work",
    )  # fmt: skip

    def __init__(
        self,
        board: LoadBoard,
        dialect: Dialect,
        scope: Scope,
        receive: Receive,
        send: Send,
        call_id: str | None,
    ) -> None:
        self._board = board
        self._dialect = dialect
        self._scope = scope
        self._receive = receive
        self._send = send
        self._call_id = call_id
        self._client = call_id.partition(".")[0] if call_id else None
        self._chunks: list[bytes] | None = []
        self._size = 0
        self._call: BoardCall | None = None
        self._watch: AnswerWatch | None = None
        self._passing: list[bytes] | None = None

    async def receive(self) -> Message:
        """What the server has for the app; the end of the body begins the call."""
        message = await self._receive()
        if self._chunks is not None and message["type"] == "http.request":
            self._keep(message)
        return message

    def send(self, message: Message) -> Awaitable[None]:
        """What the app has for the server. No coroutine of our own: most messages are single tokens."""
        passing = self._passing
        if passing is not None and message.get("more_body"):
            self._work.produced += 1
            passing.append(body := message.get("body", b""))
            if len(passing) == _PIECES or len(body) > _SMALL:
                self._pass_on()
        elif message["type"] == "http.response.body":
            return self._body(message)
        elif message["type"] == "http.response.start":
            message = self._head(message)
        return self._send(message)

    def close(self) -> None:
        """The app is done with the request, in whatever way."""
        self._chunks = None
        if self._call is not None:
            self._call.fail()

    def _keep(self, message: Message) -> None:
        assert self._chunks is not None
        body = message.get("body", b"")
        self._size += len(body)
        if self._size <= self._board.settings.max_body_bytes:
            self._chunks.append(body)
        else:
            self._chunks.clear()
        if not message.get("more_body"):
            chunks, self._chunks = self._chunks, None
            self._begin(b"".join(chunks))

    def _begin(self, body: bytes) -> None:
        reading = Reading("bytes", prompt_bytes=self._size)
        if len(body) == self._size:
            try:
                reading = self._dialect.read(self._scope["path"], body)
            except Exception as error:
                self._blind(error)
        self._call = self._board.begin_reading(reading, self._call_id)

    def _head(self, message: Message) -> Message:
        status = message["status"]
        if status in _BUSY:
            self._board.refused()
        board, call, whole = self._board, self._call, False
        if call is not None:
            headers = {name.lower(): value for name, value in message.get("headers", ())}
            content_type = headers.get(b"content-type", b"").decode("latin-1").lower()
            if 200 <= status < 300:
                try:
                    self._watch = self._dialect.watch(status, content_type)
                except Exception as error:
                    self._blind(error)
            # A body of known length is there already, so that nothing is left to do for it.
            whole = b"content-length" in headers and not content_type.startswith("text/event-stream")
            if whole:
                board.answered(call)
        with board.lock:
            value = board.publisher.header(self._client, board.clock(), anew=whole)
        return with_load(message, value)

    def _body(self, message: Message) -> Awaitable[None]:
        watch, call = self._watch, self._call
        more = message.get("more_body", False)
        if watch is not None and call is not None and (body := message.get("body", b"")):
            if self._passing is not None:
                call.work.produced += 1
                self._passing.append(body)
            else:
                self._before_content(watch, call, body)
        return self._send(message) if more else self._last(message)

    def _before_content(self, watch: AnswerWatch, call: BoardCall, body: bytes) -> None:
        try:
            sign = watch.feed(body)
        except Exception as error:
            self._blind(error)
            return
        if sign is Sign.PREAMBLE:
            return
        self._passing, self._work = [], call.work
        if sign is Sign.CONTENT and call.work.visible:
            call.first_content()
            call.work.produced += 1

    def _pass_on(self) -> None:
        """Let the watch have what has passed: not each token by itself, which would cost as much as all else."""
        if self._watch is not None and self._passing:
            passed, self._passing = self._passing, []
            try:
                self._watch.passed(b"".join(passed))
            except Exception as error:
                self._blind(error)

    async def _last(self, message: Message) -> None:
        try:
            await self._send(message)
        finally:
            # The answer is whole, even if the client is gone or the app is cancelled while its last bytes go out.
            self._end()

    def _end(self) -> None:
        call = self._call
        if call is None or call.over:
            return
        self._pass_on()
        watch = self._watch
        if watch is None:
            call.fail()
            return
        try:
            ending = watch.end()
        except Exception as error:
            self._blind(error)
            ending = Ending(None, None, complete=True)
        self._settle(call, ending)

    def _blind(self, error: Exception) -> None:
        """A plugin's dialect has failed: what it would have told is not known, and the answer passes all the same."""
        LOGGER.debug("the dialect %r failed: %r", self._dialect.name, error)
        self._watch, self._passing = BlindWatch(), None

    def _settle(self, call: BoardCall, ending: Ending) -> None:
        if ending.error is not None:
            if ending.error.status in _BUSY:
                self._board.refused()
            call.fail()
            return
        usage: dict[str, Any] = {}
        if ending.usage is not None:
            usage = {
                "prompt_tokens": ending.usage.prompt_tokens,
                "cached_tokens": ending.usage.cached_tokens,
                "output_tokens": ending.usage.output_tokens,
            }
        call.succeed(**usage)
