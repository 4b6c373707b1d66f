"""How long to wait before a source is tried again."""

from __future__ import annotations

from random import Random

from tenacity import RetryCallState, Retrying
from tenacity.wait import wait_base, wait_exponential

_FIRST_S = 0.1


def doubling(most_s: float) -> wait_base:
    """0.1 s, doubled each time, at most ``most_s``."""
    return wait_exponential(multiplier=_FIRST_S, max=most_s)


class Backoff:
    """Counts failures in a row. ``wait``: one of tenacity's; the jitter is our own, so that it follows the seed."""

    def __init__(self, wait: wait_base, rng: Random) -> None:
        self._wait = wait
        self._rng = rng
        self._state = RetryCallState(Retrying(), None, (), {})
        self.reset()

    def next_s(self) -> float:
        """Seconds to wait after one more failure: from half of what the strategy says up to all of it."""
        wait_s = self._wait(self._state) * (0.5 + 0.5 * self._rng.random())
        self._state.attempt_number += 1
        return wait_s

    def reset(self) -> None:
        """It went well."""
        self._state.attempt_number = 1
