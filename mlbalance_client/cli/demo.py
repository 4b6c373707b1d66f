"""``mlbalance demo``: real traffic over real HTTP against simulated replicas, through three policies in turn."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio.to_thread
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..client import AsyncClient
from ..config import BalancerConfig
from ..simulator.model.fleet import Fleet
from ..simulator.model.http_replay import PATH, replay_http
from ..simulator.model.measures import CallRecord, measure
from ..simulator.model.spec import EngineSpec
from ..simulator.model.traces import Trace, TraceCall, load
from .comparison import Row

# The engine is modelled on a 70B model, for which the recorded chat rate, times 1.5, keeps eight replicas about 75 %
# busy. Time is compressed so that three policies fit into little more than a minute; results are scaled back.
COMPRESSION = 6.0
COMPRESSED = (
    f"Time ran {COMPRESSION:g} times as fast, for engines and arrivals alike; figures are scaled back."
)
_RATES = {"conversation": 1.5, "code": 4.0}
_FIRST = {"conversation": 3000, "code": 0}
_POLICIES = {"round robin": "round_robin", "least requests": "least_requests", "mlbalance": "prefix_tokens"}
_EMIT_INTERVAL_S = 0.05
# Of our mean time to the first token.
_LATE_SHARE = 0.5
# Means that differ by no more are alike.
_ALIKE = 0.05
# For a fleet to start and to end.
_AROUND_S = 4.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a demonstration came to; times in seconds of the modelled engine."""

    title: str
    rows: list[Row]
    records: dict[str, list[CallRecord]]
    late_s: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "title": self.title,
            "compression": COMPRESSION,
            "replay_late_s": self.late_s,
            "policies": [row.as_dict() for row in self.rows],
        }

    def summary(self) -> str:
        """What it comes to, and whether it counts: a busy machine replays late, and its engines are late too."""
        mean = {row.name: row.measures.ttft_mean_s for row in self.rows}
        ours = mean["mlbalance"]
        others = ", ".join(_compared(mean[name] / ours, name) for name in ("round robin", "least requests"))
        caveat = f" {self.caveat} Try again when it is quiet." if self.caveat else ""
        return f"Mean time to first token: {others}.{caveat}"

    @property
    def caveat(self) -> str:
        """Why the figures do not count, if they do not."""
        ours = next(row.measures.ttft_mean_s for row in self.rows if row.ours)
        late_s = self.late_s * COMPRESSION
        if late_s <= _LATE_SHARE * ours:
            return ""
        return f"But this machine was too busy for the figures to mean much: calls were sent up to {late_s:.2f} s late."


def _compared(times: float, name: str) -> str:
    if abs(times - 1) <= _ALIKE:
        return f"as long as with {name}"
    return (
        f"{1 / times:.1f} times longer than {name}" if times < 1 else f"{times:.1f} times shorter than {name}"
    )


async def run(trace: str, calls: int, replicas: int, show: bool) -> Result:
    """Replay ``calls`` calls of a trace against ``replicas`` simulated replicas, once a policy."""
    whole = load(trace)
    first = _FIRST.get(trace, whole.calls[0].index)
    rate = _RATES.get(trace, 1.0) * replicas / 8
    window = whole.window(first, first + calls).at_rate(rate * COMPRESSION)
    spec = EngineSpec()
    console = Console(stderr=True)
    if show:
        console.print(
            f"Replaying {len(window.calls)} recorded calls over HTTP against {replicas} simulated replicas, through "
            f"{len(_POLICIES)} policies in turn: about {len(_POLICIES) * (window.duration_s + _AROUND_S):.0f} s.",
            highlight=False,
            soft_wrap=True,
        )
    with _progress(console) if show else nullcontext() as progress:
        records: dict[str, list[CallRecord]] = {}
        late_s = 0.0
        for name, policy in _POLICIES.items():
            fleet = Fleet(replicas, spec=spec.scaled(COMPRESSION), emit_interval_s=_EMIT_INTERVAL_S)
            await anyio.to_thread.run_sync(fleet.__enter__)
            try:
                records[name], late = await _replay(window, fleet, policy, progress, name)
            finally:
                await anyio.to_thread.run_sync(fleet.close)
            late_s = max(late_s, late)
    rows = [Row(name, measure(found, spec), ours=name == "mlbalance") for name, found in records.items()]
    title = (
        f"{len(window.calls)} calls of the trace {whole.name!r} on {replicas} simulated replicas, "
        f"time compressed {COMPRESSION:g} times"
    )
    return Result(title, rows, records, late_s)


async def _replay(
    window: Trace, fleet: Fleet, policy: str, progress: Progress | None, name: str
) -> tuple[list[CallRecord], float]:
    config = BalancerConfig(
        discovery={"kind": "static", "replicas": fleet.urls}, picking={"policy": policy}, seed=1
    )
    task = progress.add_task(name, total=len(window.calls)) if progress else None

    def on_progress(sent: int, ended: int) -> None:
        if progress is not None and task is not None:
            progress.update(task, completed=ended)

    async with AsyncClient(config) as client:

        @asynccontextmanager
        async def send(call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
            headers = {"content-type": "application/json"}
            async with client.stream("POST", PATH, content=body, headers=headers) as response:
                response.raise_for_status()
                yield response.aiter_raw()

        records, late_s = await replay_http(window, send, on_progress=on_progress)
    return [_stretched(record) for record in records], late_s


def _stretched(record: CallRecord) -> CallRecord:
    """In seconds of the modelled engine."""
    if record.ttft_s is None or record.total_s is None:
        return record
    return replace(record, ttft_s=record.ttft_s * COMPRESSION, total_s=record.total_s * COMPRESSION)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:>15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )


_COLOURS = {"round robin": "#b0b4bd", "least requests": "#e8a33d", "mlbalance": "#1f8a70"}


class ChartError(ValueError):
    """The chart cannot be drawn."""


def check_chart(path: Path) -> None:
    """Raises ChartError if a chart cannot go to ``path``: asked before a minute of replay."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ChartError("the chart needs matplotlib: install mlbalance-client with the extra [demo]")
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise ChartError(f"--chart {path}: must end in .png, .svg or .pdf")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise ChartError(f"--chart {path}: no such directory to put it in")


def draw(result: Result, path: Path) -> None:
    """Write a chart: every call's time to first token, and the share of calls that had theirs by then."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure, (dots, shares) = plt.subplots(
            1, 2, figsize=(12, 5), width_ratios=(3, 2), layout="constrained"
        )
        for row in result.rows:
            good = [r for r in result.records[row.name] if r.ttft_s is not None and r.error is None]
            colour, front = _COLOURS[row.name], 3 if row.ours else 2
            times = [r.ttft_s or 0.0 for r in good]
            if not good:
                continue
            dots.scatter(range(len(good)), times, s=9, color=colour, alpha=0.8, linewidths=0, zorder=front)
            ordered = sorted(times)
            level = [(i + 1) / len(ordered) for i in range(len(ordered))]
            label = (
                f"{row.name}: mean {row.measures.ttft_mean_s:.2f} s, {row.measures.prefix_hits:.0%} cached"
            )
            shares.plot(ordered, level, color=colour, linewidth=2.2, label=label, zorder=front)
        some = any(r.ttft_s is not None and r.error is None for rows in result.records.values() for r in rows)
        for axis, log in ((dots, dots.set_yscale), (shares, shares.set_xscale)):
            if some:
                log("log")
                (axis.yaxis if axis is dots else axis.xaxis).set_major_formatter("{x:g}")
            axis.grid(color="#eceef2", linewidth=0.8, zorder=0)
        dots.set(xlabel="calls in order of arrival", ylabel="time to first token, s")
        shares.set(xlabel="time to first token, s", ylabel="share of calls", ylim=(0, 1))
        captions = {
            dots: "Each dot is one call under one policy: how long it waited for its first token. Lower is better.",
            shares: "Calls that had their first token by then. Further left is better.",
        }
        for axis, caption in captions.items():
            axis.set_title(caption, loc="left", fontsize=9, color="#555b66")
        if some:
            figure.legend(loc="outside lower center", ncols=len(result.rows), frameon=False)
        title = "\n".join(filter(None, (result.title, result.caveat)))
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        figure.savefig(path, dpi=150)
        plt.close(figure)
