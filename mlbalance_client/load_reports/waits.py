"""How long calls have waited lately, from two counters that only grow."""

from __future__ import annotations

_MOST_S = 3_600.0


class LateWait:
    """The mean wait of the calls that began between two readings.

    For servers that tell no queue's length. A gauge of the last wait would stay at its last value when traffic ends.
    """

    def __init__(self) -> None:
        self._before: tuple[float, float] | None = None

    def __call__(self, waited_us: float | None, calls: float | None) -> float | None:
        """Seconds a call; None without calls in between, and after a restart, when counters fall."""
        before = self._before
        self._before = None if waited_us is None or calls is None else (waited_us, calls)
        if before is None or waited_us is None or calls is None:
            return None
        waited, more = waited_us - before[0], calls - before[1]
        return min(_MOST_S, waited / more / 1e6) if more > 0 and waited >= 0 else None
