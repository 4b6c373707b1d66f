"""When a client asks one replica how it is.

Every client has a phase of its own and jitters, so that many do not ask in step. A client without calls asks less and
less often. Asking takes at most one part in 20 of the time, so that a server slow to answer is asked less; and after
failures the pauses double. Neither makes a pause longer than half a minute: one page that was stuck says little.
"""

from __future__ import annotations

from random import Random

_JITTER = 0.1
_COST_PARTS = 20.0
_MOST_DOUBLINGS = 3
_LONGEST_S = 30.0


class Cadence:
    """``interval_s``: how often to ask when all is well. ``patience``: so often without a call until pauses grow."""

    def __init__(self, interval_s: float, rng: Random, patience: int = 0) -> None:
        self._interval_s = interval_s
        self._rng = rng
        self._failures = 0
        self._patience = patience
        self._in_vain = 0
        self.least_s = interval_s

    def first_s(self) -> float:
        """How long to wait before asking for the first time: a random part of the interval."""
        return self._rng.random() * self._interval_s

    def answered(self, took_s: float, *, calls: bool) -> float:
        """How long to wait after an answer that took ``took_s``; ``calls``: whether there were any since the last.

        After ``least_s`` of it, a call may end the wait.
        """
        self._failures = 0
        self._in_vain = 0 if calls else self._in_vain + 1
        self.least_s = self._jittered(max(self._interval_s, min(_LONGEST_S, took_s * _COST_PARTS)))
        idle = 2.0 ** min(max(0, self._in_vain - self._patience), _MOST_DOUBLINGS)
        return max(self.least_s, self._jittered(self._interval_s * idle))

    def failed(self) -> float:
        """How long to wait after no answer."""
        self._failures = min(self._failures + 1, 16)
        pause_s = max(self._interval_s, min(_LONGEST_S, self._interval_s * 2**self._failures))
        self.least_s = self._jittered(pause_s)
        return self.least_s

    def _jittered(self, pause_s: float) -> float:
        return pause_s * (1.0 + _JITTER * (2.0 * self._rng.random() - 1.0))
