"""The network under one connection, watched: httpcore does not say whether anything of an answer had come.

Its own words do not tell: "disconnected without sending a response" is also what it says of half a head.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import httpcore

from .closing import Closing


class WatchedNetwork(httpcore.AsyncNetworkBackend):
    """One for each connection. ``silent``: nothing was received since whoever cares set it to True.

    ``cut``: a write has failed, so that the other side cannot have had all that was to be sent.
    """

    def __init__(self, backend: httpcore.AsyncNetworkBackend, closing: Closing) -> None:
        self._backend = backend
        self.closing = closing
        self.silent = True
        self.cut = False
        self.closed = False

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            stream = await self._backend.connect_tcp(host, port, timeout, local_address, socket_options)
        except UnicodeError as error:  # the resolver cannot encode the name, and httpcore maps only OSError
            raise httpcore.ConnectError(f"the host name {host!r} cannot be looked up: {error}") from error
        watched = _WatchedStream(stream, self)
        if self.closed:
            await watched.aclose()
            raise httpcore.ConnectError("closed while it was being connected")
        return watched


class _WatchedStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream, network: WatchedNetwork) -> None:
        self._stream = stream
        self._network = network
        self._closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = await self._stream.read(max_bytes, timeout)
        if data:
            self._network.silent = False
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        try:
            await self._stream.write(buffer, timeout)
        except Exception:
            self._network.cut = True
            raise

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            await self._network.closing.close(self._stream)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            stream = await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:  # httpcore closes it on errors only, not when it is cancelled
            await self.aclose()
            raise
        return _WatchedStream(stream, self._network)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
