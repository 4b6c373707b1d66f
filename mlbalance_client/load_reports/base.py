"""The Protocols of this room: how a page is fetched, and what an engine's format is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mlbalance_client.core.load_report import LoadReport
from mlbalance_client.errors import BalancerError


class ReportError(BalancerError):
    """A replica's page cannot be read as a load report; the message says of which page and what is wrong."""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer of a replica: ``headers`` by lower-case name; ``took_s``: what fetching it took, in seconds."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    took_s: float = 0.0


class Fetch(Protocol):
    """Gets a page of one replica. Never raises for a status; raises ReportError if there is no answer."""

    async def __call__(self, path: str, *, port: int | None = None, accept: str = "*/*") -> Page:
        """``path`` with its query; ``port``: another than the replica's own (Triton's metrics)."""
        ...


class Format(Protocol):
    """One engine's way of saying how it is.

    ``kind`` is its name in the configuration. ``cheap``: whether a page costs the engine so little that it may be
    fetched on demand, before an expensive pick.
    """

    kind: str
    cheap: bool

    async def recognises(self, fetch: Fetch) -> bool:
        """Whether the replica behind ``fetch`` speaks this format; asked in an order from telling to vague."""
        ...

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """The load now; ``at`` goes into the report. Raises ReportError."""
        ...
