"""SGLang: ``/v1/loads`` since 0.5.8, ``/get_load`` from 0.4.9 to 0.5.12, ``/metrics`` where it is switched on.

``/health`` is never asked: it generates a token and takes a second.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch, NotThere
from .figures import (
    Fields,
    most,
    number,
    objects,
    parsed,
    parsed_fields,
    positive,
    ratio,
    requests,
    share,
    states,
    total,
    whole,
)
from .pages import TEXT, Pages
from .prometheus import Metrics, Reader

LOADS, GET_LOAD, METRICS = "/v1/loads", "/get_load", "/metrics"

# With a colon in /metrics; with an underscore in /v1/loads?format=prometheus and behind some exporters.
_RUNNING = ("sglang:num_running_reqs", "sglang_num_running_reqs")
_WAITING = ("sglang:num_queue_reqs", "sglang_queues_waiting")
_USAGE = ("sglang:token_usage", "sglang_token_usage")
_CAPACITY = ("sglang:max_total_num_tokens", "sglang_max_total_num_tokens")
_READER = Reader(*_RUNNING, *_WAITING, *_USAGE, *_CAPACITY)


def from_loads(body: bytes, at: float) -> LoadReport:
    """``/v1/loads``. An empty list is what a server says that has not heard of its scheduler: unknown, not idle.

    With the tokens that wait it counts what is left of a chunked request that runs (0.5.13 to 0.5.23, whose
    schedulers were read): all prefill but the present step's. A server that only decodes tells 0 whatever waits.
    """
    ranks = _ranks(parsed_fields(body, LOADS).get("loads"))
    running, waiting = _sum(ranks, "num_running_reqs"), _sum(ranks, "num_waiting_reqs")
    if waiting is None and running is not None and (both := _sum(ranks, "num_total_reqs")) is not None:
        waiting = max(0.0, both - running)
    decodes = any(part.get("mode") == "decode" for part in objects([r.get("disaggregation") for r in ranks]))
    uncached = None if decodes else whole(_sum(ranks, "num_waiting_uncached_tokens"))
    return LoadReport(
        source="sglang",
        at=at,
        running=whole(running),
        waiting=whole(waiting),
        waiting_tokens=uncached,
        prefill_tokens=uncached,
        prefill_tokens_per_s=_prefill_rate(ranks),
        batch_limit=whole(_sum(ranks, "max_running_requests")),
        kv_used=share(most(rank.get("token_usage") for rank in ranks)),
        kv_capacity_tokens=whole(_sum(ranks, "max_total_num_tokens")),
        doubts=() if running is not None else (f"{LOADS}: no rank says how much it runs",),
    )


def from_get_load(body: bytes, at: float) -> LoadReport:
    """``/get_load``, where ``num_reqs`` counts running and waiting requests."""
    ranks = _ranks(parsed(body, GET_LOAD))
    waiting, both = _sum(ranks, "num_waiting_reqs"), _sum(ranks, "num_reqs")
    running = None if waiting is None or both is None else max(0.0, both - waiting)
    return LoadReport(
        source="sglang",
        at=at,
        running=whole(running),
        waiting=whole(waiting),
        doubts=() if running is not None else (f"{GET_LOAD}: no rank says how much it runs",),
    )


def from_metrics(body: bytes, at: float) -> LoadReport:
    """``/metrics``: a line for every tensor-parallel rank, all of the same requests; only ``dp_rank`` adds up."""
    metrics = _READER(body)
    running = requests(_over_ranks(metrics, *_RUNNING))
    state = None if running is None else State.READY
    return LoadReport(
        source="sglang",
        at=at,
        state=state,
        running=running,
        waiting=requests(_over_ranks(metrics, *_WAITING)),
        kv_used=share(metrics.most(*_USAGE)),
        kv_capacity_tokens=whole(_over_ranks(metrics, *_CAPACITY)),
        models=states((row.label("model_name") for row in metrics.series(*_RUNNING)), state),
        doubts=(*metrics.doubts, *metrics.lacks(running, *_RUNNING)),
    )


class SGLang:
    """``/ready`` where there is one, then the best page of load that there is."""

    kind = "sglang"
    cheap = True

    def __init__(self, metrics_port: int | None = None) -> None:
        self._port = metrics_port
        self._pages = Pages()

    async def recognises(self, fetch: Fetch) -> bool:
        """By the owner of its models, by a list of loads, or by the names of its metrics."""
        owner = await probes.model_owner(fetch)
        if owner in probes.OWNERS:
            return owner == "sglang"
        if isinstance((await probes.fields(fetch, LOADS)).get("loads"), list):
            return True
        return b"sglang:num_running_reqs" in await probes.metrics(fetch)

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Two pages of 2 kB, or the metrics."""
        ready = await self._pages.maybe(fetch, "/ready")
        if ready is not None and ready.status == 503:
            return LoadReport(source=self.kind, at=at, state=State.STARTING)
        report = await self._figures(fetch, at)
        known = ready is not None and ready.status == 200
        if report.state is None and (known or report.running is not None):
            return replace(report, state=State.READY)
        return report

    async def _figures(self, fetch: Fetch, at: float) -> LoadReport:
        try:
            path, page = await self._pages.first(fetch, LOADS, GET_LOAD)
        except NotThere:
            page = await self._pages.get(fetch, METRICS, port=self._port, accept=TEXT)
            return from_metrics(page.body, at)
        return from_loads(page.body, at) if path == LOADS else from_get_load(page.body, at)


def _ranks(loads: object) -> list[Fields]:
    """One object a rank; of those that are there twice the last one."""
    return list({str(load.get("dp_rank")): load for load in objects(loads)}.values())


def _sum(ranks: Iterable[Fields], name: str) -> float | None:
    return total(rank.get(name) for rank in ranks)


def _prefill_rate(ranks: Iterable[Fields]) -> float | None:
    """Tokens a second over the server's life, while it was prefilling; ranks work side by side."""
    rates = []
    for rank in ranks:
        tokens, busy_us = (
            number(rank.get(f"total_prefill_{name}")) for name in ("uncached_tokens", "busy_us")
        )
        rates.append(ratio(tokens, None if busy_us is None else busy_us / 1e6))
    return positive(total(rates))


def _over_ranks(metrics: Metrics, *names: str) -> float | None:
    ranks: dict[str, list[float]] = {}
    for row in metrics.series(*names):
        ranks.setdefault(row.label("dp_rank"), []).append(row.value)
    return total(most(values) for values in ranks.values())
