"""Which prefixes a replica holds, as a delta against what it held before; hashes as base64 of little-endian u64."""

from __future__ import annotations

import json
import re
import struct
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Self

from ..fingerprint import BLOCK_BYTES, SCHEME
from .fields import VERSION, LoadFormatError, check_version, needed, parsed, sequence, text

KEYED_SCHEME = f"blake2b-64/{BLOCK_BYTES}/1"
_CHECK = re.compile("[0-9A-Fa-f]{8}")
SCHEMES = frozenset({SCHEME, KEYED_SCHEME})
MOST_PREFIXES_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Hashing:
    """How blocks are hashed. ``key``: of a keyed scheme, what tells one secret from another; empty: it is not told."""

    scheme: str = SCHEME
    key: str = ""

    @classmethod
    def by(cls, secret: bytes | None) -> Self:
        """With this secret, or with none."""
        if secret is None:
            return cls()
        return cls(KEYED_SCHEME, blake2b(b"mlbalance key", digest_size=4, key=secret).hexdigest())

    def by_another_key(self, other: Hashing) -> bool:
        """Whether the same scheme has another secret there, as far as that is told."""
        return bool(self.key and other.key and self.key != other.key)


@dataclass(frozen=True, slots=True)
class PrefixDelta:
    """What a replica holds, against what it held before; ``reset``: forget what it held, ``add`` is all."""

    epoch: str
    seq: int
    reset: bool = False
    add: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    hashing: Hashing = Hashing()


def encode_prefixes(delta: PrefixDelta) -> bytes:
    """A delta as JSON."""
    fields = {
        "v": VERSION,
        "epoch": delta.epoch,
        "scheme": delta.hashing.scheme,
        **({"key_check": delta.hashing.key} if delta.hashing.key else {}),
        "seq": delta.seq,
        "reset": delta.reset,
        "add": pack(delta.add),
        "drop": pack(delta.drop),
    }
    return json.dumps(fields, separators=(",", ":")).encode("ascii")


def decode_prefixes(data: bytes | str) -> PrefixDelta:
    """A delta from JSON. Raises LoadFormatError; for another scheme too, for its hashes mean nothing here."""
    fields = parsed(data, MOST_PREFIXES_BYTES)
    check_version(fields)
    reset = fields.get("reset", False)
    if not isinstance(reset, bool):
        raise LoadFormatError("reset is neither true nor false")
    scheme = needed(text(fields, "scheme"), "scheme")
    if scheme not in SCHEMES:
        raise LoadFormatError(f"scheme {scheme!r} is not known; known are {', '.join(sorted(SCHEMES))}")
    epoch = needed(text(fields, "epoch"), "epoch")
    add, drop = unpack(fields.get("add", "")), unpack(fields.get("drop", ""))
    return PrefixDelta(epoch, sequence(fields), reset, add, drop, Hashing(scheme, _key_check(scheme, fields)))


def _key_check(scheme: str, fields: Mapping[str, Any]) -> str:
    """Empty where it means nothing, or is none."""
    told = fields.get("key_check")
    return told.lower() if scheme == KEYED_SCHEME and isinstance(told, str) and _CHECK.fullmatch(told) else ""


def pack(hashes: Iterable[int]) -> str:
    """Base64 of little-endian u64."""
    numbers = tuple(hashes)
    return b64encode(struct.pack(f"<{len(numbers)}Q", *numbers)).decode("ascii")


def unpack(given: object) -> tuple[int, ...]:
    """Hashes from base64. Raises LoadFormatError."""
    if not isinstance(given, str):
        raise LoadFormatError("hashes are no base64 text")
    try:
        packed = b64decode(given, validate=True)
    except ValueError as error:
        raise LoadFormatError(f"hashes are no base64: {error}") from None
    if len(packed) % 8:
        raise LoadFormatError(f"hashes of {len(packed)} bytes are no whole number of u64")
    return struct.unpack(f"<{len(packed) // 8}Q", packed)
