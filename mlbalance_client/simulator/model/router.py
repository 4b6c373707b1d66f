"""Who places calls when the product does not: the omniscient router, which is the bar, and policies that know nothing.

The omniscient router sees each engine's true queue and true cache at the moment of arrival and takes the replica
with the least (true seconds of prefill before the call + MISS_WEIGHT * true seconds of its own uncached prefill
+ what decoding there adds to its steps).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Protocol

from .engine import COLD_FACTOR, Engine
from .spec import Job

MISS_WEIGHT = 2.0


class Router(Protocol):
    """Chooses an engine for a job by its number, and hears when the job has ended there."""

    def place(self, now: float, job: Job, engines: Sequence[Engine]) -> int:
        """The number of the engine."""

    def ended(self, engine: int, job_id: str) -> None:
        """A job placed there has finished."""


class Omniscient:
    """Knows everything, at no delay; but that a replica is cold, only if it ``sees_cold``."""

    def __init__(self, rng: Random, miss_weight: float = MISS_WEIGHT, *, sees_cold: bool = True) -> None:
        self._rng = rng
        self._miss_weight = miss_weight
        self._sees_cold = sees_cold

    def place(self, now: float, job: Job, engines: Sequence[Engine]) -> int:
        """Least true seconds; ties at random."""
        scores = [quote(engine, now, job, self._miss_weight, sees_cold=self._sees_cold) for engine in engines]
        least = min(scores)
        return self._rng.choice([i for i, score in enumerate(scores) if score == least])

    def ended(self, engine: int, job_id: str) -> None:
        """It sees that by itself."""


def quote(
    engine: Engine, now: float, job: Job, miss_weight: float = MISS_WEIGHT, *, sees_cold: bool = True
) -> float:
    """The omniscient router's score of an engine for a job, in seconds."""
    own_s = engine.spec.prefill_s(job.prompt_tokens, engine.cached_tokens(job)) * engine.slowdown
    if sees_cold and engine.cold:
        own_s *= COLD_FACTOR
    standing_s = engine.backlog_s(now, sees_cold=sees_cold) + engine.decode_s(sees_cold=sees_cold)
    return standing_s + miss_weight * own_s


class RandomRouter:
    """Any engine."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng

    def place(self, now: float, job: Job, engines: Sequence[Engine]) -> int:
        """Uniformly."""
        return self._rng.randrange(len(engines))

    def ended(self, engine: int, job_id: str) -> None:
        """Of no interest."""


class RoundRobinRouter:
    """Each in turn."""

    def __init__(self) -> None:
        self._turn = -1

    def place(self, now: float, job: Job, engines: Sequence[Engine]) -> int:
        """The next."""
        self._turn += 1
        return self._turn % len(engines)

    def ended(self, engine: int, job_id: str) -> None:
        """Of no interest."""


class LeastRequestsRouter:
    """``clients`` independent counters of own requests; each call goes through a random one of them."""

    def __init__(self, rng: Random, clients: int = 1) -> None:
        self._rng = rng
        self._clients = clients
        self._counts: list[dict[int, int]] = [{} for _ in range(clients)]
        self._clients_of: dict[str, int] = {}

    def place(self, now: float, job: Job, engines: Sequence[Engine]) -> int:
        """Fewest own requests outstanding; ties at random."""
        client = self._rng.randrange(self._clients)
        counts = self._counts[client]
        least = min(counts.get(i, 0) for i in range(len(engines)))
        chosen = self._rng.choice([i for i in range(len(engines)) if counts.get(i, 0) == least])
        counts[chosen] = counts.get(chosen, 0) + 1
        self._clients_of[job.id] = client
        return chosen

    def ended(self, engine: int, job_id: str) -> None:
        """One fewer for its client."""
        self._counts[self._clients_of.pop(job_id)][engine] -= 1


class TwoChoicesRouter:
    """``clients`` independent counters of own requests, each call by a random one: the better of two random engines."""

    def __init__(self, rng: Random, clients: int = 1) -> None:
        self._rng = rng
        self._counts: list[dict[int, int]] = [{} for _ in range(clients)]
        self._clients_of: dict[str, int] = {}

    def place(self, now: float, job: Job, engines: Sequence[Engine]) -> int:
        """Fewer own requests outstanding; the first drawn at a tie."""
        client = self._rng.randrange(len(self._counts))
        counts = self._counts[client]
        chosen = min(
            self._rng.sample(range(len(engines)), min(2, len(engines))), key=lambda i: counts.get(i, 0)
        )
        counts[chosen] = counts.get(chosen, 0) + 1
        self._clients_of[job.id] = client
        return chosen

    def ended(self, engine: int, job_id: str) -> None:
        """One fewer for its client."""
        self._counts[self._clients_of.pop(job_id)][engine] -= 1
