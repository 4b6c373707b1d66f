"""When a replica says that it will take calls again."""

from __future__ import annotations

from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from math import isfinite


def retry_after_s(headers: Iterable[tuple[bytes, bytes]], wall_s: float) -> float | None:
    """Seconds from now by ``retry-after-ms`` (OpenAI's) or ``Retry-After`` (RFC 9110, 10.2.3); None if neither tells.

    ``wall_s``: now, in seconds since 1970. A date that has passed is 0; what cannot be read tells nothing.
    """
    by_name = {name.lower(): value for name, value in headers if name.lower().startswith(b"retry-after")}
    ms = _number(by_name.get(b"retry-after-ms"))
    if ms is not None:
        return ms / 1000
    text = by_name.get(b"retry-after")
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
