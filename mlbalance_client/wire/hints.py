"""What an answer's headers say of another attempt: when, and whether at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from email.utils import parsedate_to_datetime
from math import isfinite

from mlbalance_client.core.attempts import NO_HINTS, Hints

_PUSHBACK = b"grpc-retry-pushback-ms"
_NAMES = frozenset({b"retry-after", b"retry-after-ms", b"x-should-retry", _PUSHBACK})


def read_hints(headers: Iterable[tuple[bytes, bytes]], wall_s: float) -> Hints:
    """``x-should-retry`` (OpenAI's), ``grpc-retry-pushback-ms`` (gRFC A6), ``retry-after-ms`` (OpenAI's) and
    ``Retry-After`` (RFC 9110, 10.2.3), the first two before the others.

    ``wall_s``: now, in seconds since 1970. A date that has passed is 0; what cannot be read tells nothing, but that a
    pushback which is negative or cannot be read forbids another attempt.
    """
    found = {low: value for name, value in headers if (low := name.lower()) in _NAMES}
    if not found:
        return NO_HINTS
    retry = {b"true": True, b"false": False}.get(found.get(b"x-should-retry", b"").strip().lower())
    if (pushback := found.get(_PUSHBACK)) is not None:
        ms = _number(pushback)
        return Hints(None, False) if ms is None else Hints(ms / 1000, retry)
    return Hints(_after_s(found, wall_s), retry)


def _after_s(found: Mapping[bytes, bytes], wall_s: float) -> float | None:
    ms = _number(found.get(b"retry-after-ms"))
    if ms is not None:
        return ms / 1000
    text = found.get(b"retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return seconds
    try:
        return max(0.0, parsedate_to_datetime(text.decode("latin-1")).timestamp() - wall_s)
    except (ValueError, OverflowError, OSError):
        return None


def _number(text: bytes | None) -> float | None:
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        return None
    return number if isfinite(number) and number >= 0 else None
