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
        while position >= self._proven and not turn.taken:
            now = anyio.current_time()
            if now >= self._free_at:
                turn.taken, self._free_at = True, now + _BETWEEN_S
            else:
                with anyio.move_on_after(self._free_at - now):
                    await self._more.wait()


class Turn:
    """One look's, among those that go beyond what has been found; taken when it first needs it and may."""

    __slots__ = ("taken",)

    def __init__(self) -> None:
        self.taken = False
