"""llama.cpp's server: ``/props``, ``/metrics`` (with ``--metrics``) and ``/slots`` (unless ``--no-slots``).

Captured from b11434. While it loads, every page answers 503. A server that sleeps (``--sleep-idle-seconds``) takes
calls and loads again first; ``/slots`` would wake it, the others do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch, Page, ReportError
from .figures import (
    Fields,
    mapping,
    number,
    objects,
    parsed,
    parsed_fields,
    positive,
    requests,
    share,
    states,
    total,
    whole,
)
from .pages import JSON, TEXT, Pages
from .prometheus import Reader

_RUNNING, _WAITING = "llamacpp:requests_processing", "llamacpp:requests_deferred"
_PROMPT, _CACHED = "llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"
_PREFILL_RATE = "llamacpp:prompt_tokens_seconds"
_KV_USED = "llamacpp:kv_cache_usage_ratio"  # in old builds only
_READER = Reader(_RUNNING, _WAITING, _PROMPT, _CACHED, _PREFILL_RATE, _KV_USED)


@dataclass(frozen=True, slots=True)
class Props:
    """Of ``/props``: ``slots`` calls run at once, the model by its name, whether its weights are unloaded."""

    slots: int | None
    model: str
    asleep: bool


def from_metrics(body: bytes, at: float) -> LoadReport:
    """``/metrics``. Its rate of generation is that of single streams: not what the server can do, left out."""
    metrics = _READER(body)
    running = requests(metrics.total(_RUNNING))
    cached = metrics.total(_CACHED)
    asked = total((metrics.total(_PROMPT), cached))
    return LoadReport(
        source="llama_cpp",
        at=at,
        running=running,
        waiting=requests(metrics.total(_WAITING)),
        prefill_tokens_per_s=positive(metrics.total(_PREFILL_RATE)),
        kv_used=share(metrics.most(_KV_USED)),
        prefix_queries=whole(asked),
        prefix_hits=whole(cached),
        doubts=(*metrics.doubts, *metrics.lacks(running, _RUNNING)),
    )


def from_slots(body: bytes, at: float, waiting: int | None = None) -> LoadReport:
    """``/slots``: what runs, and its prompts' rest. What waits for a slot is in no slot, so that the rest is known
    only if nothing does: ``waiting`` as the metrics have it, or a slot is free.
    """
    value = parsed(body, "/slots")
    slots = objects(value)
    if not slots or not all(isinstance(slot.get("is_processing"), bool) for slot in slots):
        return LoadReport(source="llama_cpp", at=at, doubts=("/slots: no list of slots",))
    busy = [slot for slot in slots if slot["is_processing"]]
    return LoadReport(
        source="llama_cpp",
        at=at,
        running=len(busy),
        prefill_tokens=whole(total((0, *map(_unread, busy))))
        if waiting == 0 or len(busy) < len(slots)
        else None,
        batch_limit=len(slots),
    )


def props(body: bytes) -> Props:
    """Raises ReportError."""
    found = parsed_fields(body, "/props")
    name = found.get("model_alias") or found.get("model_path")
    return Props(
        whole(found.get("total_slots")),
        name if isinstance(name, str) else "",
        found.get("is_sleeping") is True,
    )


def refusal(page: Page) -> State | None:
    """What a 503 means: loading, or, in old builds, that no slot is free."""
    if page.status != 503:
        return None
    try:
        error = mapping(parsed_fields(page.body, "error").get("error"))
    except ReportError:
        return State.STARTING
    return State.OVERLOADED if error.get("message") == "no slot available" else State.STARTING


class LlamaCpp:
    """Two or three pages: the slots are asked only where they add something, and never of a sleeper."""

    kind = "llama_cpp"
    cheap = False

    def __init__(self, metrics_port: int | None = None) -> None:
        self._port = metrics_port
        self._pages = Pages()

    async def recognises(self, fetch: Fetch) -> bool:
        """By its name in the ``Server`` header, which is there while it loads, or as the owner of its models."""
        page = await fetch("/v1/models", accept=JSON)
        return page.headers.get("server") == "llama.cpp" or await probes.model_owner(fetch) == "llamacpp"

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Raises NotThere if it shows none of its pages."""
        page = await self._pages.maybe(fetch, "/props")
        if page is not None and (state := refusal(page)):
            return LoadReport(source=self.kind, at=at, state=state)
        shown = props(page.body) if page is not None and page.status == 200 else Props(None, "", False)
        report = await self._metrics(fetch, at)
        if not shown.asleep and (report is None or report.running != 0):
            waiting = None if report is None else report.waiting
            report = _joined(report, await self._slots(fetch, at, waiting))
        if report is None and page is None:
            raise self._pages.none("/props, /metrics and /slots: not there")
        report = report or LoadReport(source=self.kind, at=at)
        state = State.WARMING if shown.asleep else State.READY
        limit = report.batch_limit if report.batch_limit is not None else shown.slots
        return replace(report, state=state, batch_limit=limit, models=states([shown.model], state))

    async def _metrics(self, fetch: Fetch, at: float) -> LoadReport | None:
        page = await self._pages.maybe(fetch, "/metrics", port=self._port, accept=TEXT)
        if page is None or page.status != 200:
            return None
        return replace(from_metrics(page.body, at), epoch=_started(page.headers))

    async def _slots(self, fetch: Fetch, at: float, waiting: int | None) -> LoadReport | None:
        page = await self._pages.maybe(fetch, "/slots")
        return None if page is None or page.status != 200 else from_slots(page.body, at, waiting)


def _joined(metrics: LoadReport | None, slots: LoadReport | None) -> LoadReport | None:
    if metrics is None or slots is None:
        return metrics or slots
    return replace(
        metrics,
        running=slots.running if metrics.running is None else metrics.running,
        prefill_tokens=slots.prefill_tokens,
        batch_limit=slots.batch_limit,
        doubts=metrics.doubts + slots.doubts,
    )


def _unread(slot: Fields) -> float | None:
    """Prompt tokens of a slot still to be computed: ``n_prompt_tokens`` grows with what is generated."""
    names = ("n_prompt_tokens", "n_prompt_tokens_processed", "n_prompt_tokens_cache")
    tokens, done, cached = (number(slot.get(name)) for name in names)
    after = objects(slot.get("next_token"))
    generated = number(after[0].get("n_decoded")) if after else 0.0
    if tokens is None or done is None or cached is None or generated is None:
        return None
    return max(0.0, tokens - done - cached - generated)


def _started(headers: Mapping[str, str]) -> str | None:
    return headers.get("process-start-time-unix", "")[:32] or None
