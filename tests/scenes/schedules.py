"""Random schedules of faults and calls in virtual time, and the invariants of the design that hold over all of them."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import anyio
from hypothesis import strategies as st

import mlbalance_client as mlb
from mlbalance_client import events
from mlbalance_client.conduct.engine import Engine, Request
from mlbalance_client.simulator.model.http_replay import PATH
from mlbalance_client.simulator.model.spec import EngineSpec
from mlbalance_client.simulator.model.virtual_fleet import VirtualFleet
from mlbalance_client.simulator.model.virtual_time import run
from mlbalance_client.wire import WireOptions

SPEC = EngineSpec().scaled(4)
_FAULTS: list[dict[str, Any]] = [
    {"slow": 10},
    {"slow": 100},
    {"stall_share": 0.3},
    {"cold_calls": 5},
    {"failing": 0.5},
    {"failing": 1.0, "failing_status": 502},
    {"reject_status": 503},
    {"reject_status": 429, "retry_after_s": 3},
    {"reject_in_band": True},
    {"hanging": True},
    {"loading": True},
    {"break_after": 1},
    {"break_after": 3},
    {"max_queue": 1},
]
SETTINGS: dict[str, Any] = {
    "load_reports": {"kind": "none"},
    "hedging": {"reserve_tokens": 10_000, "first_guess": 1.5},
    "retries": {"reserve_calls": 3},
    "outlier_detection": {"rest_base_s": 0, "ejection_base_s": 5},
    "slow_start": {"window_s": 5},
    "http": {"first_content_timeout_s": 20, "call_timeout_s": 120},
}


@dataclass(frozen=True, slots=True)
class Call:
    """``gone_after_s``: its caller leaves then, if it has not had ``reads`` pieces (None: all) by then."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    stream: bool
    replayable: bool | None
    hedge: bool | None
    deadline_s: float | None
    gone_after_s: float | None
    reads: int | None


@dataclass(frozen=True, slots=True)
class Happening:
    """To one replica; ``what``: faults, or kill, drain or start."""

    at_s: float
    replica: int
    what: str
    faults: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Schedule:
    """What happens, and who calls."""

    replicas: int
    seed: int
    happenings: list[Happening]
    calls: list[Call]


_times = st.floats(0, 25).map(lambda t: round(t, 2))
_calls = st.builds(
    Call,
    _times,
    st.sampled_from([5, 300, 3000, 12_000]),
    st.sampled_from([1, 20, 300]),
    st.booleans(),
    st.sampled_from([None, None, True, False]),
    st.sampled_from([None, None, True, False]),
    st.sampled_from([None, None, None, 0.5, 8.0]),
    st.sampled_from([None, None, None, 0.05, 2.0]),
    st.sampled_from([None, None, None, 0, 2]),
)
_happenings = st.one_of(
    st.builds(Happening, _times, st.integers(0, 4), st.just("faults"), st.sampled_from(_FAULTS)),
    st.builds(Happening, _times, st.integers(0, 4), st.just("faults"), st.just({})),
    st.builds(Happening, _times, st.integers(0, 4), st.sampled_from(["kill", "drain", "start"]), st.just({})),
)
schedules = st.builds(
    Schedule,
    st.sampled_from([1, 2, 3, 4, 5, 5]),
    st.integers(0, 2**20),
    st.lists(_happenings, min_size=2, max_size=10),
    st.lists(_calls, min_size=15, max_size=40),
)


@dataclass(slots=True)
class Kept:
    """All that was told in order, and how each call ended."""

    told: list[Any] = field(default_factory=list)
    ends: Counter[int] = field(default_factory=Counter)
    wrong: list[BaseException] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Answered:
    """The caller of the call with this number was given an answer."""

    number: int


async def _call(engine: Engine, call: Call, number: int, start: float, kept: Kept) -> None:
    await anyio.sleep_until(start + call.at_s)
    body = json.dumps(
        {
            "model": "sim",
            "messages": [{"role": "user", "content": f"{number % 7} tok" * call.prompt_tokens}],
            "max_tokens": call.output_tokens,
            "stream": call.stream,
        }
    ).encode()
    options = mlb.CallOptions(
        tenant=str(number), replayable=call.replayable, hedge=call.hedge, deadline_s=call.deadline_s
    )
    length = str(len(body)).encode()
    request = Request("POST", PATH.encode(), [(b"Content-Length", length)], body, options)
    with anyio.move_on_after(call.gone_after_s):
        try:
            answer = await engine.send(request)
            kept.told.append(Answered(number))
            try:
                read = 0
                async for _ in answer.body:
                    read += 1
                    if call.reads is not None and read > call.reads:
                        break
            finally:
                await answer.body.aclose()
        except mlb.BalancerError:
            pass
        except Exception as error:
            kept.wrong.append(error)
    kept.ends[number] += 1


async def _happen(fleet: VirtualFleet, happening: Happening, start: float) -> None:
    await anyio.sleep_until(start + happening.at_s)
    number = happening.replica % len(fleet.replicas)
    replica = fleet.replicas[number]
    match happening.what:
        case "faults":
            await fleet.set_faults(number, **happening.faults)
        case "kill":
            await fleet.kill(number)
        case "drain" if replica.listens:
            await fleet.drain(number)
        case "start" if not replica.listens:
            await fleet.kill(number)
            await fleet.start(number)


async def _play(schedule: Schedule) -> Counter[str]:
    fleet = VirtualFleet(schedule.replicas, spec=SPEC, emit_interval_s=0.2, seed=schedule.seed)
    given = {**SETTINGS, "discovery": {"kind": "static", "replicas": fleet.urls}, "seed": schedule.seed}
    settings = mlb.BalancerConfig.model_validate(given)
    engine = Engine(settings, wire=WireOptions(network_backend=fleet.network), clock=anyio.current_time)
    kept = Kept()
    engine.events.subscribe(kept.told.append)
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for happening in schedule.happenings:
            tasks.start_soon(_happen, fleet, happening, start)
        for number, call in enumerate(schedule.calls):
            tasks.start_soon(_call, engine, call, number, start, kept)
    now = anyio.current_time()
    assert now - start < 25 + settings.http.call_timeout_s + 1
    assert not kept.wrong, kept.wrong
    assert kept.ends == dict.fromkeys(range(len(schedule.calls)), 1)
    assert engine.open_streams == 0
    engine.fleet.ledger.sweep(now + settings.picking.residual_s)
    assert engine.fleet.ledger.tokens == 0
    every_attempt_ends_once(kept)
    nothing_starts_after_the_commit(kept)
    the_ejected_are_left_alone(kept)
    budgets_are_kept(kept, settings, schedule)
    await engine.aclose()
    assert engine.wire.counts() == (0, 0)
    for replica in fleet.replicas:
        replica.set_faults()
    await anyio.sleep(1000)
    assert fleet.network.open == 0
    assert [replica.app.in_flight for replica in fleet.replicas] == [0] * schedule.replicas
    return Counter(type(event).__name__ for event in kept.told)


def every_attempt_ends_once(kept: Kept) -> None:
    """In AttemptEnded and in the settlement of its charge."""
    started = Counter((e.call, e.attempt) for e in kept.told if isinstance(e, events.AttemptStarted))
    ended = Counter((e.call, e.attempt) for e in kept.told if isinstance(e, events.AttemptEnded))
    assert started == ended
    assert set(started.values()) <= {1}
    settled = Counter((e.call, e.replica) for e in kept.told if isinstance(e, events.Settled))
    assert settled == Counter((e.call, e.replica) for e in kept.told if isinstance(e, events.AttemptStarted))


def nothing_starts_after_the_commit(kept: Kept) -> None:
    """Once its caller has an answer, a call goes nowhere any more."""
    numbers = {e.call: int(e.tenant) for e in kept.told if isinstance(e, events.Picked)}
    answered: set[int] = set()
    for event in kept.told:
        if isinstance(event, Answered):
            answered.add(event.number)
        elif isinstance(event, events.AttemptStarted):
            assert numbers[event.call] not in answered


def the_ejected_are_left_alone(kept: Kept) -> None:
    """Outside panic, unless nobody is left who is known to serve and whom the call has not tried."""
    out: dict[str, bool] = {}
    proven: set[str] = set()
    tried: dict[str, set[str]] = defaultdict(set)
    panic = False
    for event in kept.told:
        match event:
            case events.ReplicaEjected(replica=replica, unreachable=unreachable):
                out[replica] = unreachable
                proven.discard(replica)
            case events.ReplicaReturned(replica=replica):
                out.pop(replica, None)
            case events.PanicChanged(on=on):
                panic = on
            case events.AttemptEnded(replica=replica, status=200) if replica not in out:
                proven.add(replica)
            case events.Picked(replica=replica, call=call):
                if replica in out and not panic:
                    assert not proven - tried[call] - {replica}, (event, out)
                tried[call].add(replica)


def budgets_are_kept(kept: Kept, settings: mlb.BalancerConfig, schedule: Schedule) -> None:
    """Hedges in tokens, retries in calls, over the whole; unsent failovers one a replica and call."""
    picked = {(e.call, e.attempt): e for e in kept.told if isinstance(e, events.Picked)}
    hedged = {(e.call, e.attempt) for e in kept.told if isinstance(e, events.HedgeStarted)}
    unsent = Counter(
        (e.call, e.replica)
        for e in kept.told
        if isinstance(e, events.AttemptEnded) and e.failure in ("connect", "connect_timeout")
    )
    assert set(unsent.values()) <= {1}
    hedging, retries = settings.hedging, settings.retries
    tokens = {key: e.prompt_tokens for key, e in picked.items()}
    # What is not streamed is sent with its answer's tokens as well.
    answers = sum(call.output_tokens for call in schedule.calls if not call.stream)
    sent_tokens = answers + sum(tokens[key] for key in tokens if key not in hedged)
    calls = len({call for call, _ in picked})
    spent = sum(tokens[key] for key in hedged)
    assert spent <= hedging.reserve_tokens + hedging.budget_ratio * sent_tokens
    ended = {(e.call, e.attempt): e for e in kept.told if isinstance(e, events.AttemptEnded)}
    again = 0
    for call, attempt in picked:
        before = ended.get((call, attempt - 1))
        if attempt > 1 and (call, attempt) not in hedged and before is not None:
            again += (call, before.replica) not in unsent
    assert again <= retries.reserve_calls + retries.budget_ratio * calls + 1


def holds(schedule: Schedule) -> Counter[str]:
    """Play a schedule in virtual time and check all of it. How many of each event there were."""
    return run(_play, schedule)
