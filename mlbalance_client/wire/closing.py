"""Connections are closed beside the calls that had them: what hangs, hangs in its closing too."""

from __future__ import annotations

from contextlib import suppress

import anyio
import httpcore

CLOSE_WITHIN_S = 2.0


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

    async def tend(self) -> None:
        """Until cancelled; what is left by then is closed before this ends."""
        self._woken = anyio.Event()
        async with anyio.create_task_group() as tasks:
            try:
                while True:
                    await self._woken.wait()
                    self._woken = anyio.Event()
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
