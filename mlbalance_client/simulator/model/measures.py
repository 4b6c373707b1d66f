"""What is measured of a replay. Times in seconds; slowdown = time to first token / the call's own cold prefill."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

from .spec import EngineSpec


@dataclass(slots=True)
class CallRecord:
    """One replayed call. ``ttft_s`` and ``total_s`` count from its due arrival; None if it never came.

    ``queued_s``: how long it waited in its client.
    """

    index: int
    prompt_tokens: int
    output_tokens: int
    ttft_s: float | None = None
    total_s: float | None = None
    cached_tokens: int = 0
    replica: int | None = None
    error: str | None = None
    queued_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Measures:
    """Over all calls that were measured; quantiles by nearest rank."""

    calls: int
    errors: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    slowdown_mean: float
    slowdown_p50: float
    slowdown_p99: float
    prefix_hits: float

    def as_dict(self) -> dict[str, float]:
        """JSON-able."""
        return asdict(self)


def measure(records: Iterable[CallRecord], spec: EngineSpec) -> Measures:
    """Sum up a replay on engines of one ``spec``, which is what slowdowns are measured against."""
    listed = list(records)
    good = [r for r in listed if r.error is None and r.ttft_s is not None]
    ttft = sorted(r.ttft_s for r in good if r.ttft_s is not None)
    slowdown = sorted((r.ttft_s or 0.0) / spec.prefill_s(r.prompt_tokens) for r in good)
    prompt = sum(r.prompt_tokens for r in good)
    return Measures(
        calls=len(listed),
        errors=len(listed) - len(good),
        ttft_mean_s=_mean(ttft),
        ttft_p50_s=_quantile(ttft, 0.5),
        ttft_p99_s=_quantile(ttft, 0.99),
        slowdown_mean=_mean(slowdown),
        slowdown_p50=_quantile(slowdown, 0.5),
        slowdown_p99=_quantile(slowdown, 0.99),
        prefix_hits=sum(r.cached_tokens for r in good) / prompt if prompt else 0.0,
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def _quantile(ordered: Sequence[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")
