"""As much of protobuf's wire format as an ORCA report needs: doubles, and maps from text to double."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from .base import ReportError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MOST_VARINT_BYTES = 10


def fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and value of each field in turn; 64-bit ones are read as doubles. Raises ReportError."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif kind == _FIXED64:
            yield number, struct.unpack("<d", _slice(data, at, 8))[0]
            at += 8
        elif kind == _BYTES:
            length, at = _varint(data, at)
            yield number, _slice(data, at, length)
            at += length
        elif kind == _FIXED32:
            _slice(data, at, 4)
            at += 4
        else:
            raise ReportError(f"ORCA: a protobuf field of kind {kind}")


def entry(data: bytes) -> tuple[str, float]:
    """An entry of a map. What is not set is empty or 0. Raises ReportError."""
    key, value = "", 0.0
    for number, found in fields(data):
        if number == 1 and isinstance(found, bytes):
            try:
                key = found.decode()
            except UnicodeDecodeError:
                raise ReportError("ORCA: a name is not UTF-8") from None
        elif number == 2 and isinstance(found, float):
            value = found
    return key, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place, byte in enumerate(data[at : at + _MOST_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return value, at + place + 1
    raise ReportError("ORCA: the protobuf is cut off")


def _slice(data: bytes, at: int, length: int) -> bytes:
    if at + length > len(data):
        raise ReportError("ORCA: the protobuf is cut off")
    return data[at : at + length]
