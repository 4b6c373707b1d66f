"""What a client's looks for engines share: nearly all fleets are of one kind, and a look in vain is a dozen pages."""

from __future__ import annotations

import anyio

_BETWEEN_S = 1.0


class Looks:
    """One client's. ``kinds`` from the most telling to the vaguest, as formats are looked for.

    Up to the vaguest kind that any replica was found to be, a look may go on at once. What lies beyond has helped
    nobody yet: such looks begin one second apart, or as soon as another has shown that it is worth while.
    """

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._kinds = kinds
        self._free_at = float("-inf")
        self._proven = 0
        self._more = anyio.Event()

    def found(self, kind: str) -> None:
        """A replica is of this kind."""
        proven = self._kinds.index(kind) + 1
        if proven > self._proven:
            self._proven = proven
            self._more.set()
            self._more = anyio.Event()

    async def may_ask_for(self, kind: str, turn: Turn) -> None:
        """Wait until a look that has this turn may ask for ``kind``."""
        position = self._kinds.index(kind)
        while position >= self._proven and (pause_s := self._begins_at(turn) - anyio.current_time()) > 0:
            with anyio.move_on_after(pause_s):
                await self._more.wait()

    def _begins_at(self, turn: Turn) -> float:
        if turn.begins_at is None:
            turn.begins_at = max(self._free_at, anyio.current_time())
            self._free_at = turn.begins_at + _BETWEEN_S
        return turn.begins_at


class Turn:
    """One look's place among those that go beyond what has been found; taken when it first wants to."""

    __slots__ = ("begins_at",)

    def __init__(self) -> None:
        self.begins_at: float | None = None
