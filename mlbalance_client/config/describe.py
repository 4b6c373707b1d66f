"""Fields in words: their type, unit and bounds, for error messages and for the generated reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from tenacity.stop import stop_base
from tenacity.wait import wait_base

_WORDS = {
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    SecretStr: "text",
    IPv4Network: "IPv4 network",
    IPv6Network: "IPv6 network",
    stop_base: "stop strategy",
    wait_base: "wait strategy",
}
_BOUNDS = (("ge", ">= {}"), ("gt", "> {}"), ("le", "<= {}"), ("lt", "< {}"))
_LENGTHS = (("min_length", "at least {} long"), ("max_length", "at most {} long"))


@dataclass(frozen=True, slots=True)
class Unit:
    """Goes into ``Annotated[float, Unit("s")]``."""

    name: str


def allowed(field: FieldInfo) -> str:
    """What a field takes, with its bounds: ``number >= 1``."""
    return _phrase(field.annotation, field.metadata)


def allowed_inside(field: FieldInfo) -> str:
    """What the values of a field take that is a table of them; what the field takes, if it is none."""
    for kind in _members(field.annotation):
        if get_origin(kind) is dict:
            value = get_args(kind)[1]
            inner = get_args(value) if get_origin(value) is Annotated else (value,)
            return _phrase(inner[0], inner[1:])
    return allowed(field)


def type_words(annotation: Any) -> str:
    """The type alone: ``list of integers``."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_words(args[0])
    if origin is Literal:
        return "one of " + ", ".join(map(str, args)) if len(args) > 1 else str(args[0])
    if origin in (Union, UnionType):
        return " or ".join(type_words(arg) for arg in args if arg is not NoneType)
    if origin in (tuple, list, frozenset):
        return f"list of {type_words(args[0])}s"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "table"
    return _WORDS.get(annotation, "value")


def bounds(annotation: Any, metadata: Sequence[Any]) -> str:
    """The limits alone, those of a list's items too: ``>= 1``."""
    own = [
        words.format(f"{limit:,}" if isinstance(limit, int) else limit)
        for name, words in _BOUNDS + _LENGTHS
        for item in _flat(metadata)
        if (limit := getattr(item, name, None)) is not None
    ]
    inner = [
        f"each {limits}" if get_origin(annotation) in (tuple, list, dict) else limits
        for arg in get_args(annotation)
        if get_origin(arg) is Annotated and (limits := bounds(get_args(arg)[0], get_args(arg)[1:]))
    ]
    return ", ".join(own + inner)


def unit(annotation: Any, metadata: Sequence[Any]) -> str:
    """The unit, if the field or its items have one."""
    for item in metadata:
        if isinstance(item, Unit):
            return item.name
    for arg in get_args(annotation):
        if get_origin(arg) is Annotated and (name := unit(get_args(arg)[0], get_args(arg)[1:])):
            return name
    return ""


def is_secret(field: FieldInfo) -> bool:
    """Whether a field holds a secret, which is never shown."""
    return SecretStr in _leaves(field.annotation)


def kind_words(field: FieldInfo) -> str:
    """The type as a table of settings has it: what is a secret is called so."""
    return "secret" if SecretStr in _members(field.annotation) else type_words(field.annotation)


def is_structured(field: FieldInfo) -> bool:
    """Whether a field takes a list or a table, so that an environment variable spells it in JSON."""
    return any(
        get_origin(kind) in (tuple, list, frozenset, dict)
        or (isinstance(kind, type) and issubclass(kind, BaseModel))
        for kind in _members(field.annotation)
    )


def _phrase(annotation: Any, metadata: Sequence[Any]) -> str:
    return " ".join(filter(None, (type_words(annotation), bounds(annotation, metadata))))


def _flat(metadata: Sequence[Any]) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else (item,)


def _members(annotation: Any) -> Iterator[Any]:
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for arg in get_args(annotation):
            yield from _members(arg)
    else:
        yield annotation


def _leaves(annotation: Any) -> Iterator[Any]:
    args = get_args(annotation)
    if not args:
        yield annotation
    for arg in args:
        yield from _leaves(arg)
