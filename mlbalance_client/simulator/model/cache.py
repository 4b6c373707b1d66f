"""The prefix cache of a simulated engine: blocks in use are pinned, others stay until their room is needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import KeysView, Sequence


class PrefixCache:
    """Room for ``capacity_tokens``, shared by cached blocks and what running requests hold for themselves."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.private_tokens = 0
        self.block_held_tokens = 0
        self._idle_tokens = 0
        self._pins: dict[int, int] = {}
        self._sizes: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def used_tokens(self) -> int:
        """Tokens held by anybody or kept in the cache."""
        return self.private_tokens + self.block_held_tokens

    @property
    def pinned_tokens(self) -> int:
        """Tokens that cannot be evicted."""
        return self.used_tokens - self._idle_tokens

    @property
    def blocks(self) -> KeysView[int]:
        """All that are there, a live view."""
        return self._sizes.keys()

    def hit(self, blocks: Sequence[int]) -> int:
        """How many leading blocks are there."""
        for depth, block in enumerate(blocks):
            if block not in self._sizes:
                return depth
        return len(blocks)

    def pin(self, block: int, tokens: int) -> bool:
        """Hold a block, new or cached; False if it was new."""
        if block in self._sizes:
            if block in self._idle:
                del self._idle[block]
                self._idle_tokens -= self._sizes[block]
            self._pins[block] = self._pins.get(block, 0) + 1
            return True
        self._sizes[block] = tokens
        self._pins[block] = 1
        self.block_held_tokens += tokens
        return False

    def unpin(self, blocks: Sequence[int]) -> None:
        """Let go of blocks, deepest first, so that the deepest are evicted first."""
        for block in reversed(blocks):
            self._pins[block] -= 1
            if not self._pins[block]:
                del self._pins[block]
                self._idle[block] = None
                self._idle_tokens += self._sizes[block]

    def make_room(self) -> bool:
        """Evict least recently used blocks until what is held fits; False if it cannot."""
        while self.used_tokens > self.capacity_tokens:
            if not self._idle:
                return False
            block, _ = self._idle.popitem(last=False)
            self._forget(block)
        return True

    def flush(self) -> None:
        """Forget what nobody holds."""
        for block in self._idle:
            self._forget(block)
        self._idle.clear()

    def _forget(self, block: int) -> None:
        tokens = self._sizes.pop(block)
        self.block_held_tokens -= tokens
        self._idle_tokens -= tokens
