"""What all sections share: immutable, unknown keys refused, and every mistake told in our own words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple, NoReturn, Self, TypeVar, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    SecretStr,
    ValidationError,
    model_validator,
)

from mlbalance_client.errors import ConfigError

from .describe import allowed, allowed_inside, is_secret
from .urls import shown


class Problem(NamedTuple):
    """One wrong key: where it is, and what is wrong with it."""

    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


class InvalidConfig(ConfigError):
    """A ConfigError that knows its ``problems``; ``where`` is the file or section they are in."""

    def __init__(self, problems: Iterable[Problem], where: str = "") -> None:
        self.problems = tuple(problems)
        lines = [str(problem) for problem in self.problems]
        if len(lines) == 1:
            message = f"{where}: {lines[0]}" if where else lines[0]
        else:
            message = "\n  ".join([f"{where or 'configuration'}: {len(lines)} problems", *lines])
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _revive, (type(self), self.problems, str(self))


class Section(BaseModel):
    """Base of every section. Wrong values raise ConfigError, one line a key, never pydantic's own error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True, protected_namespaces=()
    )

    def __init__(self, /, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise InvalidConfig(_problems(error, type(self))) from None

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """As pydantic's, but a mistake raises ConfigError."""
        try:
            return super().model_validate(obj, **options)
        except ValidationError as error:
            raise InvalidConfig(_problems(error, cls)) from None

    @model_validator(mode="wrap")
    @classmethod
    def _keys_are_strings(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
            raise ValueError("keys must be strings")
        return handler(value)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise ConfigError(f"{name}: a configuration is immutable; make a new one instead")

    def __delattr__(self, name: str) -> NoReturn:
        raise ConfigError(f"{name}: a configuration is immutable; make a new one instead")


def _can_be_sent(token: SecretStr) -> SecretStr:
    text = token.get_secret_value()
    if not text:
        raise ValueError("is empty; leave it out where none is demanded")
    if text != text.strip():
        raise ValueError("begins or ends with white space, as a file's last newline, which no header keeps")
    if not (text.isascii() and text.isprintable()):
        raise ValueError("has characters that cannot be in a header")
    return token


def _is_bare(token: SecretStr) -> SecretStr:
    if token.get_secret_value().lower().startswith("bearer "):
        raise ValueError("begins with the word Bearer, which is put before it: give what follows alone")
    return token


Token = Annotated[SecretStr, AfterValidator(_can_be_sent)]
"""A secret that is sent in a header."""

BearerToken = Annotated[Token, AfterValidator(_is_bare)]
"""One that is sent after the word Bearer."""


def within(first: str, first_s: float, most: str, most_s: float) -> None:
    """Raises ValueError if the first of times that grow is longer than the longest."""
    if first_s > most_s:
        raise ValueError(
            f"{first} {first_s:g} is more than {most} {most_s:g}, which bounds it: change one of them"
        )


S = TypeVar("S", bound=Section)


class _Plain:
    def __init__(self, section: Section) -> None:
        vars(self).update(section)


def plain(section: S) -> S:
    """Its values alone, for who reads them at every call: to read one of a pydantic model costs as much as a call."""
    return cast(S, _Plain(section))


def dotted(path: Iterable[str | int]) -> str:
    """``("discovery", "replicas", 1, "url")`` as ``discovery.replicas[1].url``."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}"
    return text.removeprefix(".")


def nearest(name: str, known: Iterable[str]) -> str:
    """The way out for an unknown name: the nearest known one, and all of them."""
    names = sorted(known)
    close = get_close_matches(name.lower(), names, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}known: {', '.join(names) or 'none yet'}"


def given(value: Any) -> str:
    """What was given, fit for a line; of containers only what they are, for they may hold secrets."""
    match value:
        case bool() | None | float():
            return repr(value)
        case int():
            return repr(value) if value.bit_length() < 128 else "a huge number"
        case str():
            return repr(shown(value))
        case dict():
            return "a table" if value else "an empty table"
        case list() | tuple() | set():
            return "a list" if value else "an empty list"
        case _:
            return f"a {type(value).__name__}"


def _problems(error: ValidationError, model: type[BaseModel]) -> Iterator[Problem]:
    entries = error.errors(include_url=False)
    paths = [entry["loc"] for entry in entries]
    for entry in entries:
        path = entry["loc"]
        if entry["type"] == "too_short" and any(other[: len(path)] == path != other for other in paths):
            continue  # a list is short only for the items that were refused
        cause = entry.get("ctx", {}).get("error")
        if isinstance(cause, InvalidConfig):
            yield from (Problem(path + inner.path, inner.message) for inner in cause.problems)
        else:
            yield Problem(path, _message(entry["type"], path, entry["input"], cause, model))


def _message(
    kind: str, path: tuple[str | int, ...], value: Any, cause: Exception | None, model: type[BaseModel]
) -> str:
    if cause is not None:
        return str(cause)
    if kind == "extra_forbidden":
        return f"unknown key; {nearest(str(path[-1]), model.model_fields)}"
    field = model.model_fields.get(str(path[0])) if path else None
    says = allowed if len(path) == 1 else allowed_inside
    expected = says(field) if field else "table"
    if kind == "missing":
        return f"is required: {expected}"
    shown = "a secret" if field and is_secret(field) else given(value)
    return f"given {shown}; allowed: {expected}"


def _revive(cls: type[InvalidConfig], problems: tuple[Problem, ...], message: str) -> InvalidConfig:
    error = cls(problems)
    error.args = (message,)
    return error
