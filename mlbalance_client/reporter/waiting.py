"""How a stream waits for its next event: on asyncio, on trio, in a thread.

On asyncio with a bare future and timer: a thousand waits a second are worth it (a third of what anyio's cost).
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import anyio

from ..conduct.tending import EventLoop


class Waiting(Protocol):
    """A waiter on an event loop."""

    def wake(self, foreign: bool, in_s: float = 0.0) -> None: ...
    def give_up(self) -> None: ...
    async def wait(self, seconds: float, wakeable: bool) -> None: ...


def waiting(leave: Callable[[], None]) -> Waiting:
    """The waiter for the running event loop; ``leave``: ends the stream."""
    trio = sys.modules.get("trio")
    return OnTrio(leave) if trio is not None and trio.lowlevel.in_trio_run() else OnAsyncio(leave)


class _OnLoop:
    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave
        self._loop = EventLoop()
        self._thread = threading.get_ident()

    def wake(self, foreign: bool, in_s: float = 0.0) -> None:
        """In the loop's own thread, else through the loop."""
        if foreign or threading.get_ident() != self._thread:
            self._loop.call_soon(self._wake)
        else:
            self._wake(in_s)

    def give_up(self) -> None:
        """End the stream."""
        self._loop.call_soon(self._leave)

    def _wake(self, in_s: float = 0.0) -> None:
        raise NotImplementedError


class OnAsyncio(_OnLoop):
    """Waits on a future."""

    def __init__(self, leave: Callable[[], None]) -> None:
        super().__init__(leave)
        self._running = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None

    async def wait(self, seconds: float, wakeable: bool) -> None:
        """Until the time is over or, if ``wakeable``, it is woken."""
        future = self._running.create_future()
        timer = self._running.call_later(seconds, _finish, future)
        self._future = future if wakeable else None
        try:
            await future
        finally:
            timer.cancel()
            self._future = None

    def _wake(self, in_s: float = 0.0) -> None:
        if self._future is not None:
            if in_s > 0.0:
                self._running.call_later(in_s, _finish, self._future)
            else:
                _finish(self._future)


class OnTrio(_OnLoop):
    """Waits on an event."""

    def __init__(self, leave: Callable[[], None]) -> None:
        super().__init__(leave)
        self._event: anyio.Event | None = None

    async def wait(self, seconds: float, wakeable: bool) -> None:
        """Until the time is over or, if ``wakeable``, it is woken."""
        event = anyio.Event()
        self._event = event if wakeable else None
        with anyio.move_on_after(seconds):
            await event.wait()
        self._event = None

    def _wake(self, in_s: float = 0.0) -> None:
        if self._event is not None:
            self._event.set()


class InThread:
    """Blocks its thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def wake(self, foreign: bool, in_s: float = 0.0) -> None:
        """From any thread."""
        self._event.set()

    def give_up(self) -> None:
        """Nothing: the framework that drives the thread knows its client."""

    def wait(self, seconds: float, wakeable: bool) -> None:
        """Until the time is over or, if ``wakeable``, it is woken."""
        if wakeable:
            self._event.wait(seconds)
        else:
            threading.Event().wait(seconds)
        self._event.clear()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
