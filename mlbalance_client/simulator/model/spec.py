"""What a simulated engine is like. Formulas and sources: docs/simulated-replica.md."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """An engine's limits (tokens, sequences) and costs (seconds).

    A step that prefills chunks of n_i tokens behind c_i tokens of context, beside ``b`` decoding sequences with
    ``k`` tokens of context in all, takes
    step_base_s + sum(n_i * prefill_s_per_token + n_i * (c_i + n_i / 2) * attention_s_per_token2)
    + b * decode_s_per_sequence + k * decode_s_per_context_token.
    """

    step_tokens: int = 2048
    max_running: int = 256
    kv_tokens: int = 1_000_000
    step_base_s: float = 0.010
    prefill_s_per_token: float = 7.9e-5
    attention_s_per_token2: float = 1.5e-9
    decode_s_per_sequence: float = 1.0e-4
    decode_s_per_context_token: float = 2.4e-8

    def scaled(self, factor: float) -> EngineSpec:
        """The same engine, ``factor`` times as fast."""
        return replace(
            self,
            step_base_s=self.step_base_s / factor,
            prefill_s_per_token=self.prefill_s_per_token / factor,
            attention_s_per_token2=self.attention_s_per_token2 / factor,
            decode_s_per_sequence=self.decode_s_per_sequence / factor,
            decode_s_per_context_token=self.decode_s_per_context_token / factor,
        )

    def chunk_s(self, tokens: int, context: int) -> float:
        """Seconds that prefilling ``tokens`` behind ``context`` adds to a step."""
        return tokens * (self.prefill_s_per_token + (context + tokens / 2) * self.attention_s_per_token2)

    def prefill_s(self, prompt_tokens: int, cached_tokens: int = 0) -> float:
        """Seconds from arrival to first token on an otherwise idle engine."""
        done, seconds = min(cached_tokens, prompt_tokens - 1), 0.0
        while done < prompt_tokens:
            chunk = min(self.step_tokens, prompt_tokens - done)
            seconds += self.step_base_s + self.chunk_s(chunk, done)
            done += chunk
        return seconds


@dataclass(frozen=True, slots=True)
class Job:
    """One request as an engine sees it.

    ``blocks``: identities of the prompt's full blocks of ``block_tokens`` tokens; one is a hit only if all before
    it are. ``output_tokens``: how many tokens the answer will have, at least 1.
    """

    id: str
    blocks: tuple[int, ...]
    block_tokens: int
    prompt_tokens: int
    output_tokens: int


class EmissionKind(StrEnum):
    """What an engine gave out for a job."""

    FIRST = "first"
    TOKENS = "tokens"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class Emission:
    """At ``t`` the job had ``tokens`` output tokens; ``cached_tokens`` of its prompt had been in the cache."""

    t: float
    job_id: str
    kind: EmissionKind
    tokens: int
    cached_tokens: int
