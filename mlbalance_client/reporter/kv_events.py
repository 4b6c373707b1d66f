"""What an engine's KV cache events say (vLLM and SGLang, over ZMQ), and how they bear on the prefixes of text.

Engines hash blocks of token ids, clients blocks of text, and nothing that an event carries leads from one to the other.
What leads there is time and kinship: blocks are stored while the call is prefilled that brings them, behind blocks that
were linked before. If just one call fits, they are linked to its text, by depth; if several do, they are not, and
the text stays in the care of LRU. What the engine then drops is known for certain.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ..core.fingerprint import BLOCK_BYTES

_MOST_BLOCKS = 500_000
_SLACK = 1.25
_GPU = (None, "GPU")
Hash = int | bytes


class KvEventError(ValueError):
    """A payload is not of the form that vLLM or SGLang publishes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """Blocks were stored behind ``parent``."""

    hashes: tuple[Hash, ...]
    parent: Hash | None
    block_size: int


@dataclass(frozen=True, slots=True)
class Removed:
    """Blocks were dropped."""

    hashes: tuple[Hash, ...]


@dataclass(frozen=True, slots=True)
class Cleared:
    """All blocks were dropped."""


Event = Stored | Removed | Cleared


class Candidate(Protocol):
    """A call that is being prefilled, or was a moment ago."""

    @property
    def chain(self) -> Sequence[int]: ...
    @property
    def prompt_tokens(self) -> int: ...


class Board(Protocol):
    """The board, as far as it is concerned."""

    @property
    def bytes_per_token(self) -> float: ...
    def prefilling(self) -> Sequence[Candidate]: ...
    def lost(self, blocks: Iterable[int]) -> None: ...
    def lost_all(self) -> None: ...


def decode(batch: object) -> list[Event]:
    """The events of ``[ts, [event, ...], rank]``; of other media than the GPU, and of later groups, none.

    An event is a map (vLLM from 0.25, SGLang) or an array (vLLM to 0.20). Raises KvEventError.
    """
    if not isinstance(batch, list | tuple) or len(batch) < 2 or not isinstance(batch[1], list | tuple):
        raise KvEventError("the payload is no batch of events")
    found = (_event(_fields(each)) for each in batch[1])
    return [event for event in found if event is not None]


_STORED = (
    "type", "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name",
)  # fmt: skip
_REMOVED = ("type", "block_hashes", "medium")


def _fields(event: object) -> dict[Any, Any]:
    if isinstance(event, dict):
        return event
    if isinstance(event, list | tuple) and event:
        return dict(zip(_STORED if event[0] == "BlockStored" else _REMOVED, event, strict=False))
    raise KvEventError("an event is neither map nor array")


def _event(fields: dict[Any, Any]) -> Event | None:
    kind = fields.get("type")
    if kind == "AllBlocksCleared":
        return Cleared()
    if (
        kind not in ("BlockStored", "BlockRemoved")
        or fields.get("medium") not in _GPU
        or fields.get("group_idx")
    ):
        return None
    hashes = fields.get("block_hashes")
    if not isinstance(hashes, list | tuple) or not all(isinstance(each, Hash) for each in hashes):
        raise KvEventError("block_hashes is no list of hashes")
    if kind == "BlockRemoved":
        return Removed(tuple(hashes))
    parent, size = fields.get("parent_block_hash"), fields.get("block_size")
    if not isinstance(size, int) or not 0 < size <= 2**20 or not isinstance(parent, Hash | None):
        raise KvEventError("block_size or parent_block_hash cannot be")
    return Stored(tuple(hashes), parent, size)


@dataclass(slots=True)
class _Block:
    """``start``: tokens before it; ``text``: the block of text in which it begins, if that is known."""

    start: int
    size: int
    text: int | None


class KvIndex:
    """The blocks of one engine; at most 500,000 are kept, the oldest go first."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._blocks: dict[Hash, _Block] = {}
        self._holders: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._blocks)

    def apply(self, events: Iterable[Event]) -> None:
        """Follow the engine."""
        for event in events:
            match event:
                case Stored():
                    self._store(event)
                case Removed():
                    self._remove(event.hashes)
                case Cleared():
                    self.clear()

    def clear(self) -> None:
        """The engine holds nothing, or nothing is known of it any more."""
        self._blocks.clear()
        self._holders.clear()
        self._board.lost_all()

    def _store(self, event: Stored) -> None:
        parent = self._blocks.get(event.parent) if event.parent is not None else None
        if event.parent is not None and parent is None:
            return  # stored before we listened: where it lies is not known
        start = parent.start + parent.size if parent else 0
        end = start + len(event.hashes) * event.block_size
        chain = self._chain(parent, end)
        scale = self._board.bytes_per_token / BLOCK_BYTES
        for name in event.hashes:
            index = int(start * scale)
            text = chain[index] if index < len(chain) else None
            self._forget(name)
            self._blocks[name] = _Block(start, event.block_size, text)
            if text is not None:
                self._holders[text] = self._holders.get(text, 0) + 1
            start += event.block_size
        while len(self._blocks) > _MOST_BLOCKS:
            self._forget(next(iter(self._blocks)))

    def _chain(self, parent: _Block | None, end: int) -> Sequence[int]:
        """The chain of the one call that fits, or none."""
        scale = self._board.bytes_per_token / BLOCK_BYTES
        found: dict[tuple[int, ...], None] = {}
        for call in self._board.prefilling():
            chain = call.chain
            if not chain or end > _SLACK * call.prompt_tokens:
                continue
            if parent is not None and parent.text is not None:
                index = int(parent.start * scale)
                if index >= len(chain) or chain[index] != parent.text:
                    continue
            found[tuple(chain)] = None
        return next(iter(found)) if len(found) == 1 else ()

    def _remove(self, hashes: Iterable[Hash]) -> None:
        lost = [text for name in hashes if (text := self._forget(name)) is not None]
        if lost:
            self._board.lost(lost)

    def _forget(self, name: Hash) -> int | None:
        """Take a block out; the block of text that is no longer whole, if it is linked."""
        block = self._blocks.pop(name, None)
        if block is None or block.text is None:
            return None
        left = self._holders[block.text] - 1
        if left:
            self._holders[block.text] = left
        else:
            del self._holders[block.text]
        return block.text
