"""The Protocols of this room: how a page is fetched, and what an engine's format is.

ReportError        a page cannot be read as a load report
├── NoAnswer       the replica did not answer; ``refused``: nobody listens there, so what comes back may be another
├── NotThere       it answered that it has no such page
└── Forbidden      it answered that we may not see it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.errors import BalancerError

MOST_PAGES = 8
"""Pages that a format asks for in one reading."""

MOST_BYTES = 4 << 20
"""Longest page that is read, in bytes. vLLM's metrics with 16 ranks are under 1 MB."""


class ReportError(BalancerError):
    """A replica's page cannot be read as a load report; the message says of which page and what is wrong."""


class NoAnswer(ReportError):
    """There is no answer: refused, broken off, or too late."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class NotThere(ReportError):
    """The replica has no such page. If it had one, another server may have taken its place."""


class Forbidden(ReportError):
    """The replica demands a bearer token, or another one than it was given."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of a replica: ``headers`` by lower-case name; ``took_s``: what fetching it took, in seconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_s: float = 0.0


class Fetch(Protocol):
    """Gets a page of one replica. Never raises for a status; raises NoAnswer if there is no answer.

    Bodies are asked for and given without a content encoding. No more than MOST_BYTES are read: a longer body is no
    answer.
    """

    async def __call__(self, path: str, *, port: int | None = None, accept: str = "*/*") -> Page:
        """``path`` with its query; ``port``: another than the replica's own (Triton's metrics)."""
        ...


class Format(Protocol):
    """One engine's way of saying how it is, for one replica: it may remember what it has seen of it.

    ``kind`` is its name in the configuration. ``cheap``: whether reading costs the engine so little that it may be
    done on demand, before an expensive pick.
    """

    @property
    def kind(self) -> str:
        """Its name in the configuration."""
        ...

    @property
    def cheap(self) -> bool:
        """Whether it may be read on demand."""
        ...

    async def recognises(self, fetch: Fetch) -> bool:
        """Whether the replica behind ``fetch`` speaks this format, by at most four pages.

        Raises NoAnswer, nothing else.
        """
        ...

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """The load now, by at most eight pages; ``at`` goes into the report. Raises ReportError, nothing else.

        What the replica does not say is None, never 0; what was not understood is named in ``doubts``. A report of
        an earlier moment keeps that moment's ``at``. Figures that cannot be are dropped by who hears it.
        """
        ...
