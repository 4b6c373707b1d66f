"""Calls under way and what is still to be done of each.

Nothing is summed as calls come and go: every figure is made from the calls that are there, so none can drift.

Waiting or running? From outside an engine that is a guess: whoever has brought content runs; of the rest the
oldest are being prefilled, as many as one step takes, and all behind them wait. Engines prefill in order of arrival.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.cost import MovingMean
from .rates import Throughput

_MOST_SHARE = 0.9
_STEP = 0.02


@dataclass(slots=True, eq=False)
class Work:
    """One call. Tokens are estimates until its usage is known; ``uncached``: what of the prompt is computed.

    ``visible``: its first content shows when its prefill was over (a stream's does; so does the end of a call that
    generates nothing). ``answered``: the head of its whole answer has gone out, so that nothing is left to do.
    """

    began: float
    prompt_tokens: int
    uncached: int
    output_tokens: int
    visible: bool
    produced: int = 0
    decoding: bool = False
    decoding_since: float = 0.0
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Tally:
    """All calls at one moment, in requests and tokens; ``held``: in the KV cache for running calls."""

    running: int
    waiting: int
    prefill_tokens: int
    waiting_tokens: int
    decode_tokens: int
    held_tokens: int


class Workload:
    """``step_tokens``: prompt tokens that one step of the engine takes; ``batch_limit``: requests it runs at once."""

    def __init__(self, step_tokens: int, batch_limit: int | None) -> None:
        self.prefill = Throughput()
        self.decode = Throughput()
        self._step_tokens = step_tokens
        self._batch_limit = batch_limit
        self._calls: dict[int, Work] = {}
        self._head_free_at = 0.0
        self._usual_tokens = MovingMean(_STEP)

    def __len__(self) -> int:
        return len(self._calls)

    def begin(self, work: Work) -> None:
        """A call has come."""
        self._calls[id(work)] = work
        self._usual_tokens.add(work.uncached)
        if work.visible:
            self.prefill.enter(work.began)

    def first_content(self, work: Work, now: float) -> None:
        """Its prefill is over, if it was not known to be."""
        if id(work) in self._calls and not work.decoding:
            for earlier in self._prefilling():
                if earlier is work:
                    break
                if not earlier.visible:
                    self._prefilled(earlier, now, 0)
            self._prefilled(work, now, work.uncached)

    def answered(self, work: Work, now: float) -> None:
        """The head of its whole answer goes out: nothing is left to do for it, and the engine is at the next one."""
        if not work.decoding and work is self._prefilling()[0]:
            self._head_free_at = now
        work.answered = True

    def end(self, work: Work, now: float, *, output_tokens: int, whole: bool) -> None:
        """It is gone, having brought ``output_tokens``; ``whole``: to its own end."""
        if id(work) not in self._calls:
            return
        if work.decoding:
            self.decode.leave(now, output_tokens)
        else:
            if work is self._prefilling()[0] and not work.answered:
                self._head_free_at = now
            if work.visible:
                self.prefill.leave(now, work.uncached if whole else 0)
        del self._calls[id(work)]

    @property
    def usual_tokens(self) -> int:
        """Prompt tokens that a call has to compute, on average of late; at least 1."""
        return max(1, round(self._usual_tokens.value))

    def tally(self, now: float) -> Tally:
        """What is there."""
        running = waiting = prefill = waiting_tokens = decode = held = 0
        room = self._step_tokens
        places = self._batch_limit or len(self._calls)
        done = self._head_done(now)
        for work in self._calls.values():
            if work.answered:
                continue
            decode += max(work.output_tokens - work.produced, 1 if work.output_tokens else 0)
            if work.decoding:
                running += 1
                held += work.prompt_tokens + work.produced
                continue
            left = work.uncached - done
            done = 0
            prefill += left
            if room > 0 and running < places:
                running += 1
                held += work.prompt_tokens
            else:
                waiting += 1
                waiting_tokens += left
            room -= left
        return Tally(running, waiting, prefill, waiting_tokens, decode, held)

    def _head_done(self, now: float) -> int:
        """Tokens that the oldest prompt should have behind it; prompts whose content is not seen pass by time."""
        rate = self.prefill.value
        if rate is None:
            return 0
        for work in self._prefilling():
            if work.answered:
                continue
            since = max(work.began, self._head_free_at)
            done = int(max(0.0, now - since) * rate)
            if work.visible or done < work.uncached:
                return min(done, int(work.uncached * _MOST_SHARE))
            self._prefilled(work, since + work.uncached / rate, 0)
        return 0

    def _prefilling(self) -> list[Work]:
        return [work for work in self._calls.values() if not work.decoding]

    def _prefilled(self, work: Work, at: float, tokens: int) -> None:
        work.decoding, work.decoding_since = True, at
        self._head_free_at = at
        if work.visible:
            self.prefill.leave(at, tokens)
        self.decode.enter(at)
