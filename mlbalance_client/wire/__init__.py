"""One wire for both faces: connections of our own per replica, on httpcore's public connection class."""

from __future__ import annotations

from .answer import WireAnswer
from .errors import WireError
from .hints import read_hints
from .pool import Origin, WireOptions
from .timeouts import Timeouts
from .wire import Resending, Wire, WireRequest

__all__ = [
    "Origin",
    "Resending",
    "Timeouts",
    "Wire",
    "WireAnswer",
    "WireError",
    "WireOptions",
    "WireRequest",
    "read_hints",
]
