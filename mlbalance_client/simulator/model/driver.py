"""Drives an engine by the event loop's clock: requests wait here for what the engine gives out."""

from __future__ import annotations

import asyncio
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

    @staticmethod
    def now() -> float:
        """The event loop's time, which need not be the machine's."""
        return asyncio.get_running_loop().time()

    async def run(self, job: Job, *, stall: float = 1.0) -> AsyncIterator[Emission]:
        """Put a job through the engine. Leaving early cancels it there, as an engine aborts on disconnect."""
        queue: asyncio.Queue[Emission] = asyncio.Queue()
        self._queues[job.id] = queue
        self._catch_up()
        self.engine.submit(self.now(), job, stall=stall)
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
                due_s = last_s + self._emit_interval_s - self.now()
                if not finished and due_s > 0:
                    await asyncio.sleep(due_s)
                    while not finished and not queue.empty():
                        emission = queue.get_nowait()
                        finished = emission.kind is EmissionKind.FINISHED
                last_s = self.now()
                yield emission
        finally:
            del self._queues[job.id]
            if not finished:
                self._catch_up()
                self.engine.cancel(self.now(), job.id)
                self._arm()

    def _catch_up(self, due: float = 0.0) -> None:
        for emission in self.engine.advance(max(due, self.now())):
            if (queue := self._queues.get(emission.job_id)) is not None:
                queue.put_nowait(emission)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = self.engine.next_at()
        if ends is not None:
            self._timer = asyncio.get_running_loop().call_at(ends, self._tick, ends)

    def _tick(self, due: float) -> None:
        # Loops call a little early, within the resolution of their clock.
        self._timer = None
        self._catch_up(due)
        self._arm()
