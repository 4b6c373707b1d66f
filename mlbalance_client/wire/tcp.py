"""TCP and TLS over anyio, for asyncio and trio alike.

A cancel scope for each read and write costs as much as the read itself. Whoever may wait for seconds needs none: while
a client runs, one look at all, twice a second, finds what is overdue and closes its connection, which ends the wait.
"""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import cached_property
from math import inf
from typing import Any, TypeGuard
from weakref import WeakSet

import anyio
import httpcore
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from .closing import Closing

# From here on it does not matter that it is noticed up to a second, two looks, late (closing.LOOKS_EVERY_S).
LONG_S = 5.0
# Of anyio and of the system, timeouts among the latter.
_FAILURES = (anyio.BrokenResourceError, anyio.ClosedResourceError, anyio.EndOfStream, OSError)

_INFO = {
    "ssl_object": TLSAttribute.ssl_object,
    "client_addr": SocketAttribute.local_address,
    "server_addr": SocketAttribute.remote_address,
    "socket": SocketAttribute.raw_socket,
}


class Patience:
    """Knows which reads and writes of one client take longer than they may, for the loop that closes connections."""

    def __init__(self, closing: Closing) -> None:
        self._closing = closing
        self._streams: WeakSet[TcpStream] = WeakSet()
        self._looked_at = -inf

    @property
    def tended(self) -> bool:
        """Whether anybody asks."""
        return self._closing.tended

    def watch(self, stream: TcpStream) -> None:
        """A connection that was made."""
        self._streams.add(stream)

    def overdue(self) -> list[TcpStream]:
        """Those to close now, for which they are marked: overdue at the last look already.

        What came while the event loop was kept busy is taken by the next one, and is not late.
        """
        then, self._looked_at = self._looked_at, time.monotonic()
        found = [stream for stream in self._streams if stream.read_by < then or stream.written_by < then]
        for stream in found:
            stream.overdue = True
        return found


class Tcp(httpcore.AsyncNetworkBackend):
    """Makes the connections of one client."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> TcpStream:
        """Raises httpcore's ConnectTimeout, ConnectError; UnicodeError for a name that cannot be looked up."""
        with _connecting(timeout):
            stream = await anyio.connect_tcp(host, port, local_host=local_address)
            try:
                for option in socket_options or ():
                    stream.extra(SocketAttribute.raw_socket).setsockopt(*option)
            except Exception:
                await anyio.aclose_forcefully(stream)
                raise
        return TcpStream(stream, self._patience)


class TcpStream(httpcore.AsyncNetworkStream):
    """``read_by``, ``written_by``: when, by the monotonic clock, what is under way is overdue.

    Two, for whoever has upgraded a connection may read and write at once.
    """

    def __init__(self, stream: ByteStream, patience: Patience) -> None:
        self._stream = stream
        self._patience = patience
        self.read_by = self.written_by = inf
        self.overdue = False
        patience.watch(self)

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """The next bytes, none at the end. Raises httpcore's ReadTimeout, ReadError."""
        try:
            if self._may_take_long(timeout):
                self.read_by = time.monotonic() + timeout
                data = await self._receive(max_bytes)
            else:
                with anyio.fail_after(timeout):
                    data = await self._receive(max_bytes)
        except _FAILURES as error:
            raise (httpcore.ReadTimeout if self._late(error) else httpcore.ReadError)(error) from error
        finally:
            self.read_by = inf
        if self.overdue and not data:
            raise httpcore.ReadTimeout
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """All of it. Raises httpcore's WriteTimeout, WriteError."""
        if not buffer:
            return
        try:
            if self._may_take_long(timeout):
                self.written_by = time.monotonic() + timeout
                await self._stream.send(buffer)
            else:
                with anyio.fail_after(timeout):
                    await self._stream.send(buffer)
        except _FAILURES as error:
            raise (httpcore.WriteTimeout if self._late(error) else httpcore.WriteError)(error) from error
        finally:
            self.written_by = inf
        if self.overdue:  # asyncio's transports do not say that they were closed meanwhile
            raise httpcore.WriteTimeout

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> TcpStream:
        """Raises httpcore's ConnectTimeout, ConnectError."""
        with _connecting(timeout):
            stream = await TLSStream.wrap(
                self._stream, hostname=server_hostname, ssl_context=ssl_context, standard_compatible=False
            )
        return TcpStream(stream, self._patience)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    def get_extra_info(self, info: str) -> Any:
        """As httpcore's own streams tell."""
        if info == "is_readable":
            # What came while it was found overdue was taken, yet it is about to be closed.
            return self.overdue or _is_readable(self._socket)
        attribute = _INFO.get(info)
        return None if attribute is None else self._stream.extra(attribute, None)

    @cached_property
    def _socket(self) -> Any:
        """Asked for at every use of an idle connection, and anyio gathers all attributes for one."""
        return self.get_extra_info("socket")

    def _may_take_long(self, timeout: float | None) -> TypeGuard[float]:
        return self._patience.tended and timeout is not None and timeout >= LONG_S

    def _late(self, error: Exception) -> bool:
        return self.overdue or isinstance(error, TimeoutError)

    async def _receive(self, max_bytes: int) -> bytes:
        try:
            return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""


@contextmanager
def _connecting(timeout: float | None) -> Generator[None]:
    """Raises httpcore's errors for those of anyio and the system."""
    try:
        with anyio.fail_after(timeout):
            yield
    except _FAILURES as error:
        late = isinstance(error, TimeoutError)
        raise (httpcore.ConnectTimeout if late else httpcore.ConnectError)(error) from error


def _is_readable(sock: Any) -> bool:
    """Whether there is something to read: of an idle connection, its end."""
    if sock is None or sock.fileno() < 0:
        return True
    if not hasattr(select, "poll"):
        return bool(select.select([sock], [], [], 0)[0])
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
