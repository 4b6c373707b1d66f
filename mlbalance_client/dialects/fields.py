"""Reading JSON that others wrote: nothing here raises but ``Unreadable``."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import from_json

Fields = dict[str, Any]
# No prompt, answer or tensor counts more; what does is a mistake or a lie.
_MOST = 1_000_000_000


class Unreadable(ValueError):
    """A body is not of its dialect's form."""


def parse(data: bytes) -> Fields:
    """A JSON object, or an empty one if ``data`` is none."""
    try:
        value = from_json(data)
    except ValueError:
        value = _parse_leniently(data)
    return value if isinstance(value, dict) else {}


def written(fields: Fields) -> bytes:
    """A JSON object."""
    return json.dumps(fields, separators=(",", ":")).encode()


def _parse_leniently(data: bytes) -> Any:
    # The Rust parser refuses lone surrogates (half an emoji), which engines written in Python accept.
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def number(value: object) -> int | None:
    """A count: a whole number from 0 to a billion (engines take 16.0 for 16), else None."""
    if type(value) is float and value.is_integer():
        value = int(value)
    return value if type(value) is int and 0 <= value <= _MOST else None


def text(value: object) -> str | None:
    """A string that is not empty, else None."""
    return value if isinstance(value, str) and value else None


def mapping(value: object) -> Fields:
    """An object, or an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[Fields]:
    """The objects of a list, nothing else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
