"""What a caller may say of one call: as an object, or as headers that any SDK can set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from .errors import ConfigError

HEADER_PREFIX = "x-mlbalance-"
_MOST_TOKENS = 1_000_000_000
_MOST_S = 10_000_000


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Per-call wishes; every field may be left out.

    session:    calls of one session go to the same replica while it has room
    tenant, priority: where calls wait for room, tenants share it and a higher priority goes first (above 0: also into
                room that is kept for such calls); both are carried into events and reports
    hedge:      False forbids a second, parallel attempt for this call; True also allows it where it is switched off or
                the prompt is above the bound (docs/resilience.md)
    replayable: whether the call may be sent twice; None lets the dialect decide
    deadline_s: seconds from now until an answer must have begun, else DeadlineExceeded; at once if it is over already
    cost:       the prompt's cost in tokens, where the caller knows better than the estimate
    """

    session: str | None = None
    tenant: str | None = None
    priority: int = 0
    hedge: bool | None = None
    replayable: bool | None = None
    deadline_s: float | None = None
    cost: int | None = None

    def __post_init__(self) -> None:
        deadline_s = self.deadline_s
        if deadline_s is not None and not (_is_number(deadline_s) and abs(deadline_s) <= _MOST_S):
            raise ConfigError(
                f"deadline_s must be a number of seconds up to {_MOST_S:,}, not {deadline_s!r:.40}"
            )
        for name, flag in (("hedge", self.hedge), ("replayable", self.replayable)):
            if flag is not None and not isinstance(flag, bool):
                raise ConfigError(f"{name} must be True, False or None, not {flag!r:.40}")
        for name, value in (("session", self.session), ("tenant", self.tenant)):
            _check_string(name, value)
        if type(self.priority) is not int:
            raise ConfigError(f"priority must be a whole number, not {self.priority!r:.40}")
        check_tokens("cost", self.cost)

    def deadline_at(self, now: float) -> float:
        """When an answer must have begun, on the clock that says ``now``; infinite if there is no deadline."""
        return inf if self.deadline_s is None else now + self.deadline_s

    def with_headers(self, headers: Mapping[str, str]) -> CallOptions:
        """These options, overridden by ``x-mlbalance-*`` headers (names lower case). Raises ConfigError."""
        given = {name.removeprefix(HEADER_PREFIX): text for name, text in headers.items()}
        wishes: dict[str, Any] = dict(_parse(name, text) for name, text in given.items())
        return replace(self, **wishes)


def check_ascii(headers: Any) -> None:
    """Raises ConfigError for a wish that no header can hold: a library says only that some text is not ASCII."""
    for name, text in headers.items() if isinstance(headers, Mapping) else headers or ():
        ours = isinstance(name, str) and name.lower().startswith(HEADER_PREFIX)
        if ours and isinstance(text, str) and not text.isascii():
            raise ConfigError(
                f"header {name}: headers hold ASCII alone, not {text!r:.40}; use other letters, or give the call "
                'extensions={"mlbalance": CallOptions(...)} instead'
            )


def _parse(name: str, text: str) -> tuple[str, object]:
    match name:
        case "session" | "tenant":
            return name, text
        case "priority":
            return name, _number(name, text, int, "a whole number")
        case "deadline":
            return "deadline_s", _number(name, text, float, "a number of seconds")
        case "hedge":
            return name, _flag(name, text)
    known = ", ".join(
        HEADER_PREFIX + known for known in ("session", "tenant", "priority", "deadline", "hedge")
    )
    raise ConfigError(f"header {HEADER_PREFIX}{name} is not known; there are {known}")


def _number(name: str, text: str, kind: type[int | float], words: str) -> float:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"header {HEADER_PREFIX}{name} must be {words}, not {text!r:.40}") from None


def _flag(name: str, text: str) -> bool:
    match text.strip().lower():
        case "1" | "true" | "yes" | "on":
            return True
        case "0" | "false" | "no" | "off":
            return False
    raise ConfigError(f"header {HEADER_PREFIX}{name} must be true or false, not {text!r}")


def _check_string(name: str, value: object) -> None:
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not a {type(value).__name__}")


def check_tokens(name: str, value: object) -> None:
    """Raises ConfigError unless it is a number of tokens, or None."""
    if value is not None and (type(value) is not int or not 0 <= value <= _MOST_TOKENS):
        raise ConfigError(
            f"{name} must be a whole number of tokens up to {_MOST_TOKENS:,}, not {value!r:.40}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


NO_WISHES = CallOptions()


@dataclass(frozen=True, slots=True)
class Call:
    """A call of another protocol, for ``Balancer.acquire``.

    ``prompt``: the text (or bytes) whose prefix decides placement. ``max_output_tokens``: the caller's limit.
    ``replayable`` and the rest are as in CallOptions. Raises ConfigError.
    """

    prompt: str | bytes = b""
    max_output_tokens: int | None = None
    model: str | None = None
    streaming: bool = True
    options: CallOptions = NO_WISHES

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str | bytes):
            raise ConfigError(f"prompt must be a string or bytes, not a {type(self.prompt).__name__}")
        check_tokens("max_output_tokens", self.max_output_tokens)
        _check_string("model", self.model)
        if not isinstance(self.options, CallOptions):
            raise ConfigError(f"options must be CallOptions, not a {type(self.options).__name__}")
