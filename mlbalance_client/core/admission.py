"""Calls that find all windows full wait here, and a replica that gets room pulls the one that suits it best.

Of the first few in order it takes the call of which it holds the longest prefix; the first is passed over only so
often. What would wait longer than it may, by the pace at which calls have begun, is refused at once. Pure:
whoever runs it calls ``pull`` when something has changed, and ``tick`` at ``next_at``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import exp, inf
from typing import Protocol

from ..errors import BalancerError, DeadlineExceeded, NoCapacity, QueueTimeout
from .fleet import Fleet, Pick
from .model import Demand, ReplicaId
from .placement.picker import Decision
from .waiting_line import Waiter, WaitingLine

# Of how many in order the one that suits best is pulled, and how often the first may be passed over for it.
_LOOKED_AT = 8
_PASSED_AT_MOST = 8
# Reports that expire and rests that end are told by nobody.
_LOOK_AGAIN_S = 1.0
_SOONEST_S = 0.005
# Whether a wait of an hour will be over in time, no ten seconds tell: the memory is this part of the longest wait.
_MEMORY_SHARE = 1 / 6
_LEAST_MEMORY_S = 10.0
_TRUST_S = 1.0
_LEAST_UNITS = 1e-3
_LEAST_RETRY_S = 0.1


class AdmissionSettings(Protocol):
    """What admission reads of the configuration."""

    @property
    def engine_queue_s(self) -> float: ...
    @property
    def queue_max_calls(self) -> int: ...
    @property
    def queue_timeout_s(self) -> float: ...
    @property
    def ageing_s(self) -> float: ...
    @property
    def tenant_weights(self) -> Mapping[str, float]: ...


@dataclass(slots=True, eq=False, kw_only=True)
class Waiting(Waiter):
    """A call that waits. It ends once: with a ``pick``, which is charged, or an ``error``; or it leaves.

    ``crowded``: it waits for other calls of its client to begin, else for a replica that has room.
    """

    demand: Demand
    deadline: float = inf
    excluded: frozenset[ReplicaId] = frozenset()
    number: int = 0
    crowded: bool = field(default=False, init=False)
    pick: Pick | None = field(default=None, init=False)
    error: BalancerError | None = field(default=None, init=False)


class _Pace:
    """At which pace own calls begin to be answered while any wait, in units a second, of late.

    Not that at which they are pulled: engines first work off what they were sent before any waited.
    ``begun`` everywhere: what has begun so far, in units.
    """

    __slots__ = ("_begun", "_memory_s", "_seconds", "_since", "_units")

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._units = self._seconds = self._begun = 0.0
        self._since: float | None = None

    @property
    def untold(self) -> bool:
        """Whether it goes by nothing yet."""
        return not self._seconds

    def tell(self, pace: float) -> None:
        """What the fleet has shown otherwise."""
        self._units, self._seconds = pace * _TRUST_S, _TRUST_S

    def begins(self, begun: float, now: float) -> None:
        self._since, self._begun = now, begun

    def look(self, begun: float, now: float) -> None:
        """Note what has begun."""
        if self._since is not None and begun != self._begun:
            waited_s = max(0.0, now - self._since)
            keep = exp(-waited_s / self._memory_s)
            self._units = self._units * keep + begun - self._begun
            self._seconds = self._seconds * keep + waited_s
            self.begins(begun, now)

    def ends(self) -> None:
        self._since = None

    def value(self, begun: float, now: float) -> float | None:
        """None before it has been seen."""
        self.look(begun, now)
        waited_s = 0.0 if self._since is None else max(0.0, now - self._since)
        seconds = self._seconds + waited_s
        return self._units / seconds if self._units > _LEAST_UNITS and seconds >= _TRUST_S else None


class Admission:
    """One client's queue before ``fleet``."""

    def __init__(self, settings: AdmissionSettings, fleet: Fleet) -> None:
        self._settings = settings
        self._fleet = fleet
        self._shut = False
        self._looks_at = inf
        self._since = inf
        self._line: WaitingLine = WaitingLine(
            settings.queue_max_calls, settings.ageing_s, settings.tenant_weights
        )
        self._pace = _Pace(max(_LEAST_MEMORY_S, _MEMORY_SHARE * settings.queue_timeout_s))

    def __len__(self) -> int:
        return len(self._line)

    def try_pick(
        self,
        demand: Demand,
        now: float,
        excluded: Collection[ReplicaId] = (),
        *,
        priority: int = 0,
        number: int = 0,
    ) -> Pick | None:
        """A replica with room, charged; None if the call is to wait. Raises NoReplicas."""
        fleet = self._fleet
        if priority > 0:
            # Where none may wait, ordinary calls would be refused for the sake of that room.
            if self._settings.queue_max_calls:
                fleet.urgent_comes(now)
            if self._line.urgent:
                return None
            pick = fleet.try_pick(demand, now, excluded, number=number, urgent=True)
            if pick is None:
                places = self._places(fleet.takes_urgent, now, None)
                if decision := fleet.choose_among(places, demand, now, excluded):
                    pick = fleet.take(decision, demand, now, number=number)
            return pick
        return None if self._line else fleet.try_pick(demand, now, excluded, number=number)

    def waiting(
        self,
        demand: Demand,
        now: float,
        *,
        deadline: float = inf,
        priority: int = 0,
        tenant: str | None = None,
        again: bool = False,
        excluded: Collection[ReplicaId] = (),
        number: int = 0,
    ) -> Waiting:
        """A call that is to wait from now on, at most until its ``deadline`` (a time, as ``now``)."""
        return Waiting(
            units=float(demand.tokens),
            since=now,
            due=min(deadline, now + self._settings.queue_timeout_s),
            deadline=deadline,
            priority=priority,
            tenant=tenant,
            again=again,
            demand=demand,
            excluded=frozenset(excluded),
            number=number,
        )

    def enter(self, waiting: Waiting, now: float) -> list[Waiting]:
        """Get in line; those that have ended by it, itself perhaps among them."""
        if not self._line:
            if self._pace.untold and self._fleet.rates.known:
                self._pace.tell(self._rates())
            self._pace.begins(self._fleet.begun_tokens, now)
            self._since = now
        displaced = self._line.add(waiting, now)
        ended = []
        if displaced is not None:
            assert isinstance(displaced, Waiting)
            full = f"the queue of {len(self)} is full" if self._line else "none may wait"
            ended.append(self._refuse(displaced, now, f"{full} (admission.queue_max_calls)"))
        if displaced is not waiting:
            ended += self.pull(now)
            waiting.crowded = self._shut
            if waiting in self._line and (late_s := self._late_s(waiting, now)) > 0.0:
                # Before those in front have gone, another that comes has the place: an overload lasts.
                after_s = max(late_s, self._wait_s(waiting, now))
                self._line.remove(waiting)
                allowed_s = waiting.due - now
                ended.append(
                    self._refuse(waiting, now, f"it would wait longer than {allowed_s:.1f} s", after_s)
                )
        self._note_end()
        return ended

    def leave(self, waiting: Waiting) -> None:
        """Its caller waits no more; nothing if it has ended."""
        if waiting in self._line:
            self._line.remove(waiting)
            self._note_end()

    def pull(self, now: float, place: int | None = None) -> list[Waiting]:
        """Give what room there is, at ``place`` or anywhere; those who got it. Each pull leaves a charged pick."""
        ended: list[Waiting] = []
        self._fleet.ledger.sweep(now)  # no pick does while calls wait
        if self._shut:
            place = None  # it is not about one replica
        while self._line and (best := self._pulled(now, place)) is not None:
            ended.append(best)
        if self._line:
            looks_at = now + self._opens_in_s(now, place)
            # Where only one replica has changed, others have room no sooner than before.
            self._looks_at = looks_at if place is None else min(self._looks_at, looks_at)
        self._note_end()
        return ended

    def tick(self, now: float) -> list[Waiting]:
        """Time has passed: what room there is now, and who has waited too long."""
        ended = self.pull(now)
        kept: dict[tuple[str | None, frozenset[ReplicaId]], str] = {}
        for waiter in self._line.expired(now):
            assert isinstance(waiter, Waiting)
            self._line.remove(waiter)
            why = "earlier calls of this client had not begun" if waiter.crowded else "no replica had room"
            waited = f"{why} within {now - waiter.since:.1f} s"
            kind = waiter.demand.model, waiter.excluded
            if kind not in kept:
                kept[kind] = self._fleet.kept_from(waiter.demand, waiter.excluded, now)
            late = waiter.deadline <= waiter.due
            waiter.error = (
                DeadlineExceeded(waited + kept[kind])
                if late
                else QueueTimeout(f"{waited} (admission.queue_timeout_s){kept[kind]}")
            )
            ended.append(waiter)
        self._note_end()
        return ended

    def forsaken(self) -> list[Waiting]:
        """Those whom nobody serves any more, after the fleet has changed."""
        ended = []
        for waiter in list(self._line.in_order(-inf)):
            assert isinstance(waiter, Waiting)
            if (error := self._fleet.nobody_for(waiter.demand, waiter.excluded)) is not None:
                self._line.remove(waiter)
                waiter.error = error
                ended.append(waiter)
        self._note_end()
        return ended

    def close(self, error: BalancerError) -> list[Waiting]:
        """Nobody gets room any more."""
        ended = []
        for waiter in list(self._line.in_order(-inf)):
            assert isinstance(waiter, Waiting)
            self._line.remove(waiter)
            waiter.error = type(error)(*error.args)
            ended.append(waiter)
        self._note_end()
        return ended

    def next_at(self) -> float:
        """When to ``tick``, if nothing happens before."""
        return min(self._line.next_expiry(), self._looks_at) if self._line else inf

    # -- which, and how long ------------------------------------------------------------------------------------

    def _opens_in_s(self, now: float, place: int | None) -> float:
        """In how many seconds there may be room, at ``place`` or anywhere, by the mere passing of time."""
        opens_s = self._fleet.opens_for_all_in_s(now)
        if opens_s == 0.0:
            opens_s = self._fleet.drains_in_s(now, place, overload=self._overload(now))
        return min(_LOOK_AGAIN_S, max(_SOONEST_S, opens_s))

    def _overload(self, now: float) -> bool:
        """Whether calls have been waiting without a break for as long as engines' queues last."""
        return now - self._since > self._settings.engine_queue_s

    def _pulled(self, now: float, place: int | None) -> Waiting | None:
        """The next who gets room, at ``place`` or anywhere, charged."""
        fleet = self._fleet
        if self._line.urgent and (
            best := self._best(self._places(fleet.takes_urgent, now, None), now, urgent=True)
        ):
            return best
        self._shut = fleet.opens_for_all_in_s(now) > 0.0
        if self._shut:
            return None
        pulls = partial(fleet.pulls, overload=self._overload(now))
        return self._best(self._places(pulls, now, place), now)

    def _places(self, has_room: Callable[[int, float], bool], now: float, place: int | None) -> int:
        """Who has room, of all or of one, as bits."""
        places = [each for each, _ in self._fleet.places()] if place is None else [place]
        return sum(1 << each for each in places if has_room(each, now))

    def _best(self, places: int, now: float, *, urgent: bool = False) -> Waiting | None:
        """Take the call that suits one of ``places`` best out of line, and charge it there."""
        if not places:
            return None
        first: Waiting | None = None
        best: Waiting | None = None
        found: Decision | None = None
        looked_at = 0
        # Where another model's calls wait, they are many, and none of them may go here.
        elsewhere: set[tuple[str | None, bool, frozenset[ReplicaId]]] = set()
        for waiter in self._line.in_order(now):
            assert isinstance(waiter, Waiting)
            if first is not None and waiter.level < first.level:
                break
            if urgent and not waiter.urgent:
                continue
            demand = waiter.demand
            kind = demand.model, demand.replayable, waiter.excluded
            if kind in elsewhere:
                continue
            decision = self._fleet.choose_among(places, demand, now, waiter.excluded)
            if decision is None:
                elsewhere.add(kind)
                continue
            first = first or waiter
            if found is None or decision.chosen.hit_tokens > found.chosen.hit_tokens:
                best, found = waiter, decision
            looked_at += 1
            if looked_at == _LOOKED_AT or first.again or first.passed >= _PASSED_AT_MOST:
                break
        if first is None or best is None or found is None:
            return None
        if best is not first:
            first.passed += 1
        best.pick = self._fleet.take(found, best.demand, now, number=best.number)
        self._line.serve(best)
        self._pace.look(self._fleet.begun_tokens, now)
        return best

    def _late_s(self, waiting: Waiting, now: float) -> float:
        """By how much it would miss its time, as calls are pulled now; 0 before that has been seen."""
        if self._pace.value(self._fleet.begun_tokens, now) is None:
            return 0.0
        wait_s = self._wait_s(waiting, now)
        late_s = now + wait_s - waiting.due
        if waiting.deadline <= waiting.due:
            # Its answer must have begun by then: behind what stands at a replica that has just got room.
            queue_s = 0.0
            if not waiting.crowded:
                queue_s = self._fleet.stands_s(waiting.demand, now, overload=self._overload(now))
            work_s = queue_s + self._fleet.own_s(waiting.demand)
            late_s = max(late_s, now + wait_s + work_s - waiting.due)
        return late_s

    def _wait_s(self, waiting: Waiting, now: float) -> float:
        return self._line.units_before(waiting) / self._units_per_s(now)

    def _refuse(self, waiting: Waiting, now: float, why: str, after_s: float | None = None) -> Waiting:
        if after_s is None:
            after_s = (self._line.units + waiting.units) / self._units_per_s(now)
        waiting.error = NoCapacity(
            f"all replicas have enough to do, and {why}", retry_after_s=max(_LEAST_RETRY_S, after_s)
        )
        return waiting

    def _units_per_s(self, now: float) -> float:
        """A guess if need be."""
        return self._pace.value(self._fleet.begun_tokens, now) or self._rates()

    def _rates(self) -> float:
        return sum(self._fleet.rates[place] for place, _ in self._fleet.places()) or 1.0

    def _note_end(self) -> None:
        if not self._line:
            self._pace.ends()
        self._fleet.waits(len(self._line))
