"""The commands: each a few lines that call what does the work."""

from __future__ import annotations

import json
import threading
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import typer
from rich.console import Console

from ..config import BalancerConfig, PickingConfig
from ..config.base import given
from ..errors import BalancerError
from ..simulator.model.faults import Faults
from ..simulator.model.fleet import Fleet, FleetError
from ..simulator.model.traces import TraceError, load
from . import checking
from . import demo as demonstration
from .comparison import table
from .simulation import simulate as run_simulation

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@app.callback()
def about() -> None:
    """A client-side load balancer for model replicas."""


def _fail(error: Exception) -> typer.Exit:
    Console(stderr=True).print(
        f"mlbalance: {error}", style="red", markup=False, highlight=False, soft_wrap=True
    )
    return typer.Exit(2)


def _faults(text: str) -> Faults:
    try:
        asked = json.loads(text)
    except (ValueError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        known = ", ".join(field.name for field in fields(Faults))
        raise ValueError(  # noqa: TRY004 - one class for all that is wrong
            f"--faults {given(text)}: must be a JSON object, such as --faults '{{\"slow\": 3}}'; there are {known}"
        )
    try:
        return Faults.of(asked)
    except ValueError as error:
        raise ValueError(f"--faults: {error}") from None


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


@app.command()
def demo(
    trace: Annotated[str, typer.Option(help="conversation, code, or a trace file.")] = "conversation",
    calls: Annotated[int, typer.Option(min=10, help="Calls a policy.")] = 500,
    replicas: Annotated[int, typer.Option(min=1, max=64)] = 8,
    chart: Annotated[Path, typer.Option(help="Where the chart goes.")] = Path("demo-chart.png"),
    as_json: AsJson = False,
) -> None:
    """Replay real traffic against simulated replicas, through three policies, and compare."""
    try:
        demonstration.check_chart(chart)
        result = anyio.run(demonstration.run, trace, calls, replicas, not as_json)
        demonstration.draw(result, chart)
    except (BalancerError, FleetError, TraceError, demonstration.ChartError) as error:
        raise _fail(error) from None
    if as_json:
        _print_json({**result.as_dict(), "chart": str(chart)})
        return
    console = Console()
    console.print(table(result.rows, result.title, demonstration.COMPRESSED))
    console.print(result.summary())
    console.print(f"The chart is in {chart}.", markup=False)


@app.command()
def fleet(
    replicas: Annotated[int, typer.Option(min=1, max=64)] = 8,
    speed: Annotated[
        float, typer.Option(min=0.01, max=1000, help="Times as fast as the modelled engine.")
    ] = 1.0,
    port: Annotated[int, typer.Option(min=0, max=65000, help="The first one's port; 0: any free ones.")] = 0,
    faults: Annotated[
        str,
        typer.Option(
            help='Faults of all replicas as JSON, such as {"slow": 10}. Of one: POST them to its /_sim/faults.'
        ),
    ] = "{}",
    middleware: Annotated[
        list[str] | None,
        typer.Option(help="Dotted path of an ASGI middleware around each; may be given more than once."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run simulated replicas until interrupted."""
    from ..simulator.model.spec import EngineSpec

    try:
        wrong = _faults(faults)
        with Fleet(
            replicas,
            spec=EngineSpec().scaled(speed),
            faults=wrong,
            port=port,
            middleware=middleware or (),
        ) as running:
            if as_json:
                typer.echo(json.dumps({"target": running.target, "urls": running.urls, "pids": running.pids}))
            else:
                typer.echo(
                    f"{replicas} simulated replicas; stop them with Ctrl-C, one with kill\n{running.target}"
                )
                for url, pid in zip(running.urls, running.pids, strict=True):
                    typer.echo(f"{url}  pid {pid}")
            threading.Event().wait()
    except (ValueError, FleetError) as error:
        raise _fail(error) from None
    except KeyboardInterrupt:
        return


@app.command()
def simulate(
    trace: Annotated[str, typer.Option(help="conversation, code, or a trace file.")] = "conversation",
    clients: Annotated[int, typer.Option(min=1, max=1024, help="Independent clients.")] = 1,
    rate: Annotated[float, typer.Option(min=0.01, max=100, help="Times the recorded rate.")] = 1.5,
    replicas: Annotated[int, typer.Option(min=1, max=1024)] = 8,
    as_json: AsJson = False,
) -> None:
    """Replay a trace in virtual time: what a client gets, beside an omniscient router and simple policies."""
    try:
        replayed = load(trace).at_rate(rate)
        with Console(stderr=True).status(f"replaying {len(replayed.calls):,} calls, four times"):
            rows = run_simulation(replayed, PickingConfig(), clients, replicas)
    except (BalancerError, TraceError) as error:
        raise _fail(error) from None
    if as_json:
        _print_json(
            {"clients": clients, "rate": rate, "replicas": replicas, "rows": [r.as_dict() for r in rows]}
        )
        return
    many = f"{clients} independent clients" if clients > 1 else "1 client"
    title = f"{trace}, {rate:g} times the recorded rate; {replicas} replicas, {many}; virtual time"
    Console().print(table(rows, title))


@app.command()
def check(
    target: Annotated[
        str | None,
        typer.Argument(help="A discovery URL or a TOML file; without one, the variable MLBALANCE_TARGET."),
    ] = None,
    contact: Annotated[
        bool,
        typer.Option(
            "--contact",
            help="Also connect to each replica, by TCP or TLS, and look for its load reports; no call is made.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the replicas of a target and say what was found, and why.

    Ends with 1 if none of them may be used or, with --contact, can be reached.
    """
    try:
        found = anyio.run(partial(checking.find, BalancerConfig.from_target(target), contact=contact))
    except BalancerError as error:
        raise _fail(error) from None
    if as_json:
        _print_json(found.as_dict())
    else:
        typer.echo(found.text())
    if not found.usable:
        raise typer.Exit(1)


@app.command()
def config(
    target: Annotated[str | None, typer.Argument(help="A discovery URL or a TOML file.")] = None,
    as_json: AsJson = True,
) -> None:
    """Print the configuration in force for a target as JSON, secrets masked."""
    try:
        _print_json(BalancerConfig.from_target(target).redacted())
    except BalancerError as error:
        raise _fail(error) from None
