"""A report as it goes to all, and what it is made from."""

from __future__ import annotations

from collections.abc import Callable
from threading import RLock
from typing import Protocol

from ..core.load.format import encode_header, encode_load
from ..core.load.prefix_delta import Hashing
from ..core.load.report import LoadReport
from .acks import Acks
from .chains import Chains
from .change import Expectation
from .readiness import Readiness
from .settings import ReporterSettings


class Source(Protocol):
    """The board, as those see it who tell of it."""

    settings: ReporterSettings
    clock: Callable[[], float]
    lock: RLock
    epoch: str
    hashing: Hashing
    acks: Acks
    chains: Chains
    readiness: Readiness

    def report(self, now: float, seq: int = 0, subscribers: int = 0) -> LoadReport:
        """The load at ``now``."""
        ...

    def room(self, report: LoadReport) -> tuple[int | None, int | None]:
        """Requests and tokens that could be taken in."""
        ...

    @property
    def usual_tokens(self) -> int:
        """Prompt tokens that a call has to compute, on average of late."""
        ...


class Told:
    """A report as it goes to all, with the room to be shared."""

    __slots__ = ("_json", "_short", "expects", "made_at", "mutations", "report", "room")

    def __init__(self, report: LoadReport, room: tuple[int | None, int | None], mutations: int) -> None:
        self.report = report
        self.room = room
        self.mutations = mutations
        self.expects = Expectation(report)
        self.made_at = report.at
        self._json: bytes | None = None
        self._short: str | None = None

    @property
    def seq(self) -> int:
        """The report's own."""
        return self.report.seq or 0

    @property
    def json(self) -> bytes:
        """All that is alike."""
        if self._json is None:
            self._json = encode_load(self.report)
        return self._json

    @property
    def short(self) -> str:
        """The same for a header."""
        if self._short is None:
            self._short = encode_header(self.report)
        return self._short


def event(kind: str, data: bytes, number: int | None = None) -> bytes:
    """A server-sent event."""
    mark = b"" if number is None else b"id: %d\n" % number
    return b"event: %b\n%bdata: %b\n\n" % (kind.encode("ascii"), mark, data)
