"""How long to wait before a source, or a call, is tried again: tenacity's strategies, with jitter of our own."""

from __future__ import annotations

from random import Random

from tenacity import RetryCallState, Retrying
from tenacity.stop import stop_after_attempt, stop_base
from tenacity.wait import wait_base, wait_exponential

from .config import RetriesConfig

_FIRST_S = 0.1
# What asks for a while gets up to so much more, so that those who were turned away together do not return together.
_SPREAD = 0.25


def doubling(most_s: float) -> wait_base:
    """0.1 s, doubled each time, at most ``most_s``."""
    return wait_exponential(multiplier=_FIRST_S, max=most_s)


def _state(attempt_number: int, elapsed_s: float = 0.0) -> RetryCallState:
    """As tenacity's strategies want it, on a clock of ours."""
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = attempt_number
    state.start_time, state.outcome_timestamp = 0.0, elapsed_s
    return state


class Backoff:
    """Counts failures in a row. ``wait``: one of tenacity's; the jitter is our own, so that it follows the seed."""

    def __init__(self, wait: wait_base, rng: Random) -> None:
        self._wait = wait
        self._rng = rng
        self._state = _state(1)
        self.reset()

    def next_s(self) -> float:
        """Seconds to wait after one more failure: from half of what the strategy says up to all of it."""
        wait_s = self._wait(self._state) * (0.5 + 0.5 * self._rng.random())
        self._state.attempt_number += 1
        return wait_s

    def reset(self) -> None:
        """It went well."""
        self._state.attempt_number = 1


class RetryStrategies:
    """When a call is sent again, and after which wait, as the section ``retries`` says."""

    def __init__(self, settings: RetriesConfig, rng: Random) -> None:
        self._stop: stop_base = settings.stop or stop_after_attempt(settings.max_attempts)
        self._wait = settings.wait
        if self._wait is None and settings.first_wait_s:
            self._wait = wait_exponential(multiplier=settings.first_wait_s, max=settings.max_wait_s)
        self._most_s = settings.max_wait_s
        self._rng = rng
        self.sends_again = not self.stops(1, 0.0)

    def stops(self, sent: int, elapsed_s: float) -> bool:
        """Whether no more is to be sent after ``sent`` attempts and ``elapsed_s`` seconds."""
        return bool(self._stop(_state(sent, elapsed_s)))

    def wait_s(self, sent: int, elapsed_s: float) -> float:
        """Seconds before the next attempt: up to a quarter more than what the strategy says."""
        return 0.0 if self._wait is None else self._spread(self._wait(_state(max(1, sent), elapsed_s)))

    def heeds_s(self, hint_s: float) -> float | None:
        """Seconds to wait for a fleet that asks for ``hint_s``; None if that is too long."""
        return self._spread(hint_s) if hint_s <= self._most_s else None

    def _spread(self, wait_s: float) -> float:
        return wait_s * (1.0 + _SPREAD * self._rng.random())
