"""The load board of one replica: calls come and go, and at any moment it says what is still to be done.

Pure but for its clock and its lock, and the thread that follows its engine's KV events if its settings ask for it: any
thread may count. Serving it is the matter of ``serving`` and ``middleware``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from threading import RLock

from ..core.fingerprint import fingerprint
from ..core.load.prefix_delta import Hashing
from ..core.load.report import LoadReport, State
from ..core.model import Usage
from ..dialects import Reading, find
from ..dialects.plain import reading_of
from .acks import Acks
from .beliefs import Beliefs
from .call import BoardCall, check_text, check_tokens
from .gpu import Gauge
from .kv_feed import KvFeed
from .publisher import Publisher
from .readiness import Readiness
from .settings import ReporterSettings
from .work import Workload

# Their work is by size of input: all of it counts as prefill, which is over with the answer.
_NO_OUTPUT = frozenset({"kserve.infer", "bytes"})


@dataclass(frozen=True, slots=True)
class _Described:
    prompt: str | bytes
    model: str | None
    max_output_tokens: int | None
    streaming: bool


class LoadBoard:
    """What a replica has to do, what it holds, and how it is.

    ``clock``: seconds, monotonic. ``epoch`` and ``first_seq``: chosen at random, so that after a restart no place in
    the stream looks like one of before. Raises ConfigError for KV events that cannot be followed; until ``close()``
    they are.
    """

    def __init__(
        self,
        settings: ReporterSettings | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        epoch: str | None = None,
        first_seq: int | None = None,
    ) -> None:
        self.settings = settings or ReporterSettings.from_env()
        self.clock = clock
        self.epoch = epoch or secrets.token_hex(4)
        self.hashing = Hashing.by(self.settings.key)
        self.readiness = Readiness(self.settings.overloaded_s)
        self.partial = bool(self.settings.partial)
        self.acks = Acks()
        self.kv_tokens = self.settings.kv_tokens
        self.lock = RLock()
        self.beliefs = Beliefs(
            self.lock, clock, self.kv_tokens, follows_events=self.settings.kv_events is not None
        )
        self.chains = self.beliefs.chains
        self._work = Workload(self.settings.step_tokens, self.settings.batch_limit)
        self._gauge = Gauge(self.settings.gpu)
        self._began = clock()
        self.publisher = Publisher(self, secrets.randbelow(2**48) if first_seq is None else first_seq)
        self._kv_feed = KvFeed.of(self.beliefs, self.settings)

    # -- calls --------------------------------------------------------------------------------------------------

    def begin(
        self,
        *,
        prompt_tokens: int | None = None,
        prompt: str | bytes = "",
        max_output_tokens: int | None = None,
        model: str | None = None,
        streaming: bool = True,
        call_id: str | None = None,
    ) -> BoardCall:
        """A call has come. ``prompt``: its text, for the prefix; its tokens are estimated if they are not given.

        Its prefix is found by clients that describe their calls alike (``Balancer.acquire``: the same text and model);
        those of the HTTP clients are told by ``begin_request``.
        ``max_output_tokens``: 0 if it generates nothing. ``call_id``: what the client sent as ``x-mlbalance-call``.
        ``streaming``: ``first_content()`` will be called. After ``close()`` calls count as before: what comes while the
        server ends is work too. Raises ValueError for a negative number of tokens, TypeError for what is of another
        type.
        """
        if not isinstance(prompt, str | bytes):
            raise TypeError(f"prompt is {prompt!r:.40}, and must be str or bytes")
        check_tokens("prompt_tokens", prompt_tokens)
        check_tokens("max_output_tokens", max_output_tokens)
        if model is not None:
            check_text("model", model)
        if call_id is not None:
            check_text("call_id", call_id)
        reading = reading_of(_Described(prompt, model, max_output_tokens, streaming))
        return self.begin_reading(reading, call_id, prompt_tokens)

    def begin_request(self, path: str, body: bytes, call_id: str | None = None) -> BoardCall:
        """A call has come over HTTP, a POST to ``path``: its prompt and limits as clients read them from its body.

        A path that no dialect knows, and a body that its dialect cannot read, count by their size.
        """
        return self.begin_reading(find("POST", path).read(path, body), call_id)

    def begin_reading(
        self, reading: Reading, call_id: str | None = None, prompt_tokens: int | None = None
    ) -> BoardCall:
        """A call has come whose request a dialect has read."""
        if reading.dialect in _NO_OUTPUT:
            reading = reading._replace(output_limit=0)
        chain = fingerprint(reading.prompt, self.settings.key).chain if reading.prompt else ()
        with self.lock:
            now = self.clock()
            if call_id:
                self.acks.count(call_id, self.publisher.seq)
            call = self.beliefs.begin(self, reading, chain, prompt_tokens, now)
            self._work.begin(call.work)
            self.publisher.mutated(now, call.work.uncached)
        return call

    def prefilled(self, call: BoardCall) -> None:
        """The call's first content is there."""
        with self.lock:
            now = self.clock()
            self._work.first_content(call.work, now)
            self.publisher.mutated(now, 0 if call.work.answered else call.work.uncached)

    def answered(self, call: BoardCall) -> None:
        """The head of the call's whole answer is about to go out, and tells of the load without it."""
        with self.lock:
            if call.over or call.work.answered:
                return
            now = self.clock()
            self._work.answered(call.work, now)
            self.publisher.mutated(now, 0 if call.work.decoding else call.work.uncached)

    def end(self, call: BoardCall, usage: Usage | None, *, served: bool) -> None:
        """The call is over."""
        with self.lock:
            if call.over:
                return
            call.over = True
            now = self.clock()
            output = call.work.produced
            if usage is not None and usage.output_tokens is not None:
                output = usage.output_tokens
            self.beliefs.end(call, usage, output, served=served)
            self._work.end(call.work, now, output_tokens=output, whole=served)
            news = served and self.readiness.succeeded(call.model, call.work.began)
            moved_tokens = 0 if call.work.decoding or call.work.answered else call.work.uncached
            self.publisher.mutated(now, inf if news else moved_tokens)

    # -- the server's life --------------------------------------------------------------------------------------

    def refused(self) -> None:
        """The server has answered that it is too busy (429, 503)."""
        with self.lock:
            self.readiness.refused(self.clock())
            self.publisher.mutated(self.clock())

    def starting(self, still: bool = True) -> None:
        """It takes no calls yet, as it loads its model; ``still=False``: now it does."""
        with self.lock:
            self.readiness.starting = still
            self.publisher.mutated(self.clock())

    def booting(self, still: bool = True) -> None:
        """The server around it is not yet up, whatever ``starting`` says; ``still=False``: now it is."""
        with self.lock:
            self.readiness.booting = still
            self.publisher.mutated(self.clock())

    def drain(self, draining: bool = True) -> None:
        """The replica wants no new calls, but goes on for now."""
        with self.lock:
            self.readiness.draining = draining
            self.publisher.mutated(self.clock())

    def close(self) -> None:
        """The server ends: streams say so and end, KV events are no longer followed.

        Safe in a signal handler: takes none of the board's locks.
        """
        self.readiness.closing = True
        self.publisher.wake_all()
        if self._kv_feed is not None:
            self._kv_feed.close()

    def set_model(self, model: str, state: State | str) -> None:
        """Say how one model of several is. Raises ValueError for a state that is none, TypeError for a model."""
        check_text("model", model)
        with self.lock:
            self.readiness.set_model(model, state)
            self.publisher.mutated(self.clock())

    def set_kv_tokens(self, tokens: int) -> None:
        """How much the KV cache holds, as the engine says; a setting goes first."""
        if self.settings.kv_tokens is None and tokens > 0:
            with self.lock:
                self.kv_tokens = tokens
                self.beliefs.resize(tokens)

    # -- reports ------------------------------------------------------------------------------------------------

    def report(self, now: float, seq: int = 0, subscribers: int = 0) -> LoadReport:
        """The load at ``now``; take the lock first."""
        tally = self._work.tally(now)
        prefill_rate, decode_rate = self._work.prefill.value, self._work.decode.value
        gpu = self._gauge.figures(now)
        return LoadReport(
            source="board",
            at=now,
            replica=self.settings.replica,
            epoch=self.epoch,
            seq=seq,
            subscribers=subscribers,
            t_ms=int((now - self._began) * 1000),
            state=self.readiness.state(now),
            running=tally.running,
            waiting=tally.waiting,
            prefill_tokens=tally.prefill_tokens,
            decode_tokens=tally.decode_tokens,
            prefill_tokens_per_s=prefill_rate and round(prefill_rate, 1),
            decode_tokens_per_s=decode_rate and round(decode_rate, 1),
            expected_wait_s=self._wait_s(tally.prefill_tokens, prefill_rate),
            batch_limit=self.settings.batch_limit,
            kv_used=round(min(1.0, tally.held_tokens / self.kv_tokens), 4) if self.kv_tokens else None,
            kv_capacity_tokens=self.kv_tokens,
            gpu_utilization=gpu.utilization,
            gpu_memory_used_bytes=gpu.used_bytes,
            gpu_memory_total_bytes=gpu.total_bytes,
            models=self.readiness.models,
            partial=self.partial,
        )

    @property
    def usual_tokens(self) -> int:
        """Prompt tokens that a call has to compute, on average of late."""
        return self._work.usual_tokens

    def room(self, report: LoadReport) -> tuple[int | None, int | None]:
        """Requests and tokens that could be taken in, for all clients together; None where it is not known."""
        if report.state in (State.DRAINING, State.OVERLOADED, State.STARTING):
            return 0, 0
        requests = tokens = None
        if report.batch_limit is not None:
            requests = max(0, report.batch_limit - (report.running or 0) - (report.waiting or 0))
        if report.prefill_tokens_per_s:
            standing = self.settings.wait_target_s * report.prefill_tokens_per_s
            tokens = max(0, int(standing) - (report.prefill_tokens or 0))
        if tokens is not None and self.kv_tokens:
            left = self.kv_tokens * (1.0 - (report.kv_used or 0.0)) - (report.decode_tokens or 0)
            tokens = max(0, min(tokens, int(left)))
        return requests, tokens

    @staticmethod
    def _wait_s(prefill_tokens: int, rate: float | None) -> float | None:
        if not prefill_tokens:
            return 0.0
        return round(prefill_tokens / rate, 4) if rate else None
