"""Reading the fields of the load format: what each may be, and the one error for what it may not."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic_core import from_json

from mlbalance_client.errors import BalancerError

VERSION = 1

_MOST_TEXT = 256
_MOST = 10**15
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_T = TypeVar("_T")


class LoadFormatError(BalancerError, ValueError):
    """Text that should be of the load format is not; the message says what is wrong with it."""


def parsed(data: bytes | str, most_bytes: int) -> dict[str, Any]:
    """A JSON object of at most ``most_bytes``. Raises LoadFormatError."""
    if len(data) > most_bytes:
        raise LoadFormatError(f"an event of {len(data)} bytes; {most_bytes} are allowed")
    try:
        fields = from_json(data)
    except ValueError as error:
        raise LoadFormatError(f"no JSON: {error!s:.200}") from None
    if not isinstance(fields, dict):
        raise LoadFormatError("the JSON is no object")
    return fields


def needed(value: _T | None, name: str) -> _T:
    """A field that must be there. Raises LoadFormatError."""
    if value is None:
        raise LoadFormatError(f"{name} is missing")
    return value


def check_version(fields: Mapping[str, Any]) -> None:
    """Raises LoadFormatError unless it is version 1."""
    version = fields.get("v")
    if version != VERSION or isinstance(version, bool):
        raise LoadFormatError(f"version {version!r:.40} is not {VERSION}")


def sequence(fields: Mapping[str, Any]) -> int:
    """``seq``, which must be there and no less than zero. Raises LoadFormatError."""
    seq = count(fields.get("seq"), "seq")
    if seq is None:
        raise LoadFormatError(f"seq {fields.get('seq')!r:.40} is not within 0 .. {_MOST}")
    return seq


def number(value: object, name: str) -> float | None:
    """A figure that can be, or none. Raises LoadFormatError if it is no number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise LoadFormatError(f"{name} is no number: {value!r:.40}")
    return float(value) if 0 <= value <= _MOST else None  # as a float, a huge int overflows; NaN fails too


def count(value: object, name: str) -> int | None:
    """A whole number, or none; what has a fraction loses it."""
    found = number(value, name)
    if found is None:
        return None
    return value if isinstance(value, int) else int(found)


def text(fields: Mapping[str, Any], name: str) -> str | None:
    """A string of 1 to 256 characters, or none. Raises LoadFormatError."""
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or not 0 < len(value) <= _MOST_TEXT:
        raise LoadFormatError(f"{name} is no text of 1 to {_MOST_TEXT} characters")
    return value


def table(fields: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An object, empty if it is not there. Raises LoadFormatError."""
    value = fields.get(name)
    if value is None:
        return _NOTHING
    if not isinstance(value, dict):
        raise LoadFormatError(f"{name} is no object")
    return value


def named(fields: Mapping[str, Any], name: str) -> Mapping[str, str]:
    """An object of texts. Raises LoadFormatError."""
    found = table(fields, name)
    if not all(isinstance(value, str) and len(key) <= _MOST_TEXT for key, value in found.items()):
        raise LoadFormatError(f"{name} holds more than texts")
    return MappingProxyType(dict(found)) if found else found
