"""Open-loop replay in virtual time: calls arrive when the trace says, whatever has become of those before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Protocol

from .engine import Engine
from .measures import CallRecord
from .router import Router
from .spec import Emission, EmissionKind, Job
from .traces import Trace, TraceCall, job_of


class Placer(Protocol):
    """Places calls and hears what became of them."""

    def place(self, now: float, call: TraceCall, job: Job) -> int | None:
        """The number of the engine that gets the call; None if it waits, or was refused: ``Queues`` tells which."""

    def heard(self, emission: Emission) -> None:
        """A first token or an end."""


class Queues(Protocol):
    """A placer's calls that wait: when to look at them, and what became of them since it was asked last."""

    def next_at(self, now: float) -> float:
        """When ``tick`` is due if nothing happens before."""

    def tick(self, now: float) -> None:
        """Time has passed."""

    def placed(self) -> list[tuple[Job, int]]:
        """Who goes to which engine now."""

    def refused(self) -> list[tuple[Job, str]]:
        """Who is given up, and why."""


class RouterPlacer:
    """A router of the model, as a placer."""

    def __init__(self, router: Router, engines: Sequence[Engine]) -> None:
        self._router = router
        self._engines = engines
        self._where: dict[str, int] = {}

    def place(self, now: float, call: TraceCall, job: Job) -> int:
        """By the router."""
        self._where[job.id] = chosen = self._router.place(now, job, self._engines)
        return chosen

    def heard(self, emission: Emission) -> None:
        """Pass ends on."""
        if emission.kind is EmissionKind.FINISHED:
            self._router.ended(self._where.pop(emission.job_id), emission.job_id)


def replay(
    trace: Trace,
    engines: Sequence[Engine],
    placer: Placer,
    *,
    at: Callable[[float], None] | None = None,
    every_s: float = inf,
    queues: Queues | None = None,
) -> list[CallRecord]:
    """Replay all of ``trace``, one record a call. ``queues``: where calls wait that were not placed at once.

    ``at`` is called with the time before each arrival, and every ``every_s`` seconds: to set faults, to look around.
    """
    records = {
        str(call.index): CallRecord(call.index, call.prompt_tokens, call.output_tokens)
        for call in trace.calls
    }
    due = {str(call.index): call.t_s for call in trace.calls}

    def release(now: float) -> None:
        if queues is None:
            return
        for job, chosen in queues.placed():
            records[job.id].replica = chosen
            records[job.id].queued_s = now - due[job.id]
            engines[chosen].submit(now, job)
        for job, why in queues.refused():
            records[job.id].error = why
            records[job.id].total_s = now - due[job.id]

    clock = trace.calls[0].t_s if trace.calls else 0.0

    def run_until(now: float) -> None:
        nonlocal clock
        while True:
            ends = [(end, i) for i, engine in enumerate(engines) if (end := engine.next_at()) is not None]
            earliest = min(ends, default=(inf, 0))
            looks = inf if queues is None else queues.next_at(clock)
            first = min(earliest[0], looks)
            if first > now or first == inf:
                clock = now
                return
            clock = max(clock, first)
            if queues is not None and looks < earliest[0]:
                queues.tick(clock)
            else:
                for emission in engines[earliest[1]].advance(earliest[0]):
                    _note(records[emission.job_id], due[emission.job_id], emission)
                    placer.heard(emission)
            release(clock)

    tick = trace.calls[0].t_s if trace.calls else 0.0
    for call in trace.calls:
        while tick < call.t_s and at is not None:
            run_until(tick)
            at(tick)
            release(tick)
            tick += every_s
        run_until(call.t_s)
        if at is not None:
            at(call.t_s)
        job = job_of(call, str(call.index))
        chosen = placer.place(call.t_s, call, job)
        if chosen is not None:
            records[job.id].replica = chosen
            engines[chosen].submit(call.t_s, job)
        release(call.t_s)
    run_until(inf)
    return list(records.values())


def _note(record: CallRecord, due_s: float, emission: Emission) -> None:
    if record.ttft_s is None:
        record.ttft_s = emission.t - due_s
        record.cached_tokens = emission.cached_tokens
    if emission.kind is EmissionKind.FINISHED:
        record.total_s = emission.t - due_s
