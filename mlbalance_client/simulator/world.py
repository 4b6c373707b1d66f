"""The product's core in virtual time, on the model's engines: the same objects that run live."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import floor, inf
from random import Random

from mlbalance_client.core.admission import Admission, AdmissionSettings, Waiting
from mlbalance_client.core.cost import MovingMean
from mlbalance_client.core.fingerprint import BLOCK_BYTES, Fingerprint, fingerprint
from mlbalance_client.core.fleet import Fleet, FleetSettings, Pick
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.core.load.room import Turns, part, unit_of
from mlbalance_client.core.model import Demand, Replica, ReplicaId, Usage, Verdict
from mlbalance_client.core.placement.freshening import FRESH_S, whom_to_ask
from mlbalance_client.core.placement.published import PublishedPrefixes

from .model.engine import Engine
from .model.measures import CallRecord
from .model.replay import replay
from .model.spec import Emission, EmissionKind, EngineSpec, Job
from .model.traces import BYTES_PER_TOKEN, Trace, TraceCall, prompt_text

Fingerprints = Callable[[TraceCall], Fingerprint]


def fingerprint_of(call: TraceCall) -> Fingerprint:
    """Of the very bytes that an OpenAI chat body with the call's text gives."""
    return fingerprint(f"model\nsim\nuser\n{prompt_text(call)}\n".encode())


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a call's options say: see CallOptions."""

    priority: int = 0
    tenant: str | None = None
    deadline_s: float = inf


NO_WISHES = Wishes()


class Clients:
    """``count`` independent clients of one fleet; each call goes through a random one of them.

    ``admission``: calls wait in their clients when all replicas are full, else none ever is. ``wishes``: of each call.
    """

    def __init__(
        self,
        settings: FleetSettings,
        replicas: int,
        count: int,
        seed: int,
        fingerprints: Fingerprints = fingerprint_of,
        told: Told | None = None,
        admission: AdmissionSettings | None = None,
        wishes: Callable[[TraceCall], Wishes] = lambda call: NO_WISHES,
    ) -> None:
        self._rng = Random(seed)
        published = PublishedPrefixes()
        self.fleets = [
            Fleet(settings, Random(self._rng.random()), published=published, windows=admission)
            for _ in range(count)
        ]
        self.queues = [] if admission is None else [Admission(admission, fleet) for fleet in self.fleets]
        self._wishes = wishes
        self._waiting: dict[Waiting, Job] = {}
        self._placed: list[tuple[Job, int]] = []
        self._refused: list[tuple[Job, str]] = []
        self._now = 0.0
        for fleet, queue in zip(self.fleets, self.queues, strict=False):
            fleet.on_stir = partial(self._stirred, queue)
        self._fingerprints = fingerprints
        self._told = told
        self._phases = [self._rng.random() if told and told.jittered else 0.0 for _ in range(count)]
        self._picks: dict[str, tuple[Pick, Job]] = {}
        for fleet in self.fleets:
            fleet.update(Replica(ReplicaId(f"replica-{i}"), f"http://replica-{i}") for i in range(replicas))
        self._heard: list[list[float]] = [[-inf] * replicas for _ in range(count)]
        if told is not None and told.prefixes:
            told.publish_to(published)
            for fleet in self.fleets:
                for i, holder in enumerate(told.holders):
                    fleet.publishes(ReplicaId(f"replica-{i}"), holder)

    def place(self, now: float, call: TraceCall, job: Job) -> int | None:
        """Pick and charge, or wait, as a live client does."""
        self._now = now
        number = int(self._rng.random() * len(self.fleets))
        fleet = self.fleets[number]
        fingerprint = self._fingerprints(call)
        if self._told is not None:
            self._told.sent(fingerprint, job)
            self._hear(number, now)
        demand = fleet.demand(
            fingerprint,
            text_bytes=call.prompt_tokens * BYTES_PER_TOKEN,
            output_limit=call.output_tokens,
            model="sim",
            route="openai.chat",
        )
        if self._told is not None and self._told.asks_tokens:
            self._ask(self._told, fleet, self._heard[number], demand, now)
        if not self.queues:
            return self._sent(fleet.pick(demand, now), job)
        queue, wishes = self.queues[number], self._wishes(call)
        pick = queue.try_pick(demand, now, priority=wishes.priority)
        if pick is not None:
            return self._sent(pick, job)
        waiting = queue.waiting(
            demand,
            now,
            deadline=now + wishes.deadline_s,
            priority=wishes.priority,
            tenant=wishes.tenant,
        )
        self._waiting[waiting] = job
        self._note(queue.enter(waiting, now))
        return None

    @staticmethod
    def _ask(told: Told, fleet: Fleet, heard: list[float], demand: Demand, now: float) -> None:
        decision = fleet.choose(demand, now)
        places = whom_to_ask(
            decision,
            demand.prompt_tokens,
            told.asks_tokens,
            lambda place: _ASKING_S if now - heard[place] > FRESH_S else 0.0,
        )
        for place in places:
            heard[place] = now
            fleet.hear(ReplicaId(f"replica-{place}"), told.now(place, now))

    def _sent(self, pick: Pick, job: Job) -> int:
        self._picks[job.id] = pick, job
        return int(pick.replica.id.removeprefix("replica-"))

    def _hear(self, number: int, now: float) -> None:
        assert self._told is not None
        fleet, heard = self.fleets[number], self._heard[number]
        for i, report in enumerate(self._told.newest(now, self._phases[number])):
            if report is not None and report.at > heard[i]:
                heard[i] = report.at
                fleet.hear(ReplicaId(f"replica-{i}"), self._told.to(number, len(self.fleets), report, i))

    # -- calls that wait ----------------------------------------------------------------------------------------

    def next_at(self, now: float) -> float:
        """When a queue is to be looked at."""
        return min((queue.next_at() for queue in self.queues if queue), default=inf)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._now = now
        for number, queue in enumerate(self.queues):
            if queue:
                if self._told is not None:
                    self._hear(number, now)
                self._note(queue.tick(now))

    def placed(self) -> list[tuple[Job, int]]:
        """Who goes to which engine now."""
        placed, self._placed = self._placed, []
        return placed

    def refused(self) -> list[tuple[Job, str]]:
        """Who is given up, and why."""
        refused, self._refused = self._refused, []
        return refused

    def _stirred(self, queue: Admission, place: int) -> None:
        if queue:
            self._note(queue.pull(self._now, place))

    def _note(self, ended: Sequence[Waiting]) -> None:
        for waiting in ended:
            job = self._waiting.pop(waiting)
            if waiting.pick is not None:
                self._placed.append((job, self._sent(waiting.pick, job)))
            else:
                self._refused.append((job, type(waiting.error).__name__))

    def look(self, now: float) -> None:
        """Reports come, to those who wait for them."""
        if self._told is None:
            return
        self._now = now
        self._told.look(now)
        for number, queue in enumerate(self.queues):
            if queue:
                self._hear(number, now)

    def heard(self, emission: Emission) -> None:
        """Tokens as they come, to readers who wait for them, and ends with an engine's usage figures."""
        self._now = emission.t
        pick, job = self._picks[emission.job_id]
        if emission.kind is EmissionKind.FIRST:
            pick.first_content(emission.t)
        elif emission.kind is EmissionKind.TOKENS:
            pick.piece(float("-inf"), emission.t)
        elif emission.kind is EmissionKind.FINISHED:
            usage = Usage(job.prompt_tokens, emission.cached_tokens, emission.tokens)
            if self._told is not None:
                self._told.computed(job.prompt_tokens - emission.cached_tokens)
            pick.settle(Verdict.OK, emission.t, usage)
            del self._picks[emission.job_id]


class Told:
    """What engines say of themselves in virtual time, as far as ``tell`` puts it into a report.

    Each client hears of each engine every ``every_s`` seconds, in a phase of its own if ``jittered``. ``prefixes``:
    also what is in their caches. ``asks_tokens``: how many uncached tokens a call needs to ask before it is placed;
    0: it never does.
    """

    def __init__(
        self,
        tell: Callable[[Engine, float], LoadReport],
        every_s: float,
        *,
        prefixes: bool = False,
        jittered: bool = True,
        asks_tokens: int = 0,
    ) -> None:
        self.tell = tell
        self.every_s = every_s
        self.prefixes = prefixes
        self.jittered = jittered
        self.asks_tokens = asks_tokens
        self.tick_s = every_s / (_PHASES if jittered else 1)
        self.holders: list[int] = []
        self._published: PublishedPrefixes | None = None
        self._engines: Sequence[Engine] = ()
        self._history: deque[tuple[float, list[LoadReport]]] = deque(maxlen=_PHASES + 1)
        self._chains: dict[int, tuple[int, ...]] = {}
        self._blocks: list[set[int]] = []
        self._usual_tokens = MovingMean(_STEP)
        self._turns: list[Turns] = []

    def of(self, engines: Sequence[Engine]) -> None:
        """Whose state is told."""
        self._engines = engines
        self._blocks = [set() for _ in engines]
        self._turns = [Turns(seed=place * _APART) for place in range(len(engines))]

    def publish_to(self, table: PublishedPrefixes) -> None:
        """The table that all clients of the process share."""
        self._published = table
        self.holders = [table.enrol() for _ in self._engines]

    def sent(self, fingerprint: Fingerprint, job: Job) -> None:
        """Which chains an engine's blocks stand for: those that end in them."""
        if self.prefixes:
            per = job.block_tokens * BYTES_PER_TOKEN // BLOCK_BYTES
            for i, block in enumerate(job.blocks):
                self._chains.setdefault(block, fingerprint.chain[i * per : (i + 1) * per])

    def computed(self, tokens: int) -> None:
        """A call had so many prompt tokens to compute."""
        self._usual_tokens.add(tokens)

    def look(self, now: float) -> None:
        """Take down the state of all engines, if it is time."""
        if self._history and now < self._history[-1][0] + self.tick_s:
            return
        self._history.append((now, [self.tell(engine, now) for engine in self._engines]))
        if self._published is None:
            return
        for i, engine in enumerate(self._engines):
            held, before = engine.cache.blocks, self._blocks[i]
            if changed := held ^ before:
                added = [c for block in changed - before for c in self._chains[block]]
                dropped = [c for block in changed & before for c in self._chains[block]]
                self._published.change(self.holders[i], added, dropped)
                self._blocks[i] = set(held)

    def now(self, place: int, now: float) -> LoadReport:
        """What an engine answers whoever asks it now."""
        return self.tell(self._engines[place], now)

    def to(self, client: int, clients: int, report: LoadReport, place: int) -> LoadReport:
        """The report of a replica as one of ``clients`` gets it: of room for all, its share."""
        low, high = client / clients, (client + 1) / clients
        cuts = self._turns[place].cuts(report.at)
        requests, tokens = report.free_requests, report.free_tokens
        if requests is not None:
            report = replace(report, free_requests=part(requests, low, high, cuts))
        if tokens is not None:
            unit = unit_of(tokens, report.prefill_tokens or 0, int(self._usual_tokens.value))
            report = replace(report, free_tokens=part(tokens, low, high, cuts, unit))
        return report

    def newest(self, now: float, phase: float) -> list[LoadReport] | list[None]:
        """What a client of this phase has heard last."""
        last = floor(now / self.every_s - phase) * self.every_s + phase * self.every_s
        for at, reports in reversed(self._history):
            if at <= last:
                return reports
        return [None] * len(self._engines)


_PHASES = 8
# Replicas' turns are not in step.
_APART = 1_000_003
_STEP = 0.02
_ASKING_S = 0.003
_TICK_S = 0.1


def simulate(
    trace: Trace,
    settings: FleetSettings,
    *,
    replicas: int = 8,
    clients: int = 1,
    seed: int = 0,
    spec: EngineSpec | None = None,
    fingerprints: Fingerprints = fingerprint_of,
    told: Told | None = None,
    admission: AdmissionSettings | None = None,
    wishes: Callable[[TraceCall], Wishes] = lambda call: NO_WISHES,
    watch: Callable[[Sequence[Engine], float], None] | None = None,
) -> tuple[list[CallRecord], Sequence[Engine]]:
    """Replay a trace through the product's own clients; the records and the engines, for their true state.

    ``watch`` is shown the engines ten times a second, or as often as reports are made.
    """
    engines = [Engine(spec or EngineSpec(), emit_tokens=True) for _ in range(replicas)]
    if told is not None:
        told.of(engines)
    placer = Clients(settings, replicas, clients, seed, fingerprints, told, admission, wishes)
    queues = placer if admission is not None else None
    every_s = _TICK_S if told is None else told.tick_s

    def at(now: float) -> None:
        placer.look(now)
        if watch is not None:
            watch(engines, now)

    if told is None and watch is None:
        return replay(trace, engines, placer, queues=queues), engines
    return replay(trace, engines, placer, at=at, every_s=every_s, queues=queues), engines
