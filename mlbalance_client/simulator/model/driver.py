"""Drives an engine in real time: requests wait here for what the engine gives out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from .engine import Engine
from .spec import Emission, EmissionKind, Job


class Driver:
    """One engine, one event loop (asyncio). ``emit_interval_s``: tokens of a request are given out no closer."""

    def __init__(self, engine: Engine, emit_interval_s: float) -> None:
        self.engine = engine
        self._emit_interval_s = emit_interval_s
        self._queues: dict[str, asyncio.Queue[Emission]] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, job: Job) -> AsyncIterator[Emission]:
        """Put a job through the engine. Leaving early cancels it there, as an engine aborts on disconnect."""
        queue: asyncio.Queue[Emission] = asyncio.Queue()
        self._queues[job.id] = queue
        self._catch_up()
        self.engine.submit(time.monotonic(), job)
        self._arm()
        finished = False
        last_s = 0.0
        try:
            while not finished:
                emission = await queue.get()
                finished = emission.kind is EmissionKind.FINISHED
                while not finished and not queue.empty():
                    emission = queue.get_nowait()
                    finished = emission.kind is EmissionKind.FINISHED
                due_s = last_s + self._emit_interval_s - time.monotonic()
                if not finished and due_s > 0:
                    await asyncio.sleep(due_s)
                    while not finished and not queue.empty():
                        emission = queue.get_nowait()
                        finished = emission.kind is EmissionKind.FINISHED
                last_s = time.monotonic()
                yield emission
        finally:
            del self._queues[job.id]
            if not finished:
                self._catch_up()
                self.engine.cancel(time.monotonic(), job.id)
                self._arm()

    def _catch_up(self) -> None:
        for emission in self.engine.advance(time.monotonic()):
            if (queue := self._queues.get(emission.job_id)) is not None:
                queue.put_nowait(emission)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = self.engine.next_at()
        if ends is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, ends - time.monotonic()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._catch_up()
        self._arm()
