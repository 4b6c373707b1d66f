"""A network in memory, for httpcore on one side and asyncio's protocols on the other. Nothing on it takes any time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import anyio
import httpcore


class MemoryNetwork(httpcore.AsyncNetworkBackend):
    """Ports, and who listens there. ``refused``: when and where connections were asked for and nobody listened."""

    def __init__(self) -> None:
        self._listeners: dict[int, Callable[[], asyncio.Protocol]] = {}
        self._links: dict[int, set[_Link]] = {}
        self.refused: list[tuple[float, int]] = []

    def listen(self, port: int, protocol: Callable[[], asyncio.Protocol]) -> None:
        """Take connections at ``port``."""
        self._listeners[port] = protocol
        self._links.setdefault(port, set())

    def stop_listening(self, port: int) -> None:
        """Take no new ones."""
        self._listeners.pop(port, None)

    def reset(self, port: int) -> None:
        """Cut all connections, as the end of a process does."""
        for link in list(self._links[port]):
            link.reset()

    @property
    def open(self) -> int:
        """Connections that neither side has closed."""
        return sum(map(len, self._links.values()))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        await asyncio.sleep(0)
        listener = self._listeners.get(port)
        if listener is None:
            self.refused.append((asyncio.get_running_loop().time(), port))
            raise httpcore.ConnectError("connection refused")
        link = _Link(listener(), self._links[port])
        return link.client

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Link:
    """One connection; what is written arrives in the loop's next round."""

    def __init__(self, protocol: asyncio.Protocol, peers: set[_Link]) -> None:
        self.protocol = protocol
        self.client = _ClientEnd(self)
        self.server = _ServerEnd(self)
        self.loop = asyncio.get_running_loop()
        self._peers = peers
        self._over = False
        peers.add(self)
        protocol.connection_made(self.server)

    def reset(self) -> None:
        """Both sides lose it."""
        self.client.fail()
        self.end(ConnectionResetError("reset"))

    def end(self, error: Exception | None = None) -> None:
        """The server's side is over."""
        if not self._over:
            self._over = True
            self._peers.discard(self)
            self.loop.call_soon(self.protocol.connection_lost, error)

    def to_server(self, data: bytes) -> None:
        """Deliver, unless it is over."""
        if not self._over:
            self.protocol.data_received(data)


class _ClientEnd(httpcore.AsyncNetworkStream):
    def __init__(self, link: _Link) -> None:
        self._link = link
        self._buffer = bytearray()
        self._waiting: asyncio.Future[None] | None = None
        self._eof = self._broken = self._closed = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if not (self._buffer or self._eof or self._broken):
            self._waiting = self._link.loop.create_future()
            try:
                if timeout is None:
                    await self._waiting
                else:
                    with anyio.fail_after(timeout):
                        await self._waiting
            except TimeoutError as error:
                raise httpcore.ReadTimeout from error
            finally:
                self._waiting = None
        if self._broken:
            raise httpcore.ReadError("connection reset by peer")
        data = bytes(self._buffer[:max_bytes])
        del self._buffer[:max_bytes]
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self._broken or self._closed:
            raise httpcore.WriteError("broken pipe")
        self._link.server.deliver(buffer)

    async def aclose(self) -> None:
        if not self._closed:
            self._closed = True
            self.fail()
            self._link.end()

    def get_extra_info(self, info: str) -> Any:
        return bool(self._buffer) or self._eof or self._broken if info == "is_readable" else None

    def fed(self, data: bytes) -> None:
        """The server has written."""
        self._buffer += data
        self._wake()

    def ended(self) -> None:
        """The server has closed."""
        self._eof = True
        self._wake()

    def fail(self) -> None:
        """The connection is no more."""
        self._broken = True
        self._wake()

    def _wake(self) -> None:
        if self._waiting is not None:
            with suppress(asyncio.InvalidStateError):
                self._waiting.set_result(None)


class _ServerEnd(asyncio.Transport):
    def __init__(self, link: _Link) -> None:
        super().__init__()
        self._link = link
        self._closing = False
        self._paused: list[bytes] | None = None

    def deliver(self, data: bytes) -> None:
        """The client has written."""
        if self._paused is not None:
            self._paused.append(data)
        else:
            self._link.loop.call_soon(self._link.to_server, data)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._closing:
            self._link.client.fed(bytes(data))

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._link.client.ended()
            self._link.end()

    def abort(self) -> None:
        self._link.reset()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = self._paused or []

    def resume_reading(self) -> None:
        late, self._paused = self._paused or [], None
        for data in late:
            self._link.loop.call_soon(self._link.to_server, data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name in ("peername", "sockname") else default
