"""The prompt's fingerprint: a chain of block hashes that every client computes alike.

Scheme ``xxh3-64/1024/1``: the canonical bytes (a dialect makes them, see docs/fingerprint.md) are cut into
blocks of 1,024 bytes. h0 = xxh3-64(block 0); hi = xxh3-64(little-endian h(i-1) || block i). A partial tail
counts only for the whole-prompt key, which is the chain carried on over the tail. With a shared secret each
hash is blake2b-64 keyed by it, over the same bytes: a seeded xxh3 keeps no secret.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from struct import Struct
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

BLOCK_BYTES = 1024
SCHEME = f"xxh3-64/{BLOCK_BYTES}/1"
_BLOCK = Struct(f"{BLOCK_BYTES}s")
_LINKED_BLOCK = Struct(f"<Q{BLOCK_BYTES}s")


class Fingerprint(NamedTuple):
    """``chain``: one unsigned 64-bit hash per full block. ``whole``: the key of the entire prompt."""

    chain: tuple[int, ...]
    whole: int
    size_bytes: int


def fingerprint(canonical: bytes, secret: bytes | None = None) -> Fingerprint:
    """Fingerprint canonical bytes; ``secret`` (at most 64 bytes) makes the hashes unguessable to outsiders."""
    digest = xxh3_64_intdigest if secret is None else keyed(secret)
    size = len(canonical)
    full = size - size % BLOCK_BYTES
    if not full:
        return Fingerprint((), digest(canonical), size)
    link = digest(canonical[:BLOCK_BYTES])
    chain = [link]
    for (block,) in _BLOCK.iter_unpack(memoryview(canonical)[BLOCK_BYTES:full]):
        link = digest(_LINKED_BLOCK.pack(link, block))
        chain.append(link)
    whole = digest(link.to_bytes(8, "little") + canonical[full:]) if full < size else link
    return Fingerprint(tuple(chain), whole, size)


def keyed(secret: bytes) -> Callable[[bytes], int]:
    """A 64-bit blake2b keyed by ``secret``."""

    def digest(data: bytes) -> int:
        return int.from_bytes(blake2b(data, digest_size=8, key=secret).digest(), "little")

    return digest


def text_key(kind: str, text: str) -> int:
    """A key for something that is not a prompt (a session, say); ``kind`` keeps the kinds apart."""
    return xxh3_64_intdigest(f"{kind}\n{text}".encode("utf-8", "surrogatepass"))
