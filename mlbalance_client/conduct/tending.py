"""Background loops that a client owns: each a task of its own, with a cancel scope and an end that can be awaited.

Not a task group held open across ``__aenter__``: that breaks fixtures and cross-task closing, and wraps the
user's own errors. A loop never raises: what escapes it is logged and the loop ends.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import weakref
from collections.abc import Awaitable, Callable
from contextvars import Context

import anyio

logger = logging.getLogger("mlbalance_client")

_CLOSE_WITHIN_S = 5.0


class EventLoop:
    """The event loop that we run on, reachable from any thread and from a finalizer."""

    def __init__(self) -> None:
        self._trio = None
        self._asyncio: asyncio.AbstractEventLoop | None = None
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            self._trio = trio.lowlevel.current_trio_token()
        else:
            self._asyncio = asyncio.get_running_loop()

    def call_soon(self, callback: Callable[[], object]) -> None:
        """Run a synchronous callback in the loop; silently nothing once the loop is gone."""
        try:
            if self._asyncio is not None:
                self._asyncio.call_soon_threadsafe(callback)
            elif self._trio is not None:
                self._trio.run_sync_soon(callback)
        except RuntimeError:
            logger.debug("the event loop of a balancer is closed; nothing is left to tidy up")


class Loop:
    """One named background loop, started at once, in an empty context: it outlives the call that started it.

    ``owner``: it is cancelled when this is collected, for which ``body`` must not refer to it while it waits.
    """

    def __init__(self, name: str, body: Callable[[], Awaitable[None]], owner: object | None = None) -> None:
        self.name = name
        self._body = body
        self._scope = anyio.CancelScope()
        self._done = anyio.Event()
        self._finalizer: weakref.finalize[..., object] | None = None
        if owner is not None:
            # The method, not the scope's: it keeps this object, and so the task, until then.
            self._finalizer = weakref.finalize(owner, EventLoop().call_soon, self.cancel)
            self._finalizer.atexit = False
        trio = sys.modules.get("trio")
        if trio is not None and trio.lowlevel.in_trio_run():
            trio.lowlevel.spawn_system_task(self._run, name=f"mlbalance {name}", context=Context())
        else:
            # The loop keeps only weak references to tasks; this object keeps the task alive.
            self._task = asyncio.get_running_loop().create_task(
                self._run(), name=f"mlbalance {name}", context=Context()
            )

    async def _run(self) -> None:
        try:
            with self._scope:
                await self._body()
        except Exception:
            logger.exception("background loop %r of a balancer failed", self.name)
        finally:
            if self._finalizer is not None:
                self._finalizer.detach()  # it keeps the body, and whatever that refers to
            self._done.set()

    def cancel(self) -> None:
        """Let the loop end, without waiting for it."""
        self._scope.cancel()

    async def aclose(self) -> None:
        """Cancel the loop and wait for its end; any task may call this, more than once."""
        self.cancel()
        with anyio.move_on_after(_CLOSE_WITHIN_S, shield=True):
            await self._done.wait()
