"""Exchanges with replicas: request out, answer's head in."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass
from typing import Any, Protocol

import httpcore

from mlbalance_client.errors import ClientClosed, FailureKind

from .answer import WireAnswer
from .closing import Closing
from .errors import EXPECTED, WireError, translate
from .pool import Connection, Origin, Pool, WireOptions, close_all
from .tcp import Patience, Tcp
from .timeouts import Timeouts


class Resending(Protocol):
    """Who decides whether a request that met a closed connection is sent once more."""

    def begin_resend(self) -> bool:
        """Whether it may be; if so, ``end_resend`` is told what came of it, unless the request is cancelled."""

    def end_resend(self, *, sent: bool) -> None:
        """It was sent once more, or there was no new connection to send it on."""


@dataclass(slots=True)
class WireRequest:
    """``target``: path and query as sent; ``headers`` with Host.

    ``resending``: a request that died on a connection which had been idle, before any byte of an answer, is sent
    once more on a new one only if there is this and it allows that.
    """

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | AsyncIterable[bytes]
    timeouts: Timeouts
    extensions: dict[str, Any]
    resending: Resending | None = None


class _Body:
    """Bytes as a stream that can be read again; no generator, for a cancelled write would leave it behind."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return _Once(self._content)


class _Once:
    __slots__ = ("_left",)

    def __init__(self, content: bytes) -> None:
        self._left = content

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        content, self._left = self._left, b""
        return content


class _CallersBody:
    """A body that the caller yields. ``failure``: what it raised, which is the caller's own and no failure of ours."""

    def __init__(self, pieces: AsyncIterable[bytes]) -> None:
        self._pieces = aiter(pieces)
        self.failure: Exception | None = None

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._pieces.__anext__()
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.failure = error
            raise


# How it shows that the other side has closed a connection.
_CLOSED = frozenset({FailureKind.PROTOCOL, FailureKind.READ})


class Wire:
    """All connections of one client. Belongs to one event loop."""

    def __init__(self, options: WireOptions) -> None:
        self._options = options
        # By origin, and then by the name that a caller demands, if one does.
        self._pools: dict[Origin, dict[str | None, Pool]] = {}
        self._leaving: list[Pool] = []
        self._closing = Closing()
        self._patience = Patience(self._closing)
        self._network = options.network_backend or Tcp(self._patience)
        self._closed = False

    def counts(self) -> tuple[int, int]:
        """(idle, busy) connections over all replicas."""
        pools = self._all_pools()
        return sum(pool.idle for pool in pools), sum(pool.busy for pool in pools)

    async def open(self, origin: Origin, request: WireRequest) -> WireAnswer:
        """Send a request and wait for the head of its answer. Raises WireError."""
        if self._closed:
            raise ClientClosed("this client is closed")
        pool = self._pool(origin, request.extensions.get("sni_hostname"))
        connection = pool.take()
        reused = connection.is_idle()
        try:
            return await self._exchange(pool, connection, origin, request)
        except WireError as error:
            resending = request.resending
            if resending is None or not (reused and connection.silent and error.kind in _CLOSED):
                raise
            if not resending.begin_resend():
                raise
            closed = error
        return await self._resend(pool, origin, request, closed, resending, cut=connection.cut)

    def forget(self, origin: Origin) -> None:
        """The replica is gone: ``reap`` closes its idle connections, the busy ones are closed when they are done."""
        for pool in self._pools.pop(origin, {}).values():
            pool.retire()
            self._leaving.append(pool)

    async def reap(self) -> None:
        """Close the idle connections that have expired or that the replica has closed; to be called now and then."""
        expired = [each for pool in self._all_pools() for each in pool.reap()]
        self._leaving = [pool for pool in self._leaving if pool.busy]
        await close_all(expired)

    async def tend(self) -> None:
        """Beside the calls, end what takes too long and close what is not used any more, until cancelled."""
        await self._closing.tend(self._patience.overdue)

    async def aclose(self) -> None:
        """Close all connections, under whatever exchange. Idempotent."""
        self._closed = True
        await close_all([each for pool in self._all_pools() for each in pool.close()])

    def _all_pools(self) -> list[Pool]:
        return [*(pool for named in self._pools.values() for pool in named.values()), *self._leaving]

    def _pool(self, origin: Origin, demanded: str | None) -> Pool:
        named = self._pools.get(origin)
        if named is None:
            named = self._pools[origin] = {}
        pool = named.get(demanded)
        if pool is None:
            pool = named[demanded] = Pool(origin, self._options, self._network, self._closing)
        return pool

    async def _exchange(
        self, pool: Pool, connection: Connection, origin: Origin, request: WireRequest
    ) -> WireAnswer:
        message, timeouts = _message(origin, request), request.timeouts
        try:
            response = await connection.handle_async_request(message)
        except EXPECTED as error:
            await self._discard(pool, connection)
            if isinstance(message.stream, _CallersBody) and error is message.stream.failure:
                raise
            raise translate(error, timeouts.in_words()) from error
        except BaseException:
            await self._discard(pool, connection)
            raise
        if self._closed:
            await self._discard(pool, connection)
            raise ClientClosed("this client was closed during the call")
        return WireAnswer(response, connection, pool, timeouts)

    async def _resend(
        self,
        pool: Pool,
        origin: Origin,
        request: WireRequest,
        closed: WireError,
        resending: Resending,
        *,
        cut: bool,
    ) -> WireAnswer:
        try:
            answer = await self._exchange(pool, pool.take_new(), origin, request)
        except WireError as error:
            resending.end_resend(sent=error.sent)
            if cut:  # of half a request nothing can come
                raise
            if error.sent:
                raise WireError(
                    error.kind, f"{closed}; sent again at once, on a new connection: {error}"
                ) from error
            # Not a failure to connect: the request was sent, and may be what killed the replica.
            raise WireError(closed.kind, f"{closed}; then {error}") from error
        resending.end_resend(sent=True)
        return answer

    @staticmethod
    async def _discard(pool: Pool, connection: Connection) -> None:
        pool.let_go(connection)
        await close_all([connection])


def _message(origin: Origin, request: WireRequest) -> httpcore.Request:
    body = request.body
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(scheme=origin.scheme, host=origin.host, port=origin.port, target=request.target),
        headers=request.headers,
        content=_Body(body) if isinstance(body, bytes) else _CallersBody(body),
        extensions=_extensions(origin, request),
    )


def _extensions(origin: Origin, request: WireRequest) -> dict[str, Any]:
    """With the name that the replica's certificate must be for, unless the caller says another."""
    named = {} if origin.tls_name is None else {"sni_hostname": origin.tls_name}
    return {**named, **request.extensions, "timeout": request.timeouts.as_extension()}
