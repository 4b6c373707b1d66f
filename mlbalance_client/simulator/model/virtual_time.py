"""An asyncio event loop whose clock is virtual: when nothing is left to do now, the next timer is at once due."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio

T = TypeVar("T")
_START_S = 1000.0
_A_DAY_S = 86_400.0


class _NothingComes(selectors.SelectSelector):
    """No input but the loop's own ever comes; to wait for it is to let the time pass."""

    def __init__(self) -> None:
        super().__init__()
        self.now = _START_S

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout >= _A_DAY_S:
            raise RuntimeError("everybody waits and nothing will happen for a day: a deadlock, or a thread")
        self.now += max(0.0, timeout)
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """Sockets and threads do not work in it."""

    def __init__(self) -> None:
        self._time = _NothingComes()
        super().__init__(self._time)

    def time(self) -> float:
        """In seconds, from an arbitrary start."""
        return self._time.now

    def jump(self, seconds: float) -> None:
        """Let the time pass while nobody does anything, as when the process is stopped."""
        self._time.now += seconds


def run(main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run an async function in virtual time."""
    return anyio.run(main, *args, backend="asyncio", backend_options={"loop_factory": VirtualLoop})
