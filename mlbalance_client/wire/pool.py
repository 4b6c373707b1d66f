"""The connections to one replica: idle ones in a stack, newest first. Nothing ever waits for one.

httpx's own pool rescans all connections on every call and loses slots when waiting calls are cancelled; here a
call takes an idle connection or opens one, and how many calls there may be is decided above.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpcore

from .closing import CLOSE_WITHIN_S, Closing
from .network import WatchedNetwork


@dataclass(frozen=True)
class WireOptions:
    """How connections are made. ``ssl_context`` may be a function, called when the first https replica is met.

    ``max_idle_per_replica``: how many idle connections are kept for one replica; None keeps all until they expire.
    """

    ssl_context: ssl.SSLContext | Callable[[], ssl.SSLContext] = ssl.create_default_context
    keepalive_expiry_s: float | None = 4.0
    max_idle_per_replica: int | None = None
    local_address: str | None = None
    socket_options: Iterable[Any] | None = None
    network_backend: httpcore.AsyncNetworkBackend | None = None

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """The context for https replicas, made once."""
        made = self.ssl_context
        return made if isinstance(made, ssl.SSLContext) else made()


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port of a replica; ``tls_name``: what its certificate must be for, None for the host.

    A connection is verified once, so those that were verified for one name do not serve where another is demanded.
    """

    scheme: bytes
    host: bytes
    port: int
    tls_name: str | None = None

    @classmethod
    def from_url(cls, url: str, tls_name: str | None = None) -> Origin:
        """The origin of an absolute http or https URL."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme.encode("ascii"), (parts.hostname or "").encode("ascii"), port, tls_name)


class Connection(httpcore.AsyncHTTPConnection):
    """A connection that knows whether anything came of the answer which it waits for."""

    def __init__(
        self,
        origin: httpcore.Origin,
        options: WireOptions,
        network: httpcore.AsyncNetworkBackend,
        closing: Closing,
    ) -> None:
        self._network = WatchedNetwork(network, closing)
        super().__init__(
            origin,
            ssl_context=options.tls if origin.scheme == b"https" else None,
            keepalive_expiry=options.keepalive_expiry_s,
            local_address=options.local_address,
            socket_options=options.socket_options,
            network_backend=self._network,
        )

    @property
    def silent(self) -> bool:
        """Whether nothing was received since the request was begun."""
        return self._network.silent

    @property
    def cut(self) -> bool:
        """Whether it broke before all of the request was sent."""
        return self._network.cut

    async def aclose(self) -> None:
        self._network.closed = True
        await super().aclose()

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request and wait for the head of its answer."""
        self._network.silent = True
        return await super().handle_async_request(request)


class Pool:
    """Connections of one origin."""

    def __init__(
        self, origin: Origin, options: WireOptions, network: httpcore.AsyncNetworkBackend, closing: Closing
    ) -> None:
        self._network = network
        self._closing = closing
        self._origin = httpcore.Origin(origin.scheme, origin.host, origin.port)
        self._options = options
        self._idle: list[Connection] = []
        self._expired: list[Connection] = []
        self._busy: set[Connection] = set()
        self._closed = False

    @property
    def busy(self) -> int:
        """How many connections exchanges hold."""
        return len(self._busy)

    @property
    def idle(self) -> int:
        """How many connections wait for use."""
        return len(self._idle)

    def take(self) -> Connection:
        """A live idle connection or a new one; expired ones met on the way are left to ``reap``."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                self._busy.add(connection)
                return connection
            self._expired.append(connection)
        return self.take_new()

    def take_new(self) -> Connection:
        """A new connection."""
        connection = Connection(self._origin, self._options, self._network, self._closing)
        self._busy.add(connection)
        return connection

    def give_back(self, connection: Connection) -> bool:
        """End an exchange; False if the connection is not kept and the caller must close it."""
        self._busy.discard(connection)
        most = self._options.max_idle_per_replica
        if self._closed or not connection.is_idle() or (most is not None and len(self._idle) >= most):
            return False
        self._idle.append(connection)
        return True

    def reap(self) -> list[Connection]:
        """The expired connections, no longer kept, for the caller to close."""
        expired, self._expired = self._expired, []
        live: list[Connection] = []
        for connection in self._idle:
            (expired if connection.has_expired() else live).append(connection)
        self._idle = live
        return expired

    def let_go(self, connection: Connection) -> None:
        """An exchange has failed; the caller closes its connection."""
        self._busy.discard(connection)

    def retire(self) -> None:
        """Keep no connection from now on; the idle ones are left to ``reap``."""
        self._closed = True
        self._expired += self._idle
        self._idle = []

    def close(self) -> list[Connection]:
        """Keep no connection from now on; all there are, busy ones too, are for the caller to close."""
        self.retire()
        return [*self.reap(), *self._busy]


async def close_all(connections: Sequence[Connection]) -> None:
    """Close connections side by side, each within a short time, come what may."""
    if len(connections) == 1:
        await _close(connections[0])
    elif connections:
        async with anyio.create_task_group() as tasks:
            for connection in connections:
                tasks.start_soon(_close, connection)


async def _close(connection: Connection) -> None:
    with anyio.move_on_after(CLOSE_WITHIN_S, shield=True):
        with suppress(Exception):
            await connection.aclose()
