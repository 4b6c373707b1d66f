"""The load reporter: an ASGI middleware, as vLLM takes it (``--middleware mlbalance_client.reporter.LoadReporter``)."""

from __future__ import annotations

import logging
from typing import Any

from ..dialects import Dialect, find
from ..errors import ConfigError
from .asgi import App, Message, Receive, Scope, Send, header
from .board import LoadBoard
from .engine_facts import kv_tokens
from .serving import PATH, LoadApp
from .settings import ReporterSettings
from .siblings import Siblings
from .watch import WatchedCall, with_load

LOGGER = logging.getLogger("mlbalance_client")
_CALL_HEADER = b"x-mlbalance-call"


class LoadReporter:
    """Counts the calls that pass, serves ``GET /mlbalance/v1/load``, and puts the load into every answer's head.

    Settings come from ``MLBALANCE_REPORTER_*`` variables, or by name: ``LoadReporter(app, replica="llm-7")``. Raises
    ConfigError. ``board``: one that is made already. Everything passes as it is: bytes, back pressure, disconnects,
    web sockets, lifespan.
    """

    def __init__(self, app: App, *, board: LoadBoard | None = None, **settings: Any) -> None:
        if board is not None and settings:
            raise ConfigError(f"{', '.join(settings)}: a board that is given has its settings already")
        self.app = app
        self.board = board or LoadBoard(ReporterSettings.from_env(**settings))
        self._load = LoadApp(self.board)
        self._paths = self.board.settings.paths
        self._siblings = Siblings() if self.board.settings.partial is None else None
        self._asked_engine = self._complained = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, web socket or life of the server."""
        if scope["type"] == "http":
            if self._siblings is not None:
                self.board.partial = self._siblings.found(scope)
            path = scope["path"]
            if path == PATH or (path.endswith(PATH) and path == scope.get("root_path", "") + PATH):
                await self._report(scope, receive, send)
            else:
                await self._pass(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _report(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._asked_engine and self.board.settings.kv_tokens is None:
            self._asked_engine = True
            if (tokens := await kv_tokens(self.app, scope)) is not None:
                self.board.set_kv_tokens(tokens)
        await self._load(scope, receive, send)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        dialect = self._dialect(scope)
        if dialect is None:
            await self.app(scope, receive, self._heading(send))
            return
        call_id = header(scope, _CALL_HEADER)
        call = WatchedCall(self.board, dialect, scope, receive, send, call_id)
        try:
            await self.app(scope, call.receive, call.send)
        finally:
            call.close()

    def _dialect(self, scope: Scope) -> Dialect | None:
        if scope["method"] != "POST":
            return None
        path = scope["path"]
        try:
            dialect = find("POST", path)
        except ConfigError as error:  # a plugin that cannot be loaded must not stop the server's own answers
            if not self._complained:
                self._complained = True
                LOGGER.warning("calls of unknown dialects are not counted: %s", error)
            return None
        return dialect if dialect.name != "bytes" or path.endswith(self._paths) else None

    def _heading(self, send: Send) -> Send:
        board = self.board

        async def headed(message: Message) -> None:
            if message["type"] == "http.response.start":
                with board.lock:
                    value = board.publisher.header(None, board.clock())
                message = with_load(message, value)
            await send(message)

        return headed

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        board = self.board

        async def hears() -> Message:
            message = await receive()
            if message["type"] == "lifespan.startup":
                board.booting()
            elif message["type"] == "lifespan.shutdown":
                board.close()
                if self._siblings is not None:
                    self._siblings.close()
            return message

        async def says(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                board.booting(False)
            await send(message)

        try:
            await self.app(scope, hears, says)
        finally:
            board.booting(False)
