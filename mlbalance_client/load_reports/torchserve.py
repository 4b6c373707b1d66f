"""TorchServe: ``/ping`` on the server's port, metrics on another (8082).

It tells no queue's length, only how long calls have waited: the mean of those between two readings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch, Page, ReportError
from .figures import Fields, parsed_fields
from .pages import TEXT, Pages
from .prometheus import Reader
from .waits import LateWait

METRICS_PORT = 8082

_CALLS, _WAITED_US = "ts_inference_requests_total", "ts_queue_latency_microseconds"
_READER = Reader(_CALLS, _WAITED_US)
_HEALTHY = frozenset({"healthy", "healthy!", "partial healthy"})
_STATUSES = _HEALTHY | {"unhealthy"}


@dataclass(frozen=True, slots=True)
class Counters:
    """Calls ever, and the microseconds that they have waited."""

    calls: float | None
    waited_us: float | None
    doubts: tuple[str, ...]


def counters(body: bytes) -> Counters:
    """Of the metrics page. The gauge ``QueueTime`` stays at the last call's wait when traffic ends: left out."""
    metrics = _READER(body)
    return Counters(metrics.total(_CALLS), metrics.total(_WAITED_US), metrics.doubts)


def health(page: Page) -> State:
    """Of ``/ping``; both spellings of the documentation. Some workers down is still READY."""
    said = _said(page)
    return State.READY if page.status == 200 and (not said or said in _HEALTHY) else State.STARTING


class TorchServe:
    """Two pages; without its metrics, readiness alone."""

    kind = "torchserve"
    cheap = True

    def __init__(self, metrics_port: int | None = None) -> None:
        self._port = metrics_port or METRICS_PORT
        self._pages = Pages()
        self._wait = LateWait()

    async def recognises(self, fetch: Fetch) -> bool:
        """By the words of its ``/ping``."""
        return _status(await probes.fields(fetch, "/ping", of_status=(200, 500))) in _STATUSES

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Raises NotThere if there is no ``/ping``."""
        report = LoadReport(source=self.kind, at=at, state=health(await self._pages.get_any(fetch, "/ping")))
        page = await self._pages.maybe(fetch, "/metrics", port=self._port, accept=TEXT)
        if page is None or page.status != 200:
            return replace(report, doubts=(f"no metrics at port {self._port}",))
        found = counters(page.body)
        wait_s = self._wait(found.waited_us, found.calls)
        return replace(report, expected_wait_s=wait_s, doubts=found.doubts)


def _said(page: Page) -> str:
    try:
        return _status(parsed_fields(page.body, "/ping"))
    except ReportError:
        return ""


def _status(fields: Fields) -> str:
    said = fields.get("status", fields.get("health"))
    return said.lower() if isinstance(said, str) else ""
