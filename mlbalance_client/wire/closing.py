"""Connections are closed beside the calls that had them: what hangs, hangs in its closing too.

The same loop ends, by closing their connections, the reads and writes that take too long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import anyio
import httpcore

CLOSE_WITHIN_S = 2.0
LOOKS_EVERY_S = 0.5


class Closing:
    """One client's. Who leaves a connection goes on at once while this is tended, and else closes it in place."""

    def __init__(self) -> None:
        self._left: list[httpcore.AsyncNetworkStream] = []
        self._woken: anyio.Event | None = None

    async def close(self, stream: httpcore.AsyncNetworkStream) -> None:
        """It is not used any more. Never raises."""
        if self._woken is None:
            await _close(stream)
        else:
            self._left.append(stream)
            self._woken.set()

    @property
    def tended(self) -> bool:
        """Whether the loop runs."""
        return self._woken is not None

    async def tend(self, overdue: Callable[[], Iterable[httpcore.AsyncNetworkStream]]) -> None:
        """Until cancelled; what is left by then is closed before this ends. ``overdue``: to be closed by now."""
        self._woken = anyio.Event()
        async with anyio.create_task_group() as tasks:
            look_at = anyio.current_time() + LOOKS_EVERY_S
            try:
                while True:
                    with anyio.CancelScope(deadline=look_at):
                        await self._woken.wait()
                        self._woken = anyio.Event()
                    if (now := anyio.current_time()) >= look_at:
                        look_at = now + LOOKS_EVERY_S
                        self._left += overdue()
                    self._start(tasks)
            finally:
                self._woken = None
                self._start(tasks)

    def _start(self, tasks: anyio.abc.TaskGroup) -> None:
        while self._left:
            tasks.start_soon(_close, self._left.pop())


async def _close(stream: httpcore.AsyncNetworkStream) -> None:
    with anyio.move_on_after(CLOSE_WITHIN_S, shield=True), suppress(Exception):
        await stream.aclose()
