"""Reading JSON and numbers that strangers wrote: nothing here raises but ReportError, and what cannot be is None."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from pydantic_core import from_json

from mlbalance_client.core.load import report
from mlbalance_client.core.load.report import State

from .base import MOST_BYTES, ReportError

Fields = dict[str, Any]

_MOST = 10**15
_MOST_NAMES = 256
_LONGEST_NAME = 256


def parsed(body: bytes, page: str) -> Any:
    """The JSON value of a page, which ``page`` names in the error. Raises ReportError."""
    if len(body) > MOST_BYTES:
        raise ReportError(f"{page}: longer than {MOST_BYTES:,} bytes")
    try:
        return from_json(body)
    except ValueError as error:
        raise ReportError(f"{page}: not JSON: {str(error)[:80]}") from None


def parsed_fields(body: bytes, page: str) -> Fields:
    """The JSON object of a page. Raises ReportError."""
    value = parsed(body, page)
    if not isinstance(value, dict):
        raise ReportError(f"{page}: JSON, but no object")
    return value


def mapping(value: object) -> Fields:
    """An object, or an empty one."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> list[Fields]:
    """The objects of a list, nothing else."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def number(value: object) -> float | None:
    """A figure that can be: finite, at least 0, not absurd."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        return None
    return float(value)


def whole(value: object) -> int | None:
    """The same of a count; engines write 4.0 for 4."""
    found = number(value)
    return None if found is None else round(found)


def requests(value: object) -> int | None:
    """The same of requests: more than any server has at once are absurd."""
    found = number(value)
    return None if found is None or found > report.MOST_REQUESTS else round(found)


def share(value: object) -> float | None:
    """The same of a share, cut at 1 where it is a little more."""
    found = number(value)
    return None if found is None else report.share(found)


def positive(value: object) -> float | None:
    """The same where 0 means that the engine has not measured yet."""
    return number(value) or None


def total(values: Iterable[object]) -> float | None:
    """The sum, if there are any and all can be: a sum of some ranks would look like idleness."""
    found = [number(value) for value in values]
    return sum(each for each in found if each is not None) if found and None not in found else None


def most(values: Iterable[object]) -> float | None:
    """The greatest, under the same terms."""
    found = [number(value) for value in values]
    return max(each for each in found if each is not None) if found and None not in found else None


def product(*values: float | None) -> float | None:
    """The product, if all are known."""
    result = 1.0
    for value in values:
        if value is None:
            return None
        result *= value
    return result


def ratio(part: float | None, of: float | None) -> float | None:
    """``part / of``, if both are known and there is something to divide by."""
    return None if part is None or not of else part / of


def states(names: Iterable[object], state: State | None) -> Mapping[str, str]:
    """Models by name, all in one state."""
    if state is None:
        return MappingProxyType({})
    named = [name for name in names if isinstance(name, str) and 0 < len(name) <= _LONGEST_NAME]
    return MappingProxyType(dict.fromkeys(named[:_MOST_NAMES], state.value))
