"""TensorRT-LLM's own server, ``trtllm-serve``.

Its ``/metrics`` is a JSON list of iterations, each of which is given out once: who reads takes from all other readers.
``[]`` means that nothing has run since the last reading, by whomever; then the report before it still stands, as old as
it is. ``/prometheus/metrics``, where it is switched on, takes nothing away and is read instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch
from .figures import mapping, number, objects, parsed, product, ratio, share, states, whole
from .pages import TEXT, Pages
from .prometheus import Reader

_RUNNING, _WAITING = "trtllm_num_requests_running", "trtllm_num_requests_waiting"
_KV_USED = "trtllm_kv_cache_utilization"
_BLOCKS, _BLOCK = "trtllm_kv_cache_max_blocks", "trtllm_kv_cache_tokens_per_block"
_READER = Reader(_RUNNING, _WAITING, _KV_USED, _BLOCKS, _BLOCK)


def from_iterations(body: bytes, at: float) -> LoadReport | None:
    """``/metrics``; the newest iteration counts. None if there is none. Raises ReportError."""
    iterations = objects(parsed(body, "/metrics"))
    if not iterations:
        return None
    newest = max(iterations, key=lambda each: number(each.get("iter")) or 0.0)
    cache = mapping(newest.get("kvCacheStats"))
    block = number(cache.get("tokensPerBlock"))
    return LoadReport(
        source="tensorrt_llm",
        at=at,
        running=whole(newest.get("numActiveRequests")),
        waiting=whole(newest.get("numQueuedRequests")),
        batch_limit=whole(newest.get("maxNumActiveRequests")),
        kv_used=share(ratio(number(cache.get("usedNumBlocks")), number(cache.get("maxNumBlocks")))),
        kv_capacity_tokens=whole(product(number(cache.get("maxNumBlocks")), block)),
        gpu_memory_used_bytes=whole(newest.get("gpuMemUsage")),
        prefix_queries=whole(product(_asked(cache), block)),
        prefix_hits=whole(product(number(cache.get("reusedBlocks")), block)),
        doubts=() if "numActiveRequests" in newest else ("/metrics: no numActiveRequests",),
    )


def from_metrics(body: bytes, at: float) -> LoadReport:
    """``/prometheus/metrics``."""
    metrics = _READER(body)
    state = State.READY if metrics else None
    return LoadReport(
        source="tensorrt_llm",
        at=at,
        state=state,
        running=whole(metrics.total(_RUNNING)),
        waiting=whole(metrics.total(_WAITING)),
        kv_used=share(metrics.most(_KV_USED)),
        kv_capacity_tokens=whole(product(metrics.total(_BLOCKS), metrics.most(_BLOCK))),
        models=states((row.label("model_name") for row in metrics.series(_RUNNING)), state),
        doubts=metrics.doubts,
    )


class TensorRTLLM:
    """``/health`` first; then the figures. Not cheap: a page may block for 2 s, and is taken from others."""

    kind = "tensorrt_llm"
    cheap = False

    def __init__(self) -> None:
        self._pages = Pages()
        self._last: LoadReport | None = None

    async def recognises(self, fetch: Fetch) -> bool:
        """By the owner of its models alone: to look at ``/metrics`` would take from it."""
        return await probes.model_owner(fetch) == "tensorrt_llm"

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """On ``[]`` the report before, with its own ``at``."""
        health = await self._pages.maybe(fetch, "/health")
        if health is not None and health.status >= 500:
            return LoadReport(source=self.kind, at=at, state=State.STARTING)
        page = await self._pages.maybe(fetch, "/prometheus/metrics", accept=TEXT)
        if page is not None and page.status == 200:
            report = from_metrics(page.body, at)
            if report.running is not None:
                return report
        page = await self._pages.get(fetch, "/metrics")
        found = from_iterations(page.body, at)
        if found is not None:
            self._last = replace(found, state=State.READY)
        return self._last or LoadReport(source=self.kind, at=at, state=State.READY)


def _asked(cache: Mapping[str, Any]) -> float | None:
    found, missed = number(cache.get("reusedBlocks")), number(cache.get("missedBlocks"))
    return None if found is None or missed is None else found + missed
