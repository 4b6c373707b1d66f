"""Policies side by side, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any

from rich.table import Table

from ..simulator.model.measures import Measures


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


def table(rows: Sequence[Row], title: str) -> Table:
    """Times to first token in seconds of the modelled engine; slowdown: against an idle replica, nothing cached."""
    made = Table(title=title, title_justify="left", padding=(0, 1))
    made.add_column("policy", no_wrap=True)
    columns = ("TTFT", "p50", "p99", "slowdown", "p99", "cached", "errors")
    for heading in columns:
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        m = row.measures
        made.add_row(
            row.name,
            *(f"{value:.2f}s" for value in (m.ttft_mean_s, m.ttft_p50_s, m.ttft_p99_s)),
            *(f"{value:.1f}" for value in (m.slowdown_mean, m.slowdown_p99)),
            f"{m.prefix_hits:.0%}",
            str(m.errors),
            style="bold green" if row.ours else None,
        )
    return made
