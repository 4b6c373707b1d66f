"""vLLM, by its metrics since 0.8 and ``/load``; also what NIM and Ray Serve pass on under other names.

Read in the sources and captured from 0.32. Until 0.9.1 the cache's gauges have ``gpu_`` in their names, 0.9.2 to 0.11
have both, 0.12 dropped the old. With data parallelism every metric is there once a rank (label ``engine``).
"""

from __future__ import annotations

from dataclasses import replace

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch, ReportError
from .figures import number, parsed_fields, positive, product, requests, share, states, whole
from .pages import TEXT, Pages
from .prometheus import Metrics, Reader

_RUNNING, _WAITING, _SWAPPED = "num_requests_running", "num_requests_waiting", "num_requests_swapped"
_BY_REASON = "num_requests_waiting_by_reason"
_KV_USED = ("kv_cache_usage_perc", "gpu_cache_usage_perc")
_QUERIES = ("prefix_cache_queries_total", "gpu_prefix_cache_queries_total")
_HITS = ("prefix_cache_hits_total", "gpu_prefix_cache_hits_total")
_PREFILLED = "prompt_tokens_total"
_SLEEP, _CACHE = "engine_sleep_state", "cache_config_info"
_STARTED = "process_start_time_seconds"
_AWAKE_S = 0.5
_NAMES = (_RUNNING, _WAITING, _SWAPPED, _BY_REASON, *_KV_USED, *_QUERIES, *_HITS, _PREFILLED, _SLEEP, _CACHE)


class MetricsPage:
    """The page's reader, for a ``prefix`` of the names: ``vllm:``, none (NIM 1.x), or Ray's ``ray_vllm_``."""

    def __init__(self, source: str = "vllm", prefix: str = "vllm:") -> None:
        self._source = source
        self._prefix = prefix
        self._reader = Reader(_STARTED, *(prefix + name for name in _NAMES))

    def __call__(self, body: bytes, at: float) -> LoadReport:
        """``state`` is None where sleep is not told. Raises ReportError if the page is too long."""
        metrics = self._reader(body)
        queued = metrics.total(*self._named(_WAITING))
        if queued is None and metrics.series(*self._named(_BY_REASON), reason="capacity"):
            queued = metrics.total(*self._named(_BY_REASON))
        if (swapped := metrics.total(*self._named(_SWAPPED))) and queued is not None:
            queued += swapped  # the engine before V1 took running requests out to CPU memory
        running, waiting = requests(metrics.total(*self._named(_RUNNING))), requests(queued)
        kv_names = self._named(*_KV_USED)
        kv_used = share(metrics.most(*kv_names))
        state = _awake(metrics, self._prefix + _SLEEP)
        rows = metrics.series(self._prefix + _RUNNING)
        return LoadReport(
            source=self._source,
            at=at,
            state=state,
            running=running,
            waiting=waiting,
            kv_used=kv_used,
            kv_capacity_tokens=_capacity(metrics, self._prefix + _CACHE),
            prefix_queries=whole(metrics.total(*self._named(*_QUERIES))),
            prefix_hits=whole(metrics.total(*self._named(*_HITS))),
            prefilled_tokens=whole(metrics.total(*self._named(_PREFILLED))),
            models=states((row.label("model_name") for row in rows), state),
            epoch=_epoch(metrics),
            doubts=(
                *metrics.doubts,
                *metrics.lacks(running, *self._named(_RUNNING)),
                *metrics.lacks(waiting, *self._named(_WAITING)),
                *(metrics.lacks(kv_used, *kv_names) if metrics.series(*kv_names) else ()),
            ),
        )

    def _named(self, *names: str) -> tuple[str, ...]:
        return tuple(self._prefix + name for name in names)


from_metrics = MetricsPage()


def from_load(body: bytes, at: float) -> LoadReport:
    """``/load``: calls in flight in this API server. 0 says nothing: without its flag the server never counts."""
    calls = positive(parsed_fields(body, "/load").get("server_load"))
    return LoadReport(source="vllm", at=at, running=requests(calls), partial=True)


def is_sleeping(body: bytes) -> bool:
    """``/is_sleeping``. Raises ReportError."""
    return parsed_fields(body, "/is_sleeping").get("is_sleeping") is True


class Vllm:
    """``/health`` first, as a dead engine's metrics stay; then ``/metrics``, or ``/load`` where those say nothing.

    Whether it is alive and awake is asked twice a second at most, however often the figures are.
    """

    kind = "vllm"
    cheap = True

    def __init__(self, metrics_port: int | None = None) -> None:
        self._port = metrics_port
        self._pages = Pages()
        self._awake_at = float("-inf")

    async def recognises(self, fetch: Fetch) -> bool:
        """By the owner of its models, or by the names of its metrics."""
        owner = await probes.model_owner(fetch)
        if owner in probes.OWNERS:
            return owner == "vllm"
        return b"vllm:num_requests_running" in await probes.metrics(fetch)

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Up to three pages; one of them of 50 kB."""
        if at - self._awake_at < _AWAKE_S:
            report = await self._figures(fetch, at, lives=True)
            return report if report.state is not None else _with_state(report, State.READY)
        health = await self._pages.maybe(fetch, "/health")
        if health is not None and health.status == 503:
            # vLLM's own has no body: its engine is dead, and the server about to end. Else something before it speaks.
            state = State.STARTING if health.body else State.DRAINING
            return LoadReport(source=self.kind, at=at, state=state)
        report = await self._figures(fetch, at, lives=health is not None)
        if report.state is None:
            asleep = await self._asleep(fetch)
            report = _with_state(report, State.ASLEEP if asleep else State.READY)
        if report.state is State.READY and report.running is not None:
            self._awake_at = at
        return report

    async def _figures(self, fetch: Fetch, at: float, *, lives: bool) -> LoadReport:
        page = await self._pages.maybe(fetch, "/metrics", port=self._port, accept=TEXT)
        report = None if page is None or page.status != 200 else from_metrics(page.body, at)
        if report is not None and report.running is not None:
            return report
        load = await self._pages.maybe(fetch, "/load")
        if load is not None and load.status == 200:
            return replace(from_load(load.body, at), doubts=report.doubts if report else ())
        if report is not None:
            return report
        if page is not None:
            raise ReportError(f"/metrics: answers {page.status}")
        if not lives:
            raise self._pages.none("/metrics and /load: not there")
        return LoadReport(source=self.kind, at=at, doubts=("neither /metrics nor /load is there",))

    async def _asleep(self, fetch: Fetch) -> bool:
        page = await self._pages.maybe(fetch, "/is_sleeping")
        try:
            return page is not None and page.status == 200 and is_sleeping(page.body)
        except ReportError:
            return False  # not vLLM's page: something before it answers what vLLM does not know


def _with_state(report: LoadReport, state: State) -> LoadReport:
    return replace(report, state=state, models=dict.fromkeys(report.models, state.value))


def _awake(metrics: Metrics, name: str) -> State | None:
    awake = metrics.series(name, sleep_state="awake")
    if not awake:
        return None
    return State.READY if all(each.value == 1 for each in awake) else State.ASLEEP


def _capacity(metrics: Metrics, name: str) -> int | None:
    """Tokens over all ranks. Labels are texts; hybrid models have another size than blocks times their length."""
    ranks: dict[str, float] = {}
    for row in metrics.series(name):
        size = _digits(row.label("kv_cache_size_tokens")) or product(
            _digits(row.label("block_size")), _digits(row.label("num_gpu_blocks"))
        )
        if size is None:
            return None
        ranks[row.label("engine")] = size
    return whole(sum(ranks.values())) if ranks else None


def _digits(text: str) -> float | None:
    return number(int(text)) if text.isascii() and text.isdigit() and len(text) < 16 else None


def _epoch(metrics: Metrics) -> str | None:
    started = metrics.series(_STARTED)
    return f"{started[0].value:.2f}" if len(started) == 1 and number(started[0].value) else None
