"""The tail and the failures: each scene through our clients, hedging and ejecting or not, beside the omniscient router.

``python -m tests.bench tail`` in virtual time; ``tail --http`` over HTTP; ``tail SCENE ...`` only those; ``--brief``:
only ours and the omniscient router; ``--clients N``: so many that share nothing; ``--stream``: whose replicas publish.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio

from mlbalance_client import events
from mlbalance_client.simulator.model.measures import Measures, measure
from mlbalance_client.simulator.model.scenes import BAD, SCENES, Scene

from ..scenes.staging import (
    PATIENT,
    SPEC,
    WARM_S,
    Seen,
    conversations,
    http_fleet,
    judged_virtually,
    over_http,
    virtually,
)
from .reports import REPORTER

CALLS = 1200
HTTP_CALLS = 600
# As many as show whether a burst is over, and as last until the last replica has been restarted.
MORE_CALLS = {"burst": 900, "rolling": 800}
SEEDS = (1, 2, 3)
COMPRESSION = 2.0
PATIENCE = {"rolling": PATIENT, "rolling_gently": PATIENT}

NO_HEDGING: dict[str, Any] = {"hedging": {"enabled": False}}
NO_EJECTION: dict[str, Any] = {
    "outlier_detection": {
        "consecutive_failures": 0,
        "failure_share": 1.0,
        "slow_factor": 1e6,
        "max_ejected_share": 0.0,
    }
}
OURS: dict[str, dict[str, Any]] = {
    "hedging and ejection": {},
    "ejection alone": NO_HEDGING,
    "hedging alone": NO_EJECTION,
    "neither": {**NO_HEDGING, **NO_EJECTION},
}
CONTRAST = {
    "least requests, neither": {**OURS["neither"], "picking": {"policy": "least_requests"}},
    "round robin, neither": {**OURS["neither"], "picking": {"policy": "round_robin"}},
}


def _line(name: str, plays: Sequence[Seen], m: Measures) -> None:
    def count(kind: type) -> int:
        return sum(len(seen.of(kind)) for seen in plays)

    calls = sum(len(seen.records) for seen in plays)
    won = sum(event.won for seen in plays for _, event in seen.of(events.HedgeEnded))
    print(
        f"  {name:25}{m.ttft_p50_s:7.2f}{m.ttft_p99_s:8.2f}{m.slowdown_p50:8.2f}{m.slowdown_p99:8.2f}"
        f"{_extra(plays):8.1%}{count(events.AttemptStarted) / calls:9.3f}{count(events.HedgeStarted):7}{won:5}"
        f"{sum(seen.total('aborted') for seen in plays):8}{sum(len(seen.failed) for seen in plays):7}"
        f"{sum(len(seen.broken) for seen in plays):7}",
        flush=True,
    )
    for error, times in sum((seen.errors for seen in plays), Counter[str]()).most_common(3):
        print(f"      {times} x {error}")


def _extra(plays: Sequence[Seen]) -> float:
    return sum(seen.extra_tokens for seen in plays) / len(plays)


def _verdict(what: str, figure: float, limit: float) -> None:
    met = "met" if figure <= limit else "NOT MET"
    print(f"    {what:58}{figure:8.3f}   at most {limit:g}: {met}", flush=True)


def _judge(
    scene: Scene, rows: Mapping[str, Sequence[Seen]], p99: Mapping[str, float], usual_p99: float | None
) -> None:
    plays, must = rows["hedging and ejection"], scene.must
    seen = plays[0]
    changed = seen.changed_s
    if must.p99 is not None:
        _verdict(
            "p99 slowdown against omniscience", p99["hedging and ejection"] / p99["omniscient"], must.p99
        )
    if must.p99_usual is not None and usual_p99 is not None:
        _verdict(
            "p99 slowdown against that of the usual fleet",
            p99["hedging and ejection"] / usual_p99,
            must.p99_usual,
        )
        if "ejection alone" in p99:
            _verdict("  without hedging", p99["ejection alone"] / usual_p99, float("inf"))
    if must.extra_tokens is not None:
        _verdict("extra tokens", _extra(plays), must.extra_tokens)
    if must.failed < 1:
        failed = sum(len(each.failed) for each in plays) / sum(len(each.records) for each in plays)
        _verdict("calls that failed, as a share", failed, must.failed)
    if must.attempts is not None:
        over = seen.scene.changes[-1].at_s
        calls = sum(changed <= due < over for due in seen.due.values())
        _verdict(
            "attempts per call", len(seen.of(events.AttemptStarted, changed, over)) / calls, must.attempts
        )
    if scene.burst is not None:
        _tell_burst(scene, seen)
    ejected = [t for t, e in seen.of(events.ReplicaEjected, changed) if e.replica in seen.urls[BAD]]
    first = ejected[0] if ejected else float("inf")
    if must.quiet_after_s is not None:
        late = seen.calls_to(BAD, changed + must.quiet_after_s, changed + 30)
        _verdict(f"calls to it from {must.quiet_after_s:g} s to 30 s after", len(late), 0)
    if must.after_calls is not None:
        sent = seen.calls_to(BAD, changed, first)
        if seen.scene.name == "hanging":  # nobody can know sooner
            told_s = seen.three_hedge_delays(BAD, changed)
            sent = [t for number, t in enumerate(sent) if number < must.after_calls or t > told_s]
        _verdict("its calls until it is ejected", len(sent), must.after_calls)
        print(
            f"      ejected after {first - changed:.1f} s; calls to it in all: {len(seen.calls_to(BAD, changed))}"
        )
    for t, event in seen.of(events.ReplicaEjected)[:6]:
        print(f"      {t:7.1f} s: {event.replica} for {event.for_s:.0f} s: {event.why}")


def _tell_burst(scene: Scene, seen: Seen) -> None:
    assert scene.burst is not None
    start, end = scene.burst.at_s, scene.burst.at_s + scene.burst.lasts_s
    _verdict("idle share of the fleet in the burst", 1 - seen.busy(start + 1, end), 0.1)
    for name, urgent in (("high priority", True), ("others", False)):
        calm, hot = (
            measure(
                (r for r in seen.since(since) if seen.due[r.index] < until and seen.urgent(r) is urgent), SPEC
            ).ttft_mean_s
            for since, until in ((0.0, start), (start, end))
        )
        print(f"      {name}: mean TTFT {calm:.2f} s before, {hot:.2f} s of those that came in the burst")


Playing = Callable[[Scene, str, Mapping[str, Any] | None, int], Seen]


def _settings(scene: Scene, sections: Mapping[str, Any]) -> dict[str, Any]:
    return {**PATIENCE.get(scene.name, {}), **sections}


def _virtual(scene: Scene, name: str, sections: Mapping[str, Any] | None, seed: int, *, clients: int) -> Seen:
    trace = conversations(CALLS)
    if sections is None:
        return judged_virtually(scene, trace, seed=seed)
    return virtually(scene, trace, _settings(scene, sections), clients=clients, seed=seed)


def _http(
    scene: Scene, name: str, sections: Mapping[str, Any] | None, seed: int, *, clients: int, stream: bool
) -> Seen:
    trace = conversations(MORE_CALLS.get(scene.name, HTTP_CALLS))
    if stream and sections is not None:
        sections = {**sections, "load_reports": {"kind": "stream"}}
    with http_fleet(COMPRESSION, REPORTER if stream else ()) as fleet:
        play = partial(
            over_http,
            scene,
            trace,
            fleet,
            _settings(scene, sections or {}),
            compression=COMPRESSION,
            judged=sections is None,
            clients=clients,
            seed=seed,
        )
        seen = anyio.run(play)
    print(f"    {name}: the replay itself was late by {seen.late_s:.2f} s at worst")
    return seen


def tail(names: list[str], play: Playing, seeds: Sequence[int], *, brief: bool = False) -> None:
    """These scenes, all rows of each or the two that matter most."""
    usual_p99: float | None = None
    for scene in SCENES.values():
        if names and scene.name not in names:
            continue
        print(f"{scene.name}: {scene.about}")
        print(
            f"  {'':25}{'TTFT p50':>7}{'p99':>7}  slow p50{'p99':>6}{'tokens':>8}{'attempts':>9}"
            f"{'hedges':>7}{'won':>5}{'aborts':>8}{'failed':>7}{'broken':>7}"
        )
        rows: dict[str, list[Seen]] = {}
        p99: dict[str, float] = {}
        variants: dict[str, Mapping[str, Any] | None] = {"omniscient": None, **OURS, **CONTRAST}
        if brief:
            variants = {name: variants[name] for name in ("omniscient", "hedging and ejection")}
        if scene.must.p99_usual is not None and usual_p99 is None:
            usual = [r for seed in seeds for r in play(SCENES["usual"], "usual", {}, seed).since(WARM_S)]
            usual_p99 = measure(usual, SPEC).slowdown_p99
        for name, sections in variants.items():
            if sections is None and scene.name == "outage":
                continue
            rows[name] = [play(scene, name, sections, seed) for seed in seeds]
            m = measure((r for seen in rows[name] for r in seen.since(WARM_S)), SPEC)
            p99[name] = m.slowdown_p99
            _line(name, rows[name], m)
        _judge(scene, rows, p99, usual_p99)


def main() -> None:
    """By the command's arguments."""
    parser = ArgumentParser(prog="python -m tests.bench tail")
    parser.add_argument("scenes", nargs="*", metavar="SCENE", help=", ".join(SCENES))
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--brief", action="store_true")
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--stream", action="store_true", help="over HTTP only")
    args = parser.parse_args(sys.argv[2:])
    if unknown := set(args.scenes) - SCENES.keys():
        parser.error(f"no such scene: {', '.join(unknown)}; there are {', '.join(SCENES)}")
    if args.stream and not args.http:
        parser.error("--stream: over HTTP only")
    if args.http:
        play: Playing = partial(_http, clients=args.clients, stream=args.stream)
        tail(args.scenes, play, SEEDS[:1], brief=args.brief)
    else:
        tail(args.scenes, partial(_virtual, clients=args.clients), SEEDS, brief=args.brief)
