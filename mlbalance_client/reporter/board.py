"""The load board of one replica: calls come and go, and at any moment it says what is still to be done.

Pure but for its clock and its lock: any thread may count. Serving it is the matter of ``serving`` and ``middleware``.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import RLock

from ..core.cost import Costs
from ..core.fingerprint import BLOCK_BYTES, SCHEME, fingerprint
from ..core.load_report import LoadReport, State
from ..core.model import Usage
from ..core.prefix_delta import KEYED_SCHEME
from ..dialects import Reading
from ..dialects.plain import reading_of
from .acks import Acks
from .call import BoardCall
from .chains import Chains
from .gpu import Gauge
from .publisher import Publisher
from .readiness import Readiness
from .settings import ReporterSettings
from .work import Work, Workload

_ASSUMED_KV_TOKENS = 500_000
_BYTES_PER_TOKEN, _OUTPUT_TOKENS, _KNEE = 4.0, 256, 1e9
_MISSES = 16
_STORED_WITHIN_S, _MOST_STORING = 0.2, 256


@dataclass(frozen=True, slots=True)
class _Described:
    prompt: str | bytes
    model: str | None
    max_output_tokens: int | None
    streaming: bool


class LoadBoard:
    """What a replica has to do, what it holds, and how it is.

    ``clock``: seconds, monotonic. ``epoch`` and ``first_seq``: chosen at random, so that after a restart no place in
    the stream looks like one of before.
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
        self.scheme = SCHEME if self.settings.key is None else KEYED_SCHEME
        self.readiness = Readiness(self.settings.overloaded_s)
        self.partial = bool(self.settings.partial)
        self.acks = Acks()
        self.kv_tokens = self.settings.kv_tokens
        self.costs = Costs(_BYTES_PER_TOKEN, _OUTPUT_TOKENS, _KNEE)
        self._bytes_per_token = _BYTES_PER_TOKEN
        self.chains = Chains(self._blocks(self.kv_tokens or _ASSUMED_KV_TOKENS))
        self.lock = RLock()
        self._work = Workload(self.settings.step_tokens, self.settings.batch_limit)
        self._gauge = Gauge(self.settings.gpu)
        self._misses = 0
        self._storing: list[BoardCall] = []
        self._began = clock()
        self.publisher = Publisher(self, secrets.randbelow(2**48) if first_seq is None else first_seq)

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

        ``max_output_tokens``: 0 if it generates nothing. ``call_id``: what the client sent as ``x-mlbalance-call``.
        ``streaming``: ``first_content()`` will be called.
        """
        reading = reading_of(_Described(prompt, model, max_output_tokens, streaming))
        return self.begin_reading(reading, call_id, prompt_tokens)

    def begin_reading(
        self, reading: Reading, call_id: str | None = None, prompt_tokens: int | None = None
    ) -> BoardCall:
        """A call has come whose request a dialect has read."""
        chain = fingerprint(reading.prompt, self.settings.key).chain if reading.prompt else ()
        with self.lock:
            now = self.clock()
            ratio = self.costs.ratio(reading.model).value
            known = prompt_tokens is not None
            size_bytes = 0 if known else reading.prompt_bytes
            tokens = prompt_tokens or int(size_bytes / ratio) + reading.extra_tokens
            output = self.costs.expected_output(reading.model, reading.dialect, reading.output_limit)
            stamp, before = self.chains.touch(chain) if chain else (0, [])
            cached = min(int(len(before) * BLOCK_BYTES / ratio), max(0, tokens - 1))
            visible = reading.streaming or reading.output_limit == 0
            client = self.acks.count(call_id, self.publisher.seq) if call_id else None
            work = Work(now, tokens, max(1, tokens - cached), output, visible)
            call = BoardCall(
                self, work, chain=chain, stamp=stamp, before=before, prompt_bytes=size_bytes,
                extra_tokens=reading.extra_tokens, model=reading.model, route=reading.dialect, client=client,
            )  # fmt: skip
            self._work.begin(work)
            if chain and self.settings.kv_events:
                if len(self._storing) >= _MOST_STORING:
                    self._storing = self.prefilling()[-_MOST_STORING // 2 :]
                self._storing.append(call)
            self.publisher.mutated(now)
        return call

    def prefilled(self, call: BoardCall) -> None:
        """The call's first content is there."""
        with self.lock:
            now = self.clock()
            self._work.first_content(call.work, now)
            self.publisher.mutated(now)

    def end(self, call: BoardCall, usage: Usage | None, *, served: bool) -> None:
        """The call is over."""
        with self.lock:
            if call.over:
                return
            call.over = True
            now = self.clock()
            if not call.work.decoding and call in self._storing:
                self._storing.remove(call)
            output = call.work.produced
            if usage is not None and usage.output_tokens is not None:
                output = usage.output_tokens
            if not call.work.decoding and not served:
                self.chains.forget(call.chain, call.stamp)
            self._work.end(call.work, now, output_tokens=output, whole=served)
            if served:
                self.readiness.succeeded(call.model, call.work.began)
                self.costs.learn_output(call.model, call.route, output)
                self._learn(call, usage or Usage())
            self.publisher.mutated(now)

    def _learn(self, call: BoardCall, usage: Usage) -> None:
        ratio = self.costs.ratio(call.model)
        if usage.prompt_tokens is not None and call.prompt_bytes:
            ratio.learn(call.prompt_bytes, usage.prompt_tokens - call.extra_tokens)
            self._bytes_per_token = ratio.value
            self._resize()
        if usage.cached_tokens is None:
            return
        # Engines cache whole blocks of their own: the last block of ours may be there in part.
        seen = int(usage.cached_tokens * ratio.value / BLOCK_BYTES) + 1
        if usage.cached_tokens:
            self._misses = 0
        if seen < len(call.before):
            # What was last used before a block that is gone is gone too. Its own blocks have been computed again,
            # and are there, unless an engine keeps nothing at all.
            self._misses += not usage.cached_tokens
            self.chains.forget_older(call.before[seen])
        if self._misses >= _MISSES:
            self.chains.forget(call.chain)

    # -- the server's life --------------------------------------------------------------------------------------

    def refused(self) -> None:
        """The server has answered that it is too busy (429, 503)."""
        with self.lock:
            self.readiness.refused(self.clock())
            self.publisher.mutated(self.clock())

    def starting(self, still: bool = True) -> None:
        """The server is not yet up; ``still=False``: now it is."""
        with self.lock:
            self.readiness.starting = still
            self.publisher.mutated(self.clock())

    def drain(self, draining: bool = True) -> None:
        """The replica wants no new calls, but goes on for now."""
        with self.lock:
            self.readiness.draining = draining
            self.publisher.mutated(self.clock())

    def close(self) -> None:
        """The server ends: streams say so and end. Safe in a signal handler: takes no lock."""
        self.readiness.closing = True
        self.publisher.wake_all()

    def set_model(self, model: str, state: State) -> None:
        """Say how one model of several is."""
        with self.lock:
            self.readiness.set_model(model, state)
            self.publisher.mutated(self.clock())

    def set_kv_tokens(self, tokens: int) -> None:
        """How much the KV cache holds, as the engine says; a setting goes first."""
        if self.settings.kv_tokens is None and tokens > 0:
            with self.lock:
                self.kv_tokens = tokens
                self._resize()

    # -- what the engine says of its cache ----------------------------------------------------------------------

    @property
    def bytes_per_token(self) -> float:
        """As learned last."""
        return self._bytes_per_token

    def prefilling(self) -> list[BoardCall]:
        """The calls whose blocks an engine may be storing: in prefill, or out of it for a moment only."""
        with self.lock:
            now = self.clock()
            self._storing = [
                call
                for call in self._storing
                if not call.work.decoding or now - call.work.decoding_since < _STORED_WITHIN_S
            ]
            return self._storing

    def lost(self, blocks: Iterable[int]) -> None:
        """These are no longer cached."""
        with self.lock:
            self.chains.forget(blocks)

    def lost_all(self) -> None:
        """Nothing is cached any more."""
        with self.lock:
            self.chains.clear()

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

    def _blocks(self, tokens: int) -> int:
        return int(tokens * self._bytes_per_token / BLOCK_BYTES)

    def _resize(self) -> None:
        self.chains.resize(self._blocks(self.kv_tokens or _ASSUMED_KV_TOKENS))
