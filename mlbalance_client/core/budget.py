"""How much may be sent besides what callers ask for: over any window at most ``ratio`` of what was sent, and a reserve.

A token bucket that only traffic fills: what is quiet earns nothing, so that an outage cannot be met with savings.
"""

from __future__ import annotations


class Budget:
    """In any unit: tokens for hedges, calls for retries. Starts with its ``reserve`` and holds no more."""

    __slots__ = ("_left", "_ratio", "_reserve")

    def __init__(self, ratio: float, reserve: float) -> None:
        self._ratio = ratio
        self._reserve = reserve
        self._left = reserve

    @property
    def left(self) -> float:
        """What may be spent now."""
        return self._left

    def sent(self, amount: float = 1.0) -> None:
        """A caller's own call was sent."""
        self._left = min(self._reserve, self._left + self._ratio * amount)

    def covers(self, amount: float = 1.0) -> bool:
        """Whether there is enough for this."""
        return self._left >= amount

    def give_back(self, amount: float = 1.0) -> None:
        """It was not needed after all."""
        self._left = min(self._reserve, self._left + amount)

    def drain(self, amount: float) -> None:
        """Take as much of it as there is."""
        self._left = max(0.0, self._left - amount)

    def spend(self, amount: float = 1.0) -> bool:
        """Take it, if there is enough."""
        if self._left < amount:
            return False
        self._left -= amount
        return True
