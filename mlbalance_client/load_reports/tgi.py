"""Hugging Face TGI: ``/metrics``. ``/health`` is never asked, as it generates a token on an idle server.

The port opens when the model is warm. Gauges are there from their first use on: until then the figures are unknown.
"""

from __future__ import annotations

from dataclasses import replace

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch, Page, ReportError
from .figures import parsed_fields, states, whole
from .pages import TEXT, Pages
from .prometheus import Reader

_QUEUE, _BATCH = "tgi_queue_size", "tgi_batch_current_size"
_READER = Reader(_QUEUE, _BATCH)


def from_metrics(body: bytes, at: float) -> LoadReport:
    """``/metrics``. ``tgi_batch_current_max_tokens`` is what a batch may grow to, not work to be done: left out."""
    metrics = _READER(body)
    return LoadReport(
        source="tgi",
        at=at,
        state=State.READY,
        running=whole(metrics.total(_BATCH)),
        waiting=whole(metrics.total(_QUEUE)),
        doubts=metrics.doubts if metrics else (*metrics.doubts, f"neither {_QUEUE} nor {_BATCH} yet"),
    )


def model_of(body: bytes) -> str:
    """The model's name by ``/info``, or an empty text."""
    name = parsed_fields(body, "/info").get("model_id")
    return name if isinstance(name, str) else ""


class Tgi:
    """The metrics; the model's name once."""

    kind = "tgi"
    cheap = True

    def __init__(self, metrics_port: int | None = None) -> None:
        self._port = metrics_port
        self._pages = Pages()
        self._model: str | None = None

    async def recognises(self, fetch: Fetch) -> bool:
        """By what ``/info`` says of itself."""
        info = await probes.fields(fetch, "/info")
        return "max_concurrent_requests" in info and "model_id" in info

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """One page of 10 kB."""
        page = await self._pages.get(fetch, "/metrics", port=self._port, accept=TEXT)
        report = from_metrics(page.body, at)
        if self._model is None:
            self._model = _name(await self._pages.maybe(fetch, "/info"))
        return replace(report, models=states([self._model], report.state))


def _name(page: Page | None) -> str:
    try:
        return "" if page is None or page.status != 200 else model_of(page.body)
    except ReportError:
        return ""
