"""NVIDIA NIM for language models: readiness and metrics under ``/v1``.

1.x has vLLM's names without their prefix, 2.x is vLLM behind a proxy. ``/v1/health/live`` is the proxy's own: 200
before a model is there, so never asked.
"""

from __future__ import annotations

from dataclasses import replace

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch, Page
from .pages import TEXT, Pages
from .vllm import MetricsPage

HEALTH, METRICS = "/v1/health/ready", "/v1/metrics"

_OLD, _NEW = MetricsPage("nim", ""), MetricsPage("nim", "vllm:")


def from_metrics(body: bytes, at: float) -> LoadReport:
    """``/v1/metrics`` of either version."""
    return _NEW(body, at) if b"vllm:" in body else _OLD(body, at)


class Nim:
    """Readiness, then the metrics."""

    kind = "nim"
    cheap = False

    def __init__(self, metrics_port: int | None = None) -> None:
        self._port = metrics_port
        self._pages = Pages()

    async def recognises(self, fetch: Fetch) -> bool:
        """By the form of its readiness."""
        said = await probes.fields(fetch, HEALTH, of_status=(200, 503))
        return said.get("object") == "health.response"

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Raises NotThere if there is neither readiness nor metrics."""
        health = await self._pages.maybe(fetch, HEALTH)
        if health is not None and health.status != 200:
            return LoadReport(source=self.kind, at=at, state=State.STARTING)
        report = await self._figures(fetch, at, health)
        if report.state is not None or health is None:
            return report
        return replace(report, state=State.READY)

    async def _figures(self, fetch: Fetch, at: float, health: Page | None) -> LoadReport:
        if health is None:
            page: Page | None = await self._pages.get(fetch, METRICS, port=self._port, accept=TEXT)
        else:
            page = await self._pages.maybe(fetch, METRICS, port=self._port, accept=TEXT)
        if page is None or page.status != 200:
            return LoadReport(source=self.kind, at=at, doubts=(f"no {METRICS}",))
        return from_metrics(page.body, at)
