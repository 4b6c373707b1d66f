"""A model of a vLLM-like engine, in steps: chunked prefill beside decode, a prefix cache, limits, preemption.

First come, first served. Each step serves every decoding sequence one token, then gives what is left of its token
budget to prefill: to requests under way first, then to new ones. Time is an argument; nothing is random.

A request may be stalled: what the engine gives out for it comes late, while all others go on unhindered.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heappush

from .cache import PrefixCache
from .spec import Emission, EmissionKind, EngineSpec, Job

COLD_FACTOR = 8.0


@dataclass(slots=True, eq=False)
class _Sequence:
    job: Job
    arrived: float
    expected_cached: int = 0
    cached: int = 0
    done: int = 0
    pinned: list[int] = field(default_factory=list)
    private: int = 0
    decode_from: int = -1
    ticket: int = 0
    produced: int = 0
    stall: float = 1.0


class _Held:
    """What has been computed for stalled requests and is not given out yet."""

    def __init__(self) -> None:
        self._lags: dict[str, float] = {}
        self._late: list[tuple[float, int, Emission]] = []
        self._silent: set[str] = set()
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._lags or self._silent)

    def stalls(self, job_id: str, lag_s: float) -> None:
        """All of this request's tokens come so much later."""
        self._lags[job_id] = lag_s

    def next_at(self) -> float | None:
        """When the next is given out."""
        return self._late[0][0] if self._late else None

    def delay(self, emissions: list[Emission], now: float) -> list[Emission]:
        """Take in what is late, give out what is due by ``now``; all in order."""
        due = []
        for emission in emissions:
            if emission.job_id in self._silent:
                continue
            if (lag_s := self._lags.get(emission.job_id)) is None:
                due.append(emission)
            else:
                self._count += 1
                late = replace(emission, t=emission.t + lag_s)
                heappush(self._late, (late.t, self._count, late))
        while self._late and self._late[0][0] <= now:
            late = heappop(self._late)[2]
            due.append(late)
            if late.kind is EmissionKind.FINISHED:
                del self._lags[late.job_id]
        return sorted(due, key=lambda emission: emission.t)

    def drop(self, job_id: str) -> bool:
        """Nobody waits for it any more; False if nothing of it was held."""
        if self._lags.pop(job_id, None) is None:
            return False
        self._late = [entry for entry in self._late if entry[2].job_id != job_id]
        heapify(self._late)
        return True

    def silence(self, job_id: str) -> None:
        """Of this request, which was dropped while it ran, nothing more is given out."""
        self._silent.add(job_id)

    def keep(self, running: Collection[str]) -> None:
        """These are there yet."""
        self._silent.intersection_update(running)


class Engine:
    """One engine. ``slowdown`` multiplies all step times; the first ``cold_calls`` calls run 8 times slower."""

    def __init__(self, spec: EngineSpec, *, emit_tokens: bool = False) -> None:
        self.spec = spec
        self.slowdown = 1.0
        self.cold_calls = 0
        self.cache = PrefixCache(spec.kv_tokens)
        self._emit_tokens = emit_tokens
        self._all: dict[str, _Sequence] = {}
        self._waiting: deque[_Sequence] = deque()
        self._prefilling: OrderedDict[str, _Sequence] = OrderedDict()
        self._decoding: OrderedDict[str, _Sequence] = OrderedDict()
        self._ends: list[tuple[int, int, _Sequence]] = []
        self._cancelled: list[_Sequence] = []
        self._ticket = 0
        self._context = 0
        self._held = _Held()
        self._step = 0
        self._step_end: float | None = None
        self._step_started = 0.0
        self._chunks: list[tuple[_Sequence, int]] = []
        self.prompt_tokens_total = 0
        self.generation_tokens_total = 0
        self.prefix_queries_total = 0
        self.prefix_hits_total = 0
        self.preemptions_total = 0
        self.finished = 0
        self.aborted = 0
        self.busy_s = 0.0
        self.work_s = 0.0

    # -- what goes in -------------------------------------------------------------------------------------------

    def submit(self, now: float, job: Job, *, stall: float = 1.0) -> None:
        """A request arrives. Its id must be new. ``stall``: its first token takes so many times as long."""
        if job.id in self._all:
            raise ValueError(f"job {job.id!r} is already there")
        sequence = _Sequence(job, now, expected_cached=self.cached_tokens(job), stall=stall)
        self._all[job.id] = sequence
        self._waiting.append(sequence)
        if self._step_end is None:
            self._start_step(now)

    def cancel(self, now: float, job_id: str) -> None:
        """The client has gone; a step that runs is finished first. Unknown ids are ignored."""
        held = self._held.drop(job_id)
        sequence = self._all.get(job_id)
        if sequence is None:
            self.aborted += held
            return
        running = job_id in self._prefilling or job_id in self._decoding
        if running and self._step_end is not None:
            self._cancelled.append(sequence)
            if held:
                self._held.silence(job_id)
        else:
            self._drop(sequence)

    def flush_cache(self) -> None:
        """Forget all prefixes that no running request holds."""
        self.cache.flush()

    # -- what comes out -----------------------------------------------------------------------------------------

    def next_at(self) -> float | None:
        """When something is given out next, at the earliest; None when idle."""
        held, end = self._held.next_at(), self._step_end
        if held is None or end is None:
            return end if held is None else held
        return min(held, end)

    def advance(self, now: float) -> list[Emission]:
        """Finish all steps that end at or before ``now``; what they gave out, in order."""
        emissions: list[Emission] = []
        while self._step_end is not None and self._step_end <= now:
            end = self._step_end
            self._finish_step(end, emissions)
            self._start_step(end)
        if not self._held:
            return emissions
        due = self._held.delay(emissions, now)
        self._held.keep(self._all)
        return due

    # -- the true state, for those who may know it --------------------------------------------------------------

    @property
    def running(self) -> int:
        """Requests admitted to the batch."""
        return len(self._prefilling) + len(self._decoding)

    @property
    def waiting(self) -> int:
        """Requests not yet admitted."""
        return len(self._waiting)

    @property
    def kv_used_tokens(self) -> int:
        """Tokens of KV memory held by running requests."""
        return self.cache.pinned_tokens

    @property
    def waiting_uncached_tokens(self) -> int:
        """Uncached prompt tokens of requests not yet admitted."""
        return sum(s.job.prompt_tokens - s.expected_cached for s in self._waiting)

    @property
    def chunked_uncached_tokens(self) -> int:
        """Uncached prompt tokens of requests that were admitted, beyond the step that is under way."""
        left = sum(s.job.prompt_tokens - s.done for s in self._prefilling.values())
        return left - sum(chunk for _, chunk in self._chunks)

    @property
    def prefill_tokens_outstanding(self) -> int:
        """Uncached prompt tokens still to be prefilled."""
        running = sum(s.job.prompt_tokens - s.done for s in self._prefilling.values())
        return running + self.waiting_uncached_tokens

    @property
    def decode_tokens_outstanding(self) -> int:
        """Output tokens still to be produced by all requests here."""
        return sum(s.job.output_tokens - self._produced(s) for s in self._all.values())

    def cached_tokens(self, job: Job) -> int:
        """How much of a prompt would be a hit now; at least one token is always computed."""
        return min(self.cache.hit(job.blocks) * job.block_tokens, job.prompt_tokens - 1)

    def backlog_s(self, now: float, *, sees_cold: bool = True) -> float:
        """Seconds of prefill that stand before a new request, by the engine's own formula."""
        seconds = 0.0
        for sequence in self._prefilling.values():
            seconds += self.spec.prefill_s(sequence.job.prompt_tokens, sequence.done)
        for sequence in self._waiting:
            seconds += self.spec.prefill_s(sequence.job.prompt_tokens, sequence.expected_cached)
        if self._chunks and self._step_end is not None:
            seconds -= max(0.0, min(now, self._step_end) - self._step_started) / self._factor
        return max(0.0, seconds) * (self._factor if sees_cold else self.slowdown)

    def decode_s(self, *, sees_cold: bool = True) -> float:
        """Seconds that decoding beside it adds to each step of a new request."""
        spec = self.spec
        return (
            len(self._decoding) * spec.decode_s_per_sequence + self._context * spec.decode_s_per_context_token
        ) * (self._factor if sees_cold else self.slowdown)

    # -- steps --------------------------------------------------------------------------------------------------

    @property
    def cold(self) -> bool:
        """Whether the first calls, which are slower, are not over yet."""
        return self.cold_calls > 0 and self.finished < self.cold_calls

    @property
    def _factor(self) -> float:
        return self.slowdown * (COLD_FACTOR if self.cold else 1.0)

    def _start_step(self, now: float) -> None:
        spec = self.spec
        budget = spec.step_tokens - len(self._decoding)
        self._chunks = []
        work_s = 0.0
        for sequence in self._prefilling.values():
            budget, work_s = self._plan(sequence, budget, work_s)
        while budget > 0 and self._waiting and self.running < spec.max_running and self._admit():
            budget, work_s = self._plan(next(reversed(self._prefilling.values())), budget, work_s)
        if not self._chunks and not self._decoding:
            self._step_end = None
            return
        work_s += (
            len(self._decoding) * spec.decode_s_per_sequence + self._context * spec.decode_s_per_context_token
        )
        lasts_s = (spec.step_base_s + work_s) * self._factor
        self.work_s += work_s * self._factor
        self.busy_s += lasts_s
        self._step_started = now
        self._step_end = now + lasts_s

    def _plan(self, sequence: _Sequence, budget: int, work_s: float) -> tuple[int, float]:
        chunk = min(budget, sequence.job.prompt_tokens - sequence.done)
        if chunk > 0:
            self._chunks.append((sequence, chunk))
            work_s += self.spec.chunk_s(chunk, sequence.done)
        return budget - chunk, work_s

    def _admit(self) -> bool:
        sequence = self._waiting[0]
        job = sequence.job
        depth = self.cache.hit(job.blocks)
        need = job.prompt_tokens - depth * job.block_tokens
        if self.running and self.cache.pinned_tokens + need > self.cache.capacity_tokens:
            return False
        self._waiting.popleft()
        for block in job.blocks[:depth]:
            self.cache.pin(block, job.block_tokens)
        sequence.pinned = list(job.blocks[:depth])
        sequence.cached = sequence.done = min(depth * job.block_tokens, job.prompt_tokens - 1)
        self._prefilling[job.id] = sequence
        self.prefix_queries_total += job.prompt_tokens
        self.prefix_hits_total += sequence.cached
        return True

    def _finish_step(self, end: float, emissions: list[Emission]) -> None:
        self._step += 1
        self._step_end = None
        producing = len(self._decoding)
        self._context += producing
        self.cache.private_tokens += producing
        self.generation_tokens_total += producing
        decoding_before = list(self._decoding.values()) if self._emit_tokens else []
        while self._ends and self._ends[0][0] <= self._step:
            _, ticket, sequence = heappop(self._ends)
            # A preempted request has left an entry of its first run behind.
            if self._decoding.get(sequence.job.id) is sequence and sequence.ticket == ticket:
                emissions.append(self._emission(end, sequence, EmissionKind.FINISHED))
                self._leave(sequence)
                self.finished += 1
        going_on = (s for s in decoding_before if s.job.id in self._decoding)
        emissions.extend(self._emission(end, sequence, EmissionKind.TOKENS) for sequence in going_on)
        for sequence, chunk in self._chunks:
            self._prefilled(sequence, chunk, end, emissions)
        self._chunks = []
        for sequence in self._cancelled:
            if self._all.get(sequence.job.id) is sequence:
                self._drop(sequence)
        self._cancelled.clear()
        while not self.cache.make_room() and self._preempt():
            pass

    def _prefilled(self, sequence: _Sequence, chunk: int, end: float, emissions: list[Emission]) -> None:
        job = sequence.job
        sequence.done += chunk
        for block in job.blocks[len(sequence.pinned) : sequence.done // job.block_tokens]:
            self.cache.pin(block, job.block_tokens)
            sequence.pinned.append(block)
        held = sequence.done - len(sequence.pinned) * job.block_tokens
        self.cache.private_tokens += max(0, held) - sequence.private
        sequence.private = max(0, held)
        if sequence.done < job.prompt_tokens:
            return
        if not sequence.produced:
            self.prompt_tokens_total += job.prompt_tokens
        del self._prefilling[job.id]
        sequence.decode_from = self._step - sequence.produced
        sequence.private += 1 + sequence.produced
        self.cache.private_tokens += 1 + sequence.produced
        self.generation_tokens_total += 1
        resumed = sequence.produced > 0
        if sequence.stall > 1 and not resumed:
            self._held.stalls(job.id, (sequence.stall - 1) * (end - sequence.arrived))
        if job.output_tokens - sequence.produced <= 1:
            if not resumed:
                emissions.append(self._emission(end, sequence, EmissionKind.FIRST))
            emissions.append(self._emission(end, sequence, EmissionKind.FINISHED))
            self._context += job.prompt_tokens + self._produced(sequence)
            self._decoding[job.id] = sequence
            self._leave(sequence)
            self.finished += 1
            return
        self._decoding[job.id] = sequence
        self._context += job.prompt_tokens + self._produced(sequence)
        self._ticket += 1
        sequence.ticket = self._ticket
        heappush(self._ends, (sequence.decode_from + job.output_tokens - 1, self._ticket, sequence))
        kind = EmissionKind.TOKENS if resumed else EmissionKind.FIRST
        if kind is EmissionKind.FIRST or self._emit_tokens:
            emissions.append(self._emission(end, sequence, kind))

    def _preempt(self) -> bool:
        """Recompute: the youngest running request gives up its memory and goes back to the head of the queue."""
        running = [*self._prefilling.values(), *self._decoding.values()]
        if len(running) <= 1:
            return False
        youngest = max(running, key=lambda s: s.arrived)
        produced = self._produced(youngest)
        self._leave(youngest, gone=False)
        youngest.produced = produced
        youngest.decode_from, youngest.done = -1, 0
        youngest.expected_cached = self.cached_tokens(youngest.job)
        self._waiting.appendleft(youngest)
        self.preemptions_total += 1
        return True

    def _produced(self, sequence: _Sequence) -> int:
        return sequence.produced if sequence.decode_from < 0 else self._step - sequence.decode_from + 1

    def _emission(self, t: float, sequence: _Sequence, kind: EmissionKind) -> Emission:
        return Emission(t, sequence.job.id, kind, self._produced(sequence), sequence.cached)

    def _leave(self, sequence: _Sequence, *, gone: bool = True) -> None:
        """Take a running request out of the batch and give its memory back."""
        job = sequence.job
        if self._decoding.pop(job.id, None) is not None:
            produced = self._produced(sequence)
            self._context -= job.prompt_tokens + produced
            self.cache.private_tokens -= sequence.private + produced - (1 + sequence.produced)
        elif self._prefilling.pop(job.id, None) is not None:
            self.cache.private_tokens -= sequence.private
        self.cache.unpin(sequence.pinned)
        sequence.pinned = []
        sequence.private = 0
        if gone:
            del self._all[job.id]

    def _drop(self, sequence: _Sequence) -> None:
        self.aborted += 1
        if sequence in self._waiting:
            self._waiting.remove(sequence)
            del self._all[sequence.job.id]
        else:
            self._leave(sequence)
