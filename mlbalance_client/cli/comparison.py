"""Policies side by side, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..simulator.model.measures import Measures

_LEGEND = (
    "TTFT: time to first token. slow: TTFT as a multiple of what the same prompt takes on an idle replica with "
    "nothing cached. cached: share of prompt tokens that a prefix cache held."
)


@dataclass(frozen=True, slots=True)
class Row:
    """What one policy came to."""

    name: str
    measures: Measures
    ours: bool = False

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        found = self.measures.as_dict()
        return {"policy": self.name, **{k: None if isnan(v) else v for k, v in found.items()}}


def table(rows: Sequence[Row], title: str, note: str = "") -> Table:
    """Times in seconds of the modelled engine; fits into 80 columns. ``note``: goes before the legend."""
    made = Table(
        title=title,
        caption=f"{note} {_LEGEND}".strip(),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    made.add_column("policy", no_wrap=True)
    times = [f"{what}\n{which}" for what in ("TTFT", "slow") for which in ("mean", "p50", "p99")]
    for heading in (*times, "cached", "errors"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        m = row.measures
        made.add_row(
            row.name,
            *(f"{value:.2f}s" for value in (m.ttft_mean_s, m.ttft_p50_s, m.ttft_p99_s)),
            *(f"{value:.1f}" for value in (m.slowdown_mean, m.slowdown_p50, m.slowdown_p99)),
            f"{m.prefix_hits:.0%}",
            str(m.errors),
            style="bold green" if row.ours else None,
        )
    return made
