"""One event loop in a thread of its own, for callers that are synchronous. Any number of threads may call into it.

Handing work over and ending the loop exclude one another by a lock, and every call that was handed over is kept until
it is done: so none can be left waiting. The lock is reentrant, since a finalizer may call ``stop`` at any moment.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from typing import Any, TypeVar

from .errors import ClientClosed

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for other threads. Starts at the first call; ``last`` is what it runs before it ends."""

    def __init__(self, name: str, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._name = name
        self._last = last
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process: int | None = None
        self._ending: asyncio.Task[None] | None = None
        self._calls: dict[Future[Any], Coroutine[Any, Any, Any]] = {}
        self._stopping = self._stopped = False

    @property
    def inside(self) -> bool:
        """Whether we run in the loop's own thread, as event subscribers do."""
        return threading.current_thread() is self._thread

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run ``work`` in the loop and wait for it; if the waiting is interrupted, ``work`` is cancelled.

        Raises ClientClosed if the loop has ended or ends meanwhile.
        """
        try:
            future = self._hand_over(work)
        except BaseException:
            work.close()
            raise
        try:
            return future.result()
        except CancelledError:
            raise ClientClosed("this client was closed during the call") from None
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """Let the loop and its thread end; until ``last`` has run, calls are still taken.

        Never waits, so that a finalizer may call it in any thread; idempotent.
        """
        if self._is_anothers():
            return
        with self._lock:
            if not self._stopping:
                self._stopping = True
                if self._loop is None:
                    self._stopped = True
                else:
                    self._loop.call_soon_threadsafe(self._end, self._loop)

    def join(self) -> None:
        """Wait for the thread's end after ``stop``; not from within, where that would be for ever."""
        if self._thread is not None and not self.inside and not self._is_anothers():
            self._thread.join()

    def _is_anothers(self) -> bool:
        return self._process not in (None, os.getpid())

    def _hand_over(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._is_anothers():
            raise RuntimeError(
                "this client was used before the process forked, and its thread stayed behind: make a client, or first "
                "use it, after forking"
            )
        if self.inside:
            raise RuntimeError(
                "a synchronous client cannot be called from one of its own event subscribers, which would wait for "
                "itself: hand the work to another thread"
            )
        with self._lock:
            if self._stopped:
                raise ClientClosed("this client is closed")
            future = asyncio.run_coroutine_threadsafe(work, self._running())
            self._calls[future] = work
        future.add_done_callback(self._calls.pop)
        return future

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._process = os.getpid()
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._run, args=(self._loop,), name=self._name, daemon=True
            )
            self._thread.start()
        return self._loop

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
        finally:
            while tasks := asyncio.all_tasks(loop):
                for task in tasks:
                    task.cancel()
                loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            with self._lock:
                self._stopped = True
                loop.close()
            for future, work in list(self._calls.items()):
                work.close()
                future.cancel()

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        self._ending = loop.create_task(self._last())
        self._ending.add_done_callback(lambda _: loop.stop())
