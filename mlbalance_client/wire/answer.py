"""The answer of one exchange: its head, and its body as raw bytes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from contextlib import suppress
from typing import Any, cast

import anyio
import httpcore

from mlbalance_client.errors import FailureKind

from .closing import CLOSE_WITHIN_S
from .errors import EXPECTED, WireError, translate
from .pool import Connection, Pool, close_all
from .timeouts import Timeouts


class WireAnswer:
    """Holds a connection until it is read to its end or closed, whichever comes first.

    ``broke``: how it ended before its end, and in words; not the error itself, which knows its way here.
    """

    __slots__ = ("_chunks", "_connection", "_held", "_pool", "_response", "_timeouts", "broke")

    def __init__(
        self, response: httpcore.Response, connection: Connection, pool: Pool, timeouts: Timeouts
    ) -> None:
        self._response = response
        self._connection = connection
        self._pool = pool
        self._timeouts = timeouts
        self._held = True
        self.broke: tuple[FailureKind, str] | None = None
        # The stream itself, not aiter_stream(): one generator less to leave behind.
        self._chunks = cast(AsyncGenerator[bytes, None], aiter(cast(AsyncIterable[bytes], response.stream)))

    @property
    def status(self) -> int:
        """The status code."""
        return self._response.status

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers, names as the replica wrote them."""
        return self._response.headers

    @property
    def ends_with_connection(self) -> bool:
        """Whether the body has no length of its own, so that its end and a broken connection look alike."""
        names = {name.lower() for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    @property
    def extensions(self) -> dict[str, Any]:
        """``http_version``, ``reason_phrase`` and ``network_stream``, as httpx has them."""
        return dict(self._response.extensions)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            await self.aclose()
            raise
        except EXPECTED as error:
            closed = WireError(FailureKind.READ, "it was closed while it was being read")
            failure = translate(error, self._timeouts.in_words()) if self._held else closed
            self.broke = failure.kind, str(failure)
            await self.aclose()
            raise failure from error
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Give the connection back if the body was read to its end, else close it. Idempotent, shielded."""
        if not self._held:
            return
        self._held = False
        try:
            if not self._connection.is_idle():
                with anyio.move_on_after(CLOSE_WITHIN_S, shield=True), suppress(*EXPECTED):
                    await self._response.aclose()
                    with suppress(RuntimeError):  # another task is reading; its read ends with the connection
                        await self._chunks.aclose()
        finally:
            if not self._pool.give_back(self._connection):
                await close_all([self._connection])
