"""The replica's side: says what the replica has to do and what it holds. See docs/reporter.md."""

from __future__ import annotations

from ..core.load.report import State
from .board import LoadBoard
from .call import BoardCall
from .middleware import LoadReporter
from .publisher import BoardFull
from .serving import LoadApp, allowed, events, snapshot
from .settings import ReporterSettings

__all__ = [
    "BoardCall",
    "BoardFull",
    "LoadApp",
    "LoadBoard",
    "LoadReporter",
    "ReporterSettings",
    "State",
    "allowed",
    "events",
    "snapshot",
]
