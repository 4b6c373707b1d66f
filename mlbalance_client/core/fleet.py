"""All that one client believes of its replicas, and the one place where a pick is made and charged.

``pick`` chooses and charges in one synchronous breath; the ``Pick`` it returns is the only way to tell what became
of it. Places are dense small integers, one a replica, reused after it is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from itertools import repeat
from math import inf
from random import Random
from typing import Protocol

from ..errors import NoReplicas
from .attempts import Others
from .cost import Costs, PrefillRates, prefill_units
from .fingerprint import BLOCK_BYTES, Fingerprint
from .health.fitness import Fitness, News, unheard
from .health.outlier import Failure, Outliers
from .health.pushback import Pushback
from .health.slow_start import SlowStart
from .load.company import Company
from .load.ledger import Charge, Ledger
from .load.pace import Stream
from .load.report import LoadReport
from .load.view import Guess, LoadView
from .load.windows import Windows, WindowSettings
from .model import Demand, Replica, ReplicaId, ReplicaState, Usage, Verdict
from .placement.picker import Decision, PickingSettings, PrefixTokens, Sight, Source, policy
from .placement.pool import Pool
from .placement.prefix_index import PrefixIndex
from .placement.published import PublishedPrefixes, Publishers
from .placement.serving import Serving

# Engines cache in blocks of their own size, so that a little more may be a hit than the blocks of text tell.
_SLACK_BLOCKS = 2
# An error names so many replicas at most.
_NAMED = 3
_OWN_RECORD = (Source.RECORD, Source.SESSION)
# Below this no figure of a call's time tells a slow replica from a small call.
_FLOOR_S = 0.05
# Of a time of which this client's own lateness may be more than so much, nothing is its replica's for certain.
_OWN_SHARE = 0.25
# Usual for one of many sequences in a batch on a data-centre GPU.
_DECODE_S_PER_TOKEN = 0.02


class FleetSettings(PickingSettings, Protocol):
    """What the fleet reads of the configuration beyond the picker's knobs."""

    @property
    def policy(self) -> str: ...
    @property
    def cache_tokens(self) -> int: ...
    @property
    def prefill_tokens_per_s(self) -> float: ...
    @property
    def bytes_per_token(self) -> float: ...
    @property
    def expected_output_tokens(self) -> int: ...
    @property
    def residual_s(self) -> float: ...
    @property
    def others_memory_s(self) -> float: ...
    @property
    def zone(self) -> str | None: ...
    @property
    def cross_zone_penalty_s(self) -> float: ...
    @property
    def degraded_penalty_s(self) -> float: ...
    @property
    def spill_below_share(self) -> float: ...


@dataclass(frozen=True, slots=True)
class MembershipChange:
    """What an update changed, by id."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def _in_time(now: float) -> float:
    """A client that sees at once what comes."""
    return 0.0


class Pick:
    """One chosen and charged replica; tell it what became of the attempt, in any order, as often as you like."""

    __slots__ = (
        *("_charge", "_fleet", "_guess", "_on_trial", "_stream"),
        *("decision", "demand", "held", "held_session", "place", "replica"),
    )

    def __init__(
        self,
        fleet: Fleet,
        replica: Replica,
        demand: Demand,
        decision: Decision,
        charge: Charge,
        guess: Guess,
        on_trial: float | None,
        held: int,
        *,
        held_session: bool,
    ) -> None:
        """``held``: how many blocks of its prompt had been sent there before; ``held_session``: any of its session."""
        self._fleet = fleet
        self.held = held
        self.held_session = held_session
        self._on_trial = on_trial
        self._charge = charge
        self._guess = guess
        self._stream: Stream | None = None
        self.place = decision.chosen.place
        self.replica = replica
        self.demand = demand
        self.decision = decision

    def first_content(self, now: float) -> None:
        """The replica showed its first content: its prefill is done."""
        charge = self._charge
        if not charge.settled and charge.first_content_at is None:
            self.answered(now)
            came = self._came(now)
            self._fleet.ledger.first_content(charge, came)
            if charge.account.open:  # else the replica is gone and its place may be another's
                self._stream = self._fleet.load.pace.stream(self.place, now)
                self._fleet.fitness.outliers.silences.begun(self.place, now - charge.at, now)
                self._took(now - charge.at, 0.0, now)
                self._fleet.begun_tokens += self.demand.tokens
                self._fleet.answered(self.place, charge, came)
                self._fleet.stir(self.place)

    def answered(self, now: float) -> None:
        """The replica answers the call, whatever it says: it can be reached."""
        if self._charge.account.open:
            self._fleet.fitness.answered(self.place, self._charge.at, now)

    def unnumbered(self) -> None:
        """The call bears no number by which its replica could acknowledge it."""
        self._charge.number = 0

    def numbered(self, number: int) -> None:
        """The call bears this number: reports that name calls count it from there on."""
        self._charge.number = number

    def untold(self) -> None:
        """Nobody will say when its first content comes."""
        self._fleet.ledger.untold(self._charge)

    def piece(self, asked: float, arrived: float) -> None:
        """More of a stream, for which its reader asked at ``asked``, came at ``arrived``."""
        account = self._charge.account
        if self._stream is not None and account.open:
            self._stream.piece(asked, arrived, alone=not account.queue)

    def failed(self, now: float, retry_after_s: float | None = None, kind: Failure = Failure.ERROR) -> None:
        """The replica failed the call, which speaks against it; when it will take calls again, if it said so."""
        if self._charge.account.open:
            if kind is Failure.PUSHBACK:
                self.answered(now)
            fitness = self._fleet.fitness
            on_trial = self._on_trial is not None and fitness.slow_start.on_trial(self.place)
            fitness.failed(self.place, kind, now, retry_after_s, on_trial=on_trial)

    def lacks_model(self, now: float) -> None:
        """The replica has answered that it does not have the call's model, which says nothing against it otherwise."""
        if self._charge.account.open:
            self.answered(now)
            self._fleet.fitness.absences.said(self.place, self.demand.model, now)

    def silent(self, now: float, since: float | None = None, *, patient: bool = True) -> None:
        """The call is slow, and nothing has come of it; nor was any other begun there since then, as far as that tells.

        ``patient``: that is no wonder of a replica that starts slowly, unless it was silent before.
        """
        fitness, charge = self._fleet.fitness, self._charge
        starts = self.place in fitness.slow_start and not fitness.outliers.silences.unheard(self.place)
        if charge.account.open and not (patient and starts):
            began = charge.at if since is None else since
            fitness.eject(fitness.outliers.silent(self.place, charge, began, now), now)

    @property
    def mute(self) -> bool:
        """Whether its replica has begun no answer since the call was sent, though others have."""
        charge = self._charge
        return charge.account.open and self._fleet.fitness.outliers.silences.mute(self.place, charge.at)

    def cut_short(self, now: float) -> None:
        """The call was given up after it had stood for so long without content: it would have taken longer yet.

        Its prompt is not believed to be there: what has not begun to answer may never have read it.
        """
        if self._charge.account.open and self._charge.first_content_at is None:
            self._fleet.forget_prompt(self)
            self._took(now - self._charge.at, 0.0, now, at_least=True)

    def settle(self, verdict: Verdict, now: float, usage: Usage | None = None) -> None:
        """The attempt is over."""
        charge = self._charge
        if charge.settled:
            return
        if self._stream is not None:
            self._stream.close()
        if self._on_trial is not None and charge.account.open:
            self._fleet.fitness.slow_start.ended(self.place, self._on_trial)
        if self.demand.blind and verdict is Verdict.OK and charge.account.open:
            tokens = self.demand.output_tokens if usage is None else usage.output_tokens or 0
            self._took(now - charge.at, tokens * _DECODE_S_PER_TOKEN, now)
        self._fleet.on_settled(self, charge, self._guess, verdict, now, usage)

    def _came(self, now: float) -> float:
        """When what is seen now has come, if this client is late itself."""
        return max(self._charge.at, now - self._fleet.late_s(now))

    def _took(self, took_s: float, decode_s: float, now: float, *, at_least: bool = False) -> None:
        """Told as a multiple of what the call would need at a replica that is as fast as its weight says."""
        fleet, place, chosen = self._fleet, self.place, self.decision.chosen
        fitness = fleet.fitness
        if fitness.slow_start.active and place in fitness.slow_start:
            return
        unsure = fleet.late_s(now) > _OWN_SHARE * took_s
        work_s = (chosen.waiting_s + chosen.own_s) * fleet.rates.relative(place)
        multiple = (took_s + _FLOOR_S) / (work_s + decode_s + _FLOOR_S)
        fitness.eject(fitness.outliers.timed(place, multiple, now, at_least=at_least, unsure=unsure), now)


class Fleet:
    """The replicas as one client sees them. Not thread-safe: one event loop (or simulator) owns it."""

    def __init__(
        self,
        settings: FleetSettings,
        rng: Random,
        pushback: Pushback | None = None,
        *,
        expiry_s: float = 5.0,
        published: PublishedPrefixes | None = None,
        windows: WindowSettings | None = None,
        outliers: Outliers | None = None,
        slow_start: SlowStart | None = None,
        tell: Callable[[News], None] = unheard,
    ) -> None:
        """``windows``: how much a replica may be sent; without, none is ever full.

        ``begun_tokens``: of all calls so far that have begun to be answered, or ended before, as they were estimated.
        """
        self._settings = settings
        self._rng = rng
        self._policy = policy(settings.policy)
        self._replicas: dict[int, Replica] = {}
        self._places: dict[ReplicaId, int] = {}
        self.nobody = "discovery has not found any"
        self.costs = Costs(settings.bytes_per_token, settings.expected_output_tokens, settings.knee_tokens)
        self.ledger = Ledger(settings.residual_s)
        blocks = int(settings.cache_tokens * settings.bytes_per_token / BLOCK_BYTES)
        self.index = PrefixIndex(max(64, blocks))
        self.rates = PrefillRates()
        self.company = Company()
        self.load = LoadView(
            self.ledger, settings.others_memory_s, expiry_s, self.rates.__getitem__, self.company
        )
        self.publishers = Publishers(PublishedPrefixes() if published is None else published)
        self.fitness = Fitness(
            self._replicas,
            self._places,
            rng,
            expiry_s,
            pushback=pushback,
            outliers=outliers,
            slow_start=slow_start,
            tell=tell,
        )
        self.fitness.forget = self._forget_speed
        self.serving = Serving(
            self._replicas, self._places, settings.spill_below_share, lambda: self.fitness.outliers.unfit
        )
        self.fitness.changed = self.serving.out_changed
        self.fitness.streamed_at = self.load.pace.last_at
        self.fitness.idle = lambda place: not self.ledger.accounts[place].queue
        self.windows = (
            None if windows is None else Windows(windows, self.ledger, self.load, self.company, expiry_s, rng)
        )
        self.begun_tokens = 0
        self.on_stir: Callable[[int], None] | None = None
        self.late_s: Callable[[float], float] = _in_time
        self._sight = Sight(
            self.ledger,
            self.load,
            self.index,
            self.publishers,
            self.company,
            self.rates,
            {},
            settings,
            self.fitness.slow_start,
        )

    @property
    def compares(self) -> bool:
        """Whether the policy weighs replicas by what they report."""
        return isinstance(self._policy, PrefixTokens)

    @property
    def replicas(self) -> tuple[Replica, ...]:
        """All replicas known now."""
        return tuple(self._replicas.values())

    def update(self, replicas: Iterable[Replica], now: float = 0.0) -> MembershipChange:
        """Apply a full list as a diff by id: what stays keeps all that was learned of it; who joins starts slowly."""
        wanted = {replica.id: replica for replica in replicas}
        removed = [id_ for id_ in self._places if id_ not in wanted]
        added = [id_ for id_ in wanted if id_ not in self._places]
        changed = [
            id_
            for id_, place in self._places.items()
            if id_ in wanted and wanted[id_] != self._replicas[place]
        ]
        joins = any(id_ in wanted for id_ in self._places)  # else all are new, which none is then
        for id_ in removed:
            self._remove(self._places.pop(id_))
        free = (place for place in range(len(wanted)) if place not in self._replicas)
        for id_ in added:
            self._places[id_] = place = next(free)
            self._replicas[place] = wanted[id_]
            self.fitness.joined(place, now, cold=joins)
        for id_ in changed:
            self._replicas[self._places[id_]] = wanted[id_]
        change = MembershipChange(tuple(added), tuple(removed), tuple(changed))
        if change:
            self._rebuild()
            if self.windows is not None:
                self.windows.limit.members(len(self._replicas))
            self.fitness.members_changed(now)
        return change

    def demand(
        self,
        fingerprint: Fingerprint,
        *,
        text_bytes: int,
        extra_tokens: int = 0,
        output_limit: int | None = None,
        model: str | None = None,
        route: str = "",
        session: int | None = None,
        prompt_tokens: int | None = None,
        blind: bool = False,
        replayable: bool = True,
    ) -> Demand:
        """A demand whose tokens are estimated by what was learned of the model and route.

        ``prompt_tokens``: the caller's own figure, instead of an estimate.
        """
        if prompt_tokens is None:
            prompt_tokens = int(text_bytes / self.costs.ratio(model).value) + extra_tokens
        output_tokens = self.costs.expected_output(model, route, output_limit)
        return Demand(
            fingerprint, max(1, prompt_tokens), output_tokens, text_bytes, extra_tokens,
            model, route, session, blind, replayable,
        )  # fmt: skip

    def pick(
        self, demand: Demand, now: float, excluded: Collection[ReplicaId] = (), *, number: int = 0
    ) -> Pick:
        """Choose a replica and charge it, in one breath; one that is full only if all are.

        ``excluded``: ids not to go to again. ``number``: what replicas acknowledge the attempt by. Raises NoReplicas
        if nobody (else) serves the call.
        """
        self.ledger.sweep(now)
        return self.take(self.choose(demand, now, excluded), demand, now, number=number)

    def try_pick(
        self,
        demand: Demand,
        now: float,
        excluded: Collection[ReplicaId] = (),
        *,
        number: int = 0,
        urgent: bool = False,
    ) -> Pick | None:
        """The same, but None if all are full; for an ``urgent`` call, if the best of them takes no such."""
        self.ledger.sweep(now)
        pool, unwilling = self._open_pool(demand, excluded, now)
        decision, room = self._with_room(pool, unwilling, demand, now, ordinary=not urgent)
        if urgent:
            room = self.takes_urgent(decision.chosen.place, now)
        return self.take(decision, demand, now, number=number) if room else None

    def take(self, decision: Decision, demand: Demand, now: float, *, number: int = 0) -> Pick:
        """Charge the replica that was chosen in this same breath."""
        chosen = decision.chosen
        self._policy.taken()
        guess = self.load.guess(chosen.place, now)
        charge = self.ledger.charge(
            chosen.place,
            prefill_tokens=max(1, demand.prompt_tokens - chosen.hit_tokens),
            decode_tokens=demand.output_tokens,
            prefill_s=chosen.own_s,
            now=now,
            number=number,
            blind=demand.blind,
        )
        starting = self.fitness.slow_start
        if self.windows is not None:
            self.windows.charged(chosen.place, charge, starting=starting.active and chosen.place in starting)
        held = self.index.record(chosen.place, demand.fingerprint.chain)
        session = demand.session
        held_session = session is not None and self.index.record(chosen.place, (session,)) == 1
        on_trial = starting.taken(chosen.place) if starting.active else None
        return Pick(
            self,
            self._replicas[chosen.place],
            demand,
            decision,
            charge,
            guess,
            on_trial,
            held,
            held_session=held_session,
        )

    def others(self, demand: Demand, excluded: Collection[ReplicaId], now: float) -> Others:
        """Who serves the call besides ``excluded``."""
        barred = self._barred(excluded)
        unwilling = barred | self.fitness.unwilling(demand.model, now, replayable=demand.replayable)
        left = Others.NOBODY
        for pool in self.serving.pools(demand.model):
            if pool.mask & ~unwilling:
                return Others.WILLING
            if pool.mask & ~barred:
                left = Others.RESTING
        return left

    def alternative(self, demand: Demand, excluded: Collection[ReplicaId], now: float) -> Decision | None:
        """What ``choose`` would say without ``excluded``, if it is one that takes calls, has shown so, and has room."""
        self.ledger.sweep(now)
        unwilling = self._barred(excluded) | self.fitness.unwilling(demand.model, now, replayable=False)
        for pool in self.serving.pools(demand.model):
            if pool.mask & ~unwilling:
                decision, room = self._with_room(pool, unwilling, demand, now, ordinary=False)
                return decision if room else None
        return None

    def opens_in_s(self, demand: Demand, now: float) -> float:
        """Seconds until somebody who serves the call does not rest; 0 if somebody does not, or nobody serves it."""
        places = {place for pool in self.serving.pools(demand.model) for place in pool.places}
        return min((self.fitness.pushback.rests_s(place, now) for place in places), default=0.0)

    def choose(self, demand: Demand, now: float, excluded: Collection[ReplicaId] = ()) -> Decision:
        """What ``pick`` would choose, without charging anything."""
        return self.judge(demand, now, excluded)[0]

    def judge(
        self, demand: Demand, now: float, excluded: Collection[ReplicaId] = (), *, ordinary: bool = True
    ) -> tuple[Decision, bool]:
        """What ``choose`` says, and whether anybody has room for the call."""
        pool, unwilling = self._open_pool(demand, excluded, now)
        return self._with_room(pool, unwilling, demand, now, ordinary=ordinary)

    def _with_room(
        self, pool: Pool, unwilling: int, demand: Demand, now: float, *, ordinary: bool = True
    ) -> tuple[Decision, bool]:
        """The best of those that are not shut, and whether anybody has room; else the best of all.

        One that has enough to do may be the best nevertheless, for its prefix, while calls need not wait.
        ``ordinary``: the limit on own calls holds, and room that is kept for urgent ones is none.
        """
        decision = self._choose(pool, unwilling, demand, now)
        chosen, windows = decision.chosen, self.windows
        if windows is None:
            return decision, True
        if ordinary and self.opens_for_all_in_s(now) > 0.0:
            return decision, False
        most_s = windows.most_s(now, ordinary=ordinary)
        if not windows.full(chosen.place, chosen.waiting_s, now, most_s):
            return decision, True
        for tier in self.serving.pools(demand.model):
            willing = [place for place in tier.places if not unwilling >> place & 1]
            standing = self.load.all_waiting_s(willing, now)
            if all(map(windows.full, willing, standing, repeat(now), repeat(most_s))):
                continue
            shut = sum(1 << place for place in willing if windows.shut(place, now))
            if tier is pool and not shut >> chosen.place & 1:
                return decision, True
            return self._choose(tier, unwilling | shut, demand, now), True
        return decision, False

    def _choose(self, pool: Pool, barred: int, demand: Demand, now: float) -> Decision:
        if self.fitness.slow_start.active:
            self.fitness.slow_start.ramp(now)
        ratio = self.costs.ratio(demand.model).value
        self._sight.tokens_per_block = BLOCK_BYTES / ratio
        decision = self._policy.choose(self._sight, demand, pool, barred, now, self._rng)
        decision.barred = barred
        return decision

    def answered(self, place: int, charge: Charge, now: float) -> None:
        """A call's first content has come."""
        starting = self.fitness.slow_start
        if self.windows is not None and not (starting.active and place in starting):
            self.windows.answered(charge, now, judged=self.rates.known)

    # -- for calls that wait ------------------------------------------------------------------------------------

    def stir(self, place: int) -> None:
        """Something has changed at a replica, by which it may have got room."""
        if self.on_stir is not None:
            self.on_stir(place)

    def pulls(self, place: int, now: float, *, overload: bool) -> bool:
        """Whether the replica at ``place`` has room for a call that waits."""
        return place in self._replicas and (
            self.windows is None or self.windows.pulls(place, now, overload=overload)
        )

    def opens_for_all_in_s(self, now: float) -> float:
        """In how many seconds this client may send one more, wherever it be; infinite: it is not known."""
        return 0.0 if self.windows is None else self.windows.opens_in_s(now - self.late_s(now))

    def waits(self, calls: int) -> None:
        """So many of this client's calls wait for room now."""
        if self.windows is not None:
            self.windows.limit.waits(calls)

    def urgent_comes(self, now: float) -> None:
        """A call that is more important than others comes."""
        if self.windows is not None:
            self.windows.urgent_comes(now)

    def takes_urgent(self, place: int, now: float) -> bool:
        """Whether there is room at ``place`` for a call that is more important than others who wait."""
        return place in self._replicas and (self.windows is None or self.windows.takes_urgent(place, now))

    def stands_s(self, demand: Demand, now: float, *, overload: bool) -> float:
        """How much work stands where an ordinary call that waits is sent to, at the least."""
        if self.windows is None:
            return 0.0
        barred = self.fitness.unwilling(demand.model, now, replayable=demand.replayable)
        serving = self._serving(demand)
        places = [place for place in serving if not barred >> place & 1] or serving
        standing = self.load.all_waiting_s(places, now)
        return min(self.windows.most_s(now, overload=overload), min(standing, default=0.0))

    def drains_in_s(self, now: float, place: int | None, *, overload: bool) -> float:
        """In how many seconds ``place``, or anybody, might have room by the mere passing of time."""
        if self.windows is None:
            return inf
        places = self._replicas if place is None else (place,)
        return min((self.windows.drains_in_s(each, now, overload=overload) for each in places), default=inf)

    def choose_among(
        self, mask: int, demand: Demand, now: float, excluded: Collection[ReplicaId] = ()
    ) -> Decision | None:
        """The best of the places in ``mask`` for a call; None if it may go to none of them."""
        try:
            _, unwilling = self._open_pool(demand, excluded, now)
        except NoReplicas:
            return None
        for pool in self.serving.pools(demand.model):
            if pool.mask & mask & ~unwilling:
                return self._choose(pool, unwilling | ~mask, demand, now)
        return None

    def nobody_for(self, demand: Demand, excluded: Collection[ReplicaId]) -> NoReplicas | None:
        """What is to be raised if nobody but ``excluded`` serves the call."""
        barred = self._barred(excluded)
        if any(pool.mask & ~barred for pool in self.serving.pools(demand.model)):
            return None
        return NoReplicas(self.serving.nobody(demand.model, excluded, self.nobody))

    def kept_from(self, demand: Demand, excluded: Collection[ReplicaId], now: float) -> str:
        """Why all replicas that serve the call are kept out, in words; empty if any of them is not."""
        barred, kept_out = self._barred(excluded), self.fitness.kept_out(demand.model, now)
        serving = [place for place in self._serving(demand) if not barred >> place & 1]
        if not serving or any(place not in kept_out for place in serving):
            return ""
        words = [f"of {self._replicas[place].id} {kept_out[place]}" for place in serving[:_NAMED]]
        if (more := len(serving) - _NAMED) > 0:
            words.append(f"and {more} more")
        return f": all are kept out, {'; '.join(words)}"

    def _serving(self, demand: Demand) -> list[int]:
        return [place for pool in self.serving.pools(demand.model) for place in pool.replicas]

    def own_s(self, demand: Demand) -> float:
        """Seconds of the call's whole prefill, nothing of it cached, at the quickest replica."""
        units = prefill_units(demand.prompt_tokens, demand.prompt_tokens, self._settings.knee_tokens)
        return units / max((self.rates[place] for place in self._replicas), default=1.0)

    def _open_pool(self, demand: Demand, excluded: Collection[ReplicaId], now: float) -> tuple[Pool, int]:
        """The first tier where somebody may be picked, and who of it may not."""
        pools, barred = self.serving.pools(demand.model), self._barred(excluded)
        for unfit in self.fitness.levels(demand.model, now, replayable=demand.replayable):
            for pool in pools:
                if pool.mask & ~(barred | unfit):
                    return pool, barred | unfit
        raise NoReplicas(self.serving.nobody(demand.model, excluded, self.nobody))

    def _barred(self, excluded: Collection[ReplicaId]) -> int:
        barred = 0
        for id_ in excluded:
            if (place := self._places.get(id_)) is not None:
                barred |= 1 << place
        return barred

    def hear(self, id_: ReplicaId, report: LoadReport, *, in_passing: bool = False) -> None:
        """A replica has told how it is, perhaps with an answer, in passing; one that is gone is not listened to.

        What cannot be is dropped here, whoever read it: of a report, or all of it.
        """
        if (place := self._places.get(id_)) is None or (report := report.sane()).empty:
            return
        if self.load.hear(place, report, in_passing=in_passing) and self.windows is not None:
            self.windows.hear(place, report)
        self.fitness.hear(place, report)
        if report.replica is not None:
            self.serving.name(place, report.replica, report.at)
        self.stir(place)

    def report(self, id_: ReplicaId, now: float) -> LoadReport | None:
        """The last report of a replica, unless it has expired."""
        place = self._places.get(id_)
        return None if place is None else self.load.report(place, now)

    def publishes(self, id_: ReplicaId, holder: int | None) -> None:
        """A replica's chains stand in the table of published prefixes as ``holder``; None: it publishes no more."""
        if (place := self._places.get(id_)) is None:
            return
        if holder is None:
            self.publishers.drop(place)
        else:
            self.publishers.assign(place, holder)

    def places(self) -> Iterable[tuple[int, Replica]]:
        """Every replica with its place."""
        return self._replicas.items()

    def cache_limit_tokens(self, place: int) -> int:
        """How much of its prompts this client believes a replica to keep, in tokens at the first-guess ratio."""
        return int(self.index.limit_blocks(place) * BLOCK_BYTES / self._settings.bytes_per_token)

    def on_settled(
        self, pick: Pick, charge: Charge, guess: Guess, verdict: Verdict, now: float, usage: Usage | None
    ) -> None:
        """Release what is left and learn from what the replica said it did."""
        if charge.settled:
            return
        open_ = charge.account.open
        self.ledger.settle(charge, verdict, now)
        if charge.first_content_at is None:
            self.begun_tokens += pick.demand.tokens  # it stands in nobody's way any more
        if verdict is Verdict.FAILED and charge.first_content_at is None and open_:
            self.forget_prompt(pick)
        if verdict is Verdict.OK and open_:
            if self.windows is not None:
                self.windows.ended(pick.place, charge)
            fitness = self.fitness
            if charge.first_content_at is None:
                fitness.outliers.silences.begun(pick.place, now - charge.at, now)
            fitness.served(pick.place, charge.at, now)
            fitness.absences.served(pick.place, pick.demand.model, charge.at)
            # Beside others' prefill, which own calls do not show, the pace of a sound replica is slow too.
            if (
                not self.company.delays
                and (lag := self.load.pace.lag(pick.place)) > 1.0
                and pick.place not in fitness.slow_start
            ):
                fitness.eject(fitness.outliers.lags(pick.place, lag, now), now)
            self._learn(pick, charge, guess, usage or Usage())
        if open_:
            self.stir(pick.place)

    def forget_prompt(self, pick: Pick) -> None:
        """A call's replica is not believed to hold more of its prompt, or session, than it did before."""
        demand = pick.demand
        self.index.forget(pick.place, demand.fingerprint.chain[pick.held :])
        if demand.session is not None and not pick.held_session:
            self.index.forget(pick.place, (demand.session,))

    def _learn(self, pick: Pick, charge: Charge, guess: Guess, usage: Usage) -> None:
        demand, chosen = pick.demand, pick.decision.chosen
        if charge.first_content_at is not None:
            prompt = usage.prompt_tokens or demand.prompt_tokens
            cached = chosen.hit_tokens if usage.cached_tokens is None else usage.cached_tokens
            units = prefill_units(max(1, prompt - cached), prompt, self._settings.knee_tokens)
            own_s = charge.waiting_s + units / self.rates[pick.place]
            stood_s = charge.first_content_at - charge.at
            self.load.work.learn(units, max(1, prompt - cached))
            if not charge.overtaken:  # else it waited for nobody's work
                self.load.explained(guess, stood_s, own_s)
                self.company.stood(stood_s, own_s)
            if charge.took_s is not None:
                self.rates.learn(pick.place, units, charge.took_s)
        if usage.output_tokens is not None:
            self.costs.learn_output(demand.model, demand.route, usage.output_tokens)
        if usage.prompt_tokens and demand.text_bytes:
            text_tokens = usage.prompt_tokens - demand.extra_tokens
            self.costs.ratio(demand.model).learn(demand.text_bytes, text_tokens)
        if usage.cached_tokens is None:
            return
        per_block = self._sight.tokens_per_block
        own = chosen.hit_tokens if chosen.source in _OWN_RECORD else 0
        self.company.found_cached(usage.cached_tokens, own + int(_SLACK_BLOCKS * per_block))
        if chosen.source is Source.RECORD:
            self.index.confirmed(
                pick.place,
                predicted_blocks=round(chosen.hit_tokens / per_block),
                seen_blocks=round(usage.cached_tokens / per_block),
            )

    def _remove(self, place: int) -> None:
        del self._replicas[place]
        self.ledger.close(place)
        self.index.drop(place)
        self.publishers.drop(place)
        self.load.drop(place)
        self.fitness.drop(place)
        if self.windows is not None:
            self.windows.drop(place)
        self.serving.drop(place)
        self.rates.drop(place)

    def _forget_speed(self, place: int) -> None:
        self.load.pace.drop(place)
        self.rates.forget(place)

    def _rebuild(self) -> None:
        settings, replicas = self._settings, self._replicas
        self.serving.members_changed()
        mean = sum(r.weight for r in replicas.values()) / max(1, len(replicas))
        for place, replica in replicas.items():
            self.rates.admit(place, settings.prefill_tokens_per_s * replica.weight / mean)
        self._sight.handicap_s = {
            place: penalty_s for place, r in replicas.items() if (penalty_s := self._penalty_s(r)) > 0
        }

    def _penalty_s(self, replica: Replica) -> float:
        settings = self._settings
        away = settings.zone is not None and replica.zone not in (None, settings.zone)
        degraded = replica.state is ReplicaState.DEGRADED
        return settings.cross_zone_penalty_s * away + settings.degraded_penalty_s * degraded
