"""NVIDIA Triton, and the TensorRT-LLM backend in it: metrics on a port of their own, readiness on the server's.

Names as in its user guide (metrics) and in the backend's reporter. Requests of the backend's executor are no longer
pending at Triton: the two queues are added up.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch, Page
from .figures import product, ratio, share, total, whole
from .pages import TEXT, ModelStates, Pages, ready
from .prometheus import Metrics, Reader, Series
from .waits import LateWait

METRICS_PORT = 8002

_PENDING = "nv_inference_pending_request_count"
_QUEUED_US = "nv_inference_queue_duration_us"
_SUCCESS, _FAILURE = "nv_inference_request_success", "nv_inference_request_failure"
_GPU = "nv_gpu_utilization"
_GPU_USED, _GPU_TOTAL = "nv_gpu_memory_used_bytes", "nv_gpu_memory_total_bytes"
_LLM, _BLOCKS = "nv_trt_llm_request_metrics", "nv_trt_llm_kv_cache_block_metrics"
_READER = Reader(_PENDING, _QUEUED_US, _SUCCESS, _FAILURE, _GPU, _GPU_USED, _GPU_TOTAL, _LLM, _BLOCKS)


def from_metrics(body: bytes, at: float) -> LoadReport:
    """The page of the metrics port."""
    return _report(_READER(body), at)


class Triton:
    """Readiness, the metrics, and the readiness of up to four models a read.

    ``metrics_port``: where the metrics are, if not at 8002. ``models``: those that are known beforehand; the metrics
    name others.
    """

    kind = "triton"
    cheap = True

    def __init__(self, metrics_port: int | None = None, models: Collection[str] = ()) -> None:
        self._port = metrics_port or METRICS_PORT
        self._pages = Pages()
        self._models = ModelStates(models)
        self._wait = LateWait()

    async def recognises(self, fetch: Fetch) -> bool:
        """By its name in the server's metadata."""
        return (await probes.fields(fetch, "/v2")).get("name") == "triton"

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Two pages and up to four empty ones. Raises NotThere if there is no readiness."""
        health = await self._pages.get_any(fetch, "/v2/health/ready")
        page = await self._pages.maybe(fetch, "/metrics", port=self._port, accept=TEXT)
        report = self._figures(page, at)
        state = ready(health) or State.STARTING
        return replace(report, state=state, models=await self._models.read(fetch))

    def _figures(self, page: Page | None, at: float) -> LoadReport:
        if page is None or page.status != 200:
            return LoadReport(source=self.kind, at=at, doubts=(f"no metrics at port {self._port}",))
        metrics = _READER(page.body)
        self._models.also(row.label("model") for row in metrics.series(_SUCCESS))
        report = _report(metrics, at)
        calls = total((metrics.total(_SUCCESS), metrics.total(_FAILURE) or 0.0))
        wait_s = self._wait(metrics.total(_QUEUED_US), calls)
        # A queue's length says more, and now, than what others have waited.
        return report if report.waiting is not None else replace(report, expected_wait_s=wait_s)


def _report(metrics: Metrics, at: float) -> LoadReport:
    pending, queued = metrics.series(_PENDING), metrics.series(_LLM, request_type="waiting")
    used, memory = _fullest(metrics)
    return LoadReport(
        source="triton",
        at=at,
        running=whole(metrics.total(_LLM, request_type="scheduled")),
        waiting=whole(total(row.value for row in (*pending, *queued))),
        batch_limit=whole(metrics.total(_LLM, request_type="max")),
        kv_used=share(_kv_used(metrics)),
        kv_capacity_tokens=whole(_capacity(metrics)),
        gpu_utilization=share(metrics.most(_GPU)),
        gpu_memory_used_bytes=whole(used),
        gpu_memory_total_bytes=whole(memory),
        doubts=metrics.doubts if metrics else (*metrics.doubts, f"no {_SUCCESS}"),
    )


def _fullest(metrics: Metrics) -> tuple[float | None, float | None]:
    """Used and total bytes of the GPU that has least left, in proportion."""
    used = {row.label("gpu_uuid"): row.value for row in metrics.series(_GPU_USED)}
    pairs = [
        (used.get(row.label("gpu_uuid")), row.value) for row in metrics.series(_GPU_TOTAL) if row.value > 0
    ]
    return max(pairs, key=lambda pair: ratio(*pair) or 0.0, default=(None, None))


def _kv_used(metrics: Metrics) -> float | None:
    """Of the fullest model's cache."""
    shares = [
        ratio(found.get("used"), found.get("max"))
        for found in _by_model(metrics.series(_BLOCKS), "kv_cache_block_type").values()
    ]
    return max((each for each in shares if each is not None), default=None)


def _capacity(metrics: Metrics) -> float | None:
    """Tokens over all models."""
    blocks = _by_model(metrics.series(_BLOCKS), "kv_cache_block_type").values()
    return total(product(found.get("max"), found.get("tokens_per")) for found in blocks)


def _by_model(rows: list[Series], label: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(row.label("model"), {})[row.label(label)] = row.value
    return found
