"""The connections to one replica: idle ones in a stack, newest first. Nothing ever waits for one.

httpx's own pool rescans all connections on every call and loses slots when waiting calls are cancelled; here a
call takes an idle connection or opens one, and how many calls there may be is decided above.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import anyio
import httpcore

CLOSE_WITHIN_S = 2.0


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
    """Scheme, host and port of a replica."""

    scheme: bytes
    host: bytes
    port: int

    @classmethod
    def from_url(cls, url: str) -> Origin:
        """The origin of an absolute http or https URL."""
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return cls(parts.scheme.encode("ascii"), (parts.hostname or "").encode("ascii"), port)


class Pool:
    """Connections of one origin. ``busy`` counts those that an exchange holds."""

    def __init__(self, origin: Origin, options: WireOptions) -> None:
        self._origin = httpcore.Origin(origin.scheme, origin.host, origin.port)
        self._options = options
        self._idle: list[httpcore.AsyncHTTPConnection] = []
        self._closed = False
        self.busy = 0

    @property
    def idle(self) -> int:
        """How many connections wait for use."""
        return len(self._idle)

    def take(self) -> tuple[httpcore.AsyncHTTPConnection, list[httpcore.AsyncHTTPConnection]]:
        """A live idle connection or a new one, and the stale ones met on the way, for the caller to close."""
        stale: list[httpcore.AsyncHTTPConnection] = []
        self.busy += 1
        while self._idle:
            connection = self._idle.pop()
            if not connection.has_expired():
                return connection, stale
            stale.append(connection)
        return self._new(), stale

    def take_new(self) -> httpcore.AsyncHTTPConnection:
        """A new connection."""
        self.busy += 1
        return self._new()

    def give_back(self, connection: httpcore.AsyncHTTPConnection) -> bool:
        """End an exchange; False if the connection is not kept and the caller must close it."""
        self.busy -= 1
        most = self._options.max_idle_per_replica
        if self._closed or not connection.is_idle() or (most is not None and len(self._idle) >= most):
            return False
        self._idle.append(connection)
        return True

    def close(self) -> list[httpcore.AsyncHTTPConnection]:
        """Keep no connection from now on; the idle ones are for the caller to close."""
        self._closed = True
        idle, self._idle = self._idle, []
        return idle

    def _new(self) -> httpcore.AsyncHTTPConnection:
        options = self._options
        return httpcore.AsyncHTTPConnection(
            self._origin,
            ssl_context=options.tls if self._origin.scheme == b"https" else None,
            keepalive_expiry=options.keepalive_expiry_s,
            local_address=options.local_address,
            socket_options=options.socket_options,
            network_backend=options.network_backend,
        )


async def close_all(connections: Iterable[httpcore.AsyncHTTPConnection]) -> None:
    """Close connections, each within a short time, come what may."""
    for connection in connections:
        with anyio.move_on_after(CLOSE_WITHIN_S, shield=True):
            with suppress(Exception):
                await connection.aclose()
