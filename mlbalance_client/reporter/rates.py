"""How fast a server works, learned from what it has done while there was something to do."""

from __future__ import annotations

_MEMORY = 0.98
_LEAST_TOKENS = 1024.0
_LEAST_S = 0.02


class Throughput:
    """Tokens a second: decaying sums of tokens done and of the time in which there were any to do.

    Not a mean over calls: engines work on several at once, and a call that ends a moment after another would look
    infinitely fast.
    """

    __slots__ = ("_active", "_busy_s", "_mark", "_since_s", "_tokens")

    def __init__(self) -> None:
        self._tokens = 0.0
        self._busy_s = 0.0
        self._since_s = 0.0
        self._active = 0
        self._mark = 0.0

    @property
    def value(self) -> float | None:
        """The rate, or None until it has been seen."""
        if self._tokens < _LEAST_TOKENS or self._busy_s < _LEAST_S:
            return None
        return self._tokens / self._busy_s

    def enter(self, now: float) -> None:
        """There is one thing more to do."""
        self._pass(now)
        self._active += 1

    def leave(self, now: float, tokens: float) -> None:
        """One thing less, of which ``tokens`` were done."""
        self._pass(now)
        self._active -= 1
        if not tokens:
            return
        self._tokens = self._tokens * _MEMORY + tokens
        self._busy_s = self._busy_s * _MEMORY + self._since_s
        self._since_s = 0.0

    def _pass(self, now: float) -> None:
        if now <= self._mark:
            return
        if self._active:
            self._since_s += now - self._mark
        self._mark = now
