"""What calls are believed to cost and what the cache is believed to hold, corrected by what answers and events say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from threading import RLock

from ..core.cost import Costs
from ..core.fingerprint import BLOCK_BYTES
from ..core.model import Usage
from ..dialects import Reading
from .call import BoardCall, Counting
from .chains import Chains
from .work import Work

_ASSUMED_KV_TOKENS = 500_000
_BYTES_PER_TOKEN, _OUTPUT_TOKENS, _KNEE = 4.0, 256, 1e9
_MISSES = 16
_MOST_NAME = 256
_STORED_WITHIN_S, _MOST_STORING = 0.2, 256


class Beliefs:
    """``lock``: the board's, held by whoever calls ``begin``, ``end`` and ``resize``.

    ``kv_tokens``: what the KV cache holds, if that is known. ``follows_events``: KV events will ask for ``prefilling``.
    """

    def __init__(
        self, lock: RLock, clock: Callable[[], float], kv_tokens: int | None, *, follows_events: bool
    ) -> None:
        self.bytes_per_token = _BYTES_PER_TOKEN
        self._lock = lock
        self._clock = clock
        self._costs = Costs(_BYTES_PER_TOKEN, _OUTPUT_TOKENS, _KNEE)
        self._kv_tokens = kv_tokens or _ASSUMED_KV_TOKENS
        self.chains = Chains(self._blocks())
        self._misses = 0
        self._follows_events = follows_events
        self._storing: list[BoardCall] = []

    def begin(
        self, board: Counting, reading: Reading, chain: Sequence[int], prompt_tokens: int | None, now: float
    ) -> BoardCall:
        """A call with what it should cost; its prompt will be cached."""
        model = reading.model and reading.model[:_MOST_NAME]  # a name is a key of tables: a client chooses it
        ratio = self._costs.ratio(model).value
        size_bytes = reading.prompt_bytes if prompt_tokens is None else 0
        tokens = prompt_tokens or int(size_bytes / ratio) + reading.extra_tokens
        stamp, before = self.chains.touch(chain) if chain else (0, [])
        cached = min(int(len(before) * BLOCK_BYTES / ratio), max(0, tokens - 1))
        work = Work(
            began=now,
            prompt_tokens=tokens,
            uncached=max(1, tokens - cached),
            output_tokens=self._costs.expected_output(model, reading.dialect, reading.output_limit),
            visible=reading.streaming or reading.output_limit == 0,
        )
        call = BoardCall(
            board, work, chain=chain, stamp=stamp, before=before, prompt_bytes=size_bytes,
            extra_tokens=reading.extra_tokens, model=model, route=reading.dialect,
        )  # fmt: skip
        if chain and self._follows_events:
            if len(self._storing) >= _MOST_STORING:
                self._storing = self.prefilling()[-_MOST_STORING // 2 :]
            self._storing.append(call)
        return call

    def end(self, call: BoardCall, usage: Usage | None, output_tokens: int, *, served: bool) -> None:
        """It is over, having brought so many tokens."""
        if not call.work.decoding:
            if call in self._storing:
                self._storing.remove(call)
            if not served:
                self.chains.forget(call.chain, call.stamp)  # it may never have been computed
        if served:
            self._costs.learn_output(call.model, call.route, output_tokens)
        if served and usage is not None:
            self._learn(call, usage)

    def resize(self, kv_tokens: int) -> None:
        """The cache holds so many tokens."""
        self._kv_tokens = kv_tokens
        self.chains.resize(self._blocks())

    # -- what KV events ask and tell, from their own thread -----------------------------------------------------

    def prefilling(self) -> list[BoardCall]:
        """The calls whose blocks an engine may be storing: in prefill, or out of it for a moment only."""
        with self._lock:
            now = self._clock()
            self._storing = [
                call
                for call in self._storing
                if not call.work.decoding or now - call.work.decoding_since < _STORED_WITHIN_S
            ]
            return list(self._storing)

    def lost(self, blocks: Iterable[int]) -> None:
        """These are no longer cached."""
        with self._lock:
            self.chains.forget(blocks)

    def lost_all(self) -> None:
        """Nothing is cached any more."""
        with self._lock:
            self.chains.clear()

    def _learn(self, call: BoardCall, usage: Usage) -> None:
        ratio = self._costs.ratio(call.model)
        if usage.prompt_tokens is not None and call.prompt_bytes:
            ratio.learn(call.prompt_bytes, usage.prompt_tokens - call.extra_tokens)
            self.bytes_per_token = ratio.value
            self.chains.resize(self._blocks())
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

    def _blocks(self) -> int:
        return int(self._kv_tokens * self.bytes_per_token / BLOCK_BYTES)
