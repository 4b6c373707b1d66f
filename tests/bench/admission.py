"""Waiting for room in virtual time: ten times the load for ten seconds, and its cost without need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

from mlbalance_client.config import AdmissionConfig, PickingConfig
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.reporter.settings import ReporterSettings
from mlbalance_client.simulator.model.engine import Engine
from mlbalance_client.simulator.model.measures import CallRecord, measure
from mlbalance_client.simulator.model.spec import EngineSpec
from mlbalance_client.simulator.model.traces import Trace, TraceCall, load
from mlbalance_client.simulator.world import NO_WISHES, Told, Wishes, fingerprint_of, simulate

SPEC = EngineSpec()
REPLICAS = 8
# At the recorded rate x 1.5 the omniscient router keeps eight replicas about 75 % busy.
RATE = 1.5
# And at this one a fifth: clients have had one call or two each when the burst comes.
FRESH_RATE = 0.4
CALM_S, BURST_S, AFTER_S, TIMES = 60.0, 10.0, 60.0, 10.0
FIRST = 3000
SEEDS = range(1, 5)
# People wait: 2 s, not the minute that batches may.
ADMISSION = AdmissionConfig(queue_timeout_s=2.0)
_ONE_IN = 10
_WAIT_TARGET_S = ReporterSettings().wait_target_s
_TOKENS_PER_S = 11_000


def stream(engine: Engine, now: float) -> LoadReport:
    """What the load stream tells: all work, and the room that is granted, for all clients together."""
    standing = engine.prefill_tokens_outstanding
    return LoadReport(
        source="stream",
        at=now,
        prefill_tokens=standing,
        free_requests=max(0, SPEC.max_running - engine.running - engine.waiting),
        free_tokens=max(0, int(_WAIT_TARGET_S * _TOKENS_PER_S) - standing),
    )


def counts(engine: Engine, now: float) -> LoadReport:
    """What stock vLLM tells."""
    return LoadReport(
        source="vllm",
        at=now,
        running=engine.running,
        waiting=engine.waiting,
        kv_used=min(1.0, engine.kv_used_tokens / SPEC.kv_tokens),
        kv_capacity_tokens=SPEC.kv_tokens,
    )


def bursting(times: float = TIMES, rate: float = RATE) -> Trace:
    """A calm minute, ten seconds of ``times`` the load, and a calm minute again; warm-up of a minute before."""
    calls = load("conversation").at_rate(rate).window(FIRST, FIRST + 3000).calls
    begins, squeezed = 2 * CALM_S, BURST_S * times
    moved = []
    for call in calls:
        t = call.t_s
        if t > begins:
            t = begins + (t - begins) / times if t < begins + squeezed else t - squeezed + BURST_S
        if t < begins + BURST_S + AFTER_S:
            moved.append(replace(call, t_s=t))
    return Trace("burst", tuple(moved))


def is_urgent(call: TraceCall) -> bool:
    """One call in ten, and one in fifty of the burst, which is of ordinary calls: twice as many as before it."""
    in_burst = 2 * CALM_S <= call.t_s < 2 * CALM_S + BURST_S
    return call.index % (5 * _ONE_IN if in_burst else _ONE_IN) == 0


def urgent(call: TraceCall) -> Wishes:
    """Those are of high priority."""
    return Wishes(priority=10 if is_urgent(call) else 0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one burst; times in seconds. ``least_busy``: of the fleet's capacity, in the worst second of the overload."""

    calm_s: float
    urgent_calm_s: float
    burst_s: float
    urgent_burst_s: float
    urgent_refused: float
    refused: float
    refused_calm: float
    most_waiting: float
    least_busy: float
    mean_busy: float
    recovered_s: float
    calls: float
    calls_calm: float


def mean(outcomes: Sequence[Outcome]) -> Outcome:
    """On average, but for the least busy second and the longest recovery."""
    found = {
        field.name: sum(getattr(each, field.name) for each in outcomes) / len(outcomes)
        for field in fields(Outcome)
    }
    found["least_busy"] = min(each.least_busy for each in outcomes)
    found["recovered_s"] = max(each.recovered_s for each in outcomes)
    return Outcome(**found)


def burst(
    clients: int,
    told: Callable[[], Told] | None,
    admission: AdmissionConfig | None = ADMISSION,
    times: float = TIMES,
    seed: int = 1,
    rate: float = RATE,
) -> Outcome:
    """Ten times the load for ten seconds."""
    trace = bursting(times, rate)
    begins, ends = 2 * CALM_S, 2 * CALM_S + BURST_S
    busy: list[tuple[float, float]] = []
    standing: list[tuple[float, int]] = []

    def watch(engines: Sequence[Engine], now: float) -> None:
        busy.append((now, sum(engine.busy_s for engine in engines)))
        standing.append((now, sum(engine.prefill_tokens_outstanding for engine in engines)))

    records, _ = simulate(
        trace,
        PickingConfig(),
        clients=clients,
        seed=seed,
        fingerprints=fingerprint_of,
        told=told() if told else None,
        admission=admission,
        wishes=urgent,
        watch=watch,
    )
    due = {call.index: call.t_s for call in trace.calls}
    high_ones = {call.index for call in trace.calls if is_urgent(call)}

    def of(start: float, stop: float, *, high: bool | None = None) -> list[CallRecord]:
        return [
            r
            for r in records
            if start <= due[r.index] < stop and (high is None or (r.index in high_ones) is high)
        ]

    def ttft(found: list[CallRecord]) -> float:
        return measure(found, SPEC).ttft_mean_s

    calm = of(CALM_S, begins)
    hot = of(begins, ends)
    shares = _shares(busy, begins + 1.0, ends)
    return Outcome(
        calm_s=ttft(calm),
        urgent_calm_s=ttft(of(CALM_S, begins, high=True)),
        burst_s=ttft(hot),
        urgent_burst_s=ttft(of(begins, ends, high=True)),
        urgent_refused=sum(r.error is not None for r in of(begins, ends, high=True)),
        refused=sum(r.error is not None for r in hot),
        refused_calm=sum(r.error is not None for r in calm),
        most_waiting=_most_waiting(records, due),
        least_busy=min(shares),
        mean_busy=sum(shares) / len(shares),
        recovered_s=_recovered(standing, records, due, ends),
        calls=len(hot),
        calls_calm=len(calm),
    )


def _shares(busy: list[tuple[float, float]], start: float, stop: float) -> list[float]:
    """How much of the fleet's time was work, second by second."""
    shares = []
    last = None
    for now, total in busy:
        if last is None and now >= start:
            last = now, total
        elif last is not None and now - last[0] >= 1.0 and now <= stop + 0.5:
            shares.append(min(1.0, (total - last[1]) / (now - last[0]) / REPLICAS))
            last = now, total
    return shares


def _most_waiting(records: list[CallRecord], due: dict[int, float]) -> int:
    moves = []
    for r in records:
        waited_s = r.queued_s if r.error is None else r.total_s or 0.0
        if waited_s > 0:
            moves += [(due[r.index], 1), (due[r.index] + waited_s, -1)]
    most = now = 0
    for _, step in sorted(moves):
        now += step
        most = max(most, now)
    return most


def _recovered(
    standing: list[tuple[float, int]], records: list[CallRecord], due: dict[int, float], ends: float
) -> float:
    """When, after the burst, no more work stands at the replicas than in the calm minute on average, and none waits."""
    usual = [tokens for now, tokens in standing if CALM_S <= now < 2 * CALM_S]
    waits = [
        (due[r.index], due[r.index] + (r.queued_s if r.error is None else r.total_s or 0.0)) for r in records
    ]
    for now, tokens in standing:
        calm = tokens <= sum(usual) / len(usual)
        if now >= ends and calm and not any(begin <= now < end for begin, end in waits):
            return now - ends
    return AFTER_S


def steady(
    clients: int,
    told: Callable[[], Told] | None,
    admission: AdmissionConfig | None,
    seed: int = 1,
    wishes: Callable[[TraceCall], Wishes] = lambda call: NO_WISHES,
) -> tuple[float, float]:
    """At 75 % busy, of which the first calls only warm caches: mean TTFT, and the share of calls that waited."""
    trace = load("conversation").at_rate(RATE).window(FIRST - 600, FIRST + 900)
    records, _ = simulate(
        trace,
        PickingConfig(),
        clients=clients,
        seed=seed,
        fingerprints=fingerprint_of,
        told=told() if told else None,
        admission=admission,
        wishes=wishes,
    )
    counted = [r for r in records if r.index >= FIRST]
    return measure(counted, SPEC).ttft_mean_s, sum(r.queued_s > 0 for r in counted) / len(counted)


def main() -> None:
    """Print both scenes."""
    kinds: dict[str, Callable[[], Told] | None] = {
        "no reports": None,
        "counts, 1 s": lambda: Told(counts, 1.0),
        "stream, 0.1 s": lambda: Told(stream, 0.1),
    }
    print(
        f"admission in virtual time: {REPLICAS} replicas 75 % busy; is the queue in the way where none is needed?"
    )
    for name, clients in (("no reports", 1), ("counts, 1 s", 16), ("stream, 0.1 s", 16)):
        without, _ = steady(clients, kinds[name], None)
        queued, share = steady(clients, kinds[name], AdmissionConfig())
        kept, waited = steady(clients, kinds[name], AdmissionConfig(), wishes=urgent)
        print(
            f"  {name + ', ' + str(clients):22}mean TTFT {without:.2f} s without, {queued:.2f} s with it, "
            f"which {share:.1%} of calls entered; where 1 in 10 is urgent {kept:.2f} s, {waited:.1%}",
            flush=True,
        )
    print(
        f"{TIMES:.0f} times the load for {BURST_S:.0f} s, queue_timeout_s {ADMISSION.queue_timeout_s:g}, "
        f"some calls of high priority; means of {len(SEEDS)} seeds, of busy the least and of recovery the longest; "
        f"fresh: to the same load from {FRESH_RATE / RATE:.0%} of the usual one"
    )
    print(
        f"  {'':30}{'TTFT calm':>10}{'burst':>8}{'high: calm':>12}{'burst':>8}{'refused: calm':>15}"
        f"{'burst':>8}{'high':>6}{'waiting':>9}{'busy mean':>11}{'least':>7}{'recovered':>11}"
    )
    rows: list[tuple[str, int, AdmissionConfig | None, float]] = [
        *((name, clients, ADMISSION, RATE) for name in kinds for clients in (1, 16)),
        ("stream, 0.1 s", 16, None, RATE),
        *((name, 16, ADMISSION, FRESH_RATE) for name in kinds),
    ]
    for name, clients, admission, rate in rows:
        o = mean(
            [burst(clients, kinds[name], admission, TIMES * RATE / rate, seed, rate=rate) for seed in SEEDS]
        )
        row = f"{name}, {clients}" + ("" if admission else ", no queue") + (", fresh" if rate < RATE else "")
        recovered = f"{o.recovered_s:.0f}s" if o.recovered_s < AFTER_S else f"> {AFTER_S:.0f}s"
        print(
            f"  {row:30}{o.calm_s:9.2f}s{o.burst_s:7.1f}s{o.urgent_calm_s:11.2f}s{o.urgent_burst_s:7.2f}s"
            f"{o.refused_calm / o.calls_calm:15.1%}{o.refused / o.calls:8.0%}{o.urgent_refused:6.2f}"
            f"{o.most_waiting:9.0f}{o.mean_busy:11.0%}{o.least_busy:7.0%}{recovered:>11}",
            flush=True,
        )
