"""Ray Serve: ``/-/healthz`` of the proxy, and the node's page of metrics where its port is given.

The proxy hands a call to any replica of the deployment on any node: a node's page is a part of the picture, and the
report is ``partial``. vLLM in it has ``ray_vllm_`` before its names.
"""

from __future__ import annotations

from dataclasses import replace

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch
from .figures import requests, total
from .pages import TEXT, Pages
from .prometheus import Reader
from .vllm import MetricsPage

HEALTH = "/-/healthz"

_RUNNING, _QUEUED = "ray_serve_replica_processing_queries", "ray_serve_deployment_queued_queries"
_HEALTHY = "ray_serve_deployment_replica_healthy"
_READER = Reader(_RUNNING, _QUEUED, _HEALTHY)
_ENGINE = MetricsPage("ray_serve", "ray_vllm_")


def from_metrics(body: bytes, at: float) -> LoadReport:
    """A node's page. Where an engine speaks, what runs and waits in it counts, and Serve's own queue with it."""
    metrics = _READER(body)
    queued = metrics.total(_QUEUED)
    healthy = [row.value for row in metrics.series(_HEALTHY)]
    state = None if not healthy else State.READY if any(value == 1 for value in healthy) else State.STARTING
    engine = _ENGINE(body, at)
    if engine.running is None:
        running, waiting = requests(metrics.total(_RUNNING)), queued
        there = not metrics or metrics.series(_RUNNING)
        doubts = (*metrics.doubts, *(metrics.lacks(running, _RUNNING) if there else ()))
    else:
        running, doubts = engine.running, metrics.doubts
        waiting = engine.waiting if queued is None else total((engine.waiting, queued))
    return replace(
        engine,
        state=state,
        running=running,
        waiting=requests(waiting),
        partial=True,
        doubts=doubts,
        epoch=None,
    )


class RayServe:
    """``metrics_port``: the node's ``--metrics-export-port``; Ray draws one at random if it is not set."""

    kind = "ray_serve"
    cheap = False

    def __init__(self, metrics_port: int | None = None) -> None:
        self._port = metrics_port
        self._pages = Pages()

    async def recognises(self, fetch: Fetch) -> bool:
        """By the proxy's health page."""
        page = await fetch(HEALTH)
        return (page.status == 200 and page.body.strip() == b"success") or await self._has_routes(
            fetch, page.status
        )

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Raises NotThere if there is no proxy."""
        health = await self._pages.get_any(fetch, HEALTH)
        if health.status != 200:
            return LoadReport(source=self.kind, at=at, state=State.DRAINING, partial=True)
        report = LoadReport(source=self.kind, at=at, partial=True)
        if self._port is not None:
            page = await self._pages.maybe(fetch, "/metrics", port=self._port, accept=TEXT)
            if page is not None and page.status == 200:
                report = from_metrics(page.body, at)
            else:
                report = replace(report, doubts=(f"no metrics at port {self._port}",))
        return report if report.state is not None else replace(report, state=State.READY)

    async def _has_routes(self, fetch: Fetch, status: int) -> bool:
        """A proxy that drains answers 503, and still lists its routes."""
        return status == 503 and bool(await probes.fields(fetch, "/-/routes"))
