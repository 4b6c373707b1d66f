"""Which prefixes this replica is believed to hold, and the log of changes from which subscribers follow."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.load.prefix_delta import Hashing, PrefixDelta

_PAGES = 128
MOST_BLOCKS = 65_536


@dataclass(frozen=True, slots=True)
class Page:
    """Changes that were told together; ``after``: the seq of the last load report made before them."""

    number: int
    after: int
    add: tuple[int, ...]
    drop: tuple[int, ...]


class Chains:
    """Blocks in LRU order, at most as many as the KV cache holds; deep blocks of a prompt go before shallow ones.

    A block's stamp says when it was last used; stamps grow along the order.
    """

    def __init__(self, capacity_blocks: int) -> None:
        self.capacity = 0
        self._held: OrderedDict[int, int] = OrderedDict()
        self._stamp = 0
        self._changed: dict[int, bool] = {}
        self._pages: deque[Page] = deque()
        self._logged = 0
        self.number = 0
        self.resize(capacity_blocks)

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, block: int) -> bool:
        return block in self._held

    def resize(self, capacity_blocks: int) -> None:
        """The cache holds this many blocks."""
        self.capacity = min(MOST_BLOCKS, max(1, capacity_blocks))
        self._trim()

    def touch(self, chain: Sequence[int]) -> tuple[int, list[int]]:
        """A prompt is being computed: its stamp, and the stamps that those leading blocks had which are there."""
        held, before = self._held, []
        for block in chain:
            if (used := held.get(block)) is None:
                break
            before.append(used)
        self._stamp = stamp = self._stamp + 1
        for block in reversed(chain[: self.capacity]):
            if block in held:
                held.move_to_end(block)
            else:
                self._note(block, True)
            held[block] = stamp
        self._trim()
        return stamp, before

    def forget(self, blocks: Iterable[int], stamp: int | None = None) -> None:
        """These are not there after all; with a ``stamp``, unless they were used since."""
        for block in blocks:
            if block in self._held and stamp in (None, self._held[block]):
                del self._held[block]
                self._note(block, False)

    def forget_older(self, stamp: int) -> None:
        """All that was last used at ``stamp`` or before is gone, as a block of that age was."""
        while self._held:
            block = next(iter(self._held))
            if self._held[block] > stamp:
                return
            del self._held[block]
            self._note(block, False)

    def clear(self) -> None:
        """The cache has been emptied."""
        self.forget(list(self._held))

    def seal(self, after: int) -> Page | None:
        """Close a page over what has changed since the last, if anything has."""
        if not self._changed:
            return None
        changes, self._changed = self._changed, {}
        add = tuple(block for block, there in changes.items() if there)
        drop = tuple(block for block, there in changes.items() if not there)
        self.number += 1
        page = Page(self.number, after, add, drop)
        self._pages.append(page)
        self._logged += len(changes)
        while len(self._pages) > _PAGES or self._logged > max(1024, 2 * self.capacity):
            old = self._pages.popleft()
            self._logged -= len(old.add) + len(old.drop)
        return page

    @property
    def oldest(self) -> int:
        """The number of the oldest page that is kept."""
        return self._pages[0].number if self._pages else self.number + 1

    def tells_since(self, number: int) -> bool:
        """Whether all pages after ``number`` are there still."""
        return self.oldest - 1 <= number <= self.number

    def number_at(self, seq: int) -> int | None:
        """The last page that came before load report ``seq``, or None if that is too long ago to tell."""
        for page in reversed(self._pages):
            if page.after < seq:
                return page.number
        return 0 if self.oldest == 1 else None

    def all(self, epoch: str, hashing: Hashing) -> PrefixDelta:
        """All that is held as of the last page, for one who starts anew."""
        held = [block for block in self._held if not self._changed.get(block)]
        gone = [block for block, there in self._changed.items() if not there]
        return PrefixDelta(epoch, self.number, True, (*held, *gone), (), hashing)

    def _note(self, block: int, there: bool) -> None:
        if self._changed.get(block, there) != there:
            del self._changed[block]
        else:
            self._changed[block] = there

    def _trim(self) -> None:
        while len(self._held) > self.capacity:
            self._note(self._held.popitem(last=False)[0], False)
