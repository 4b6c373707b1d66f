"""When a call that is slow to begin gets a second attempt at another replica (Dean and Barroso, The Tail at Scale).

Slow for what it is: a call's time to its first content is told as a multiple of what its pick predicted (waiting and
own prefill; for a call that is not streamed its decode too, for then only the whole answer shows). A second attempt
starts when it is beyond ``margin`` times a high quantile of recent multiples on its route. Only if it helps: the other
replica is predicted to begin sooner than this one has stood already. Only if it harms nobody: below a bound of work,
within a budget of tokens, and not while much work stands everywhere.

Only replicas that are usual make up that quantile: one whose own multiples are typically beyond twice those of the
median replica is what hedging is for, and with one in eight of them the quantile would be its, not the fleet's.

A loser's time is known to be at least so long. Below the quantile that says nothing of it, above it it counts as it is:
left out, the quantile would drift down with every hedge that is won.
"""

from __future__ import annotations

from math import exp, inf, log
from statistics import median_low
from typing import Protocol

from ddsketch import DDSketch

from .budget import Budget
from .fleet import Pick
from .model import Demand, ReplicaId
from .placement.picker import Candidate, Decision
from .remembered import Remembered

_ACCURACY = 0.02
_ENOUGH = 20
_WINDOW = 1000
_WINDOW_S = 60.0
_STALE = 16
_TYPICAL_STEP = 0.1
_UNUSUAL = log(2.0)
_STEP = 0.02
_FAR_LONGER = 4.0
_KEEP = 0.98
_TRUST_TOKENS = 500.0
# Usual for one of many sequences in a batch on a data-centre GPU.
_DECODE_S_PER_TOKEN = 0.02


class HedgingSettings(Protocol):
    """The knobs; the configuration's section ``hedging`` fulfils it."""

    @property
    def enabled(self) -> bool: ...
    @property
    def quantile(self) -> float: ...
    @property
    def margin(self) -> float: ...
    @property
    def first_guess(self) -> float: ...
    @property
    def floor_s(self) -> float: ...
    @property
    def max_prefill_tokens(self) -> int: ...
    @property
    def budget_ratio(self) -> float: ...
    @property
    def reserve_tokens(self) -> int: ...
    @property
    def saturated_at(self) -> float: ...


class RecentQuantile:
    """A quantile of the last one or two windows of samples, by two sketches that take turns."""

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._young, self._old = DDSketch(_ACCURACY), DDSketch(_ACCURACY)
        self._turned_at: float | None = None
        self._since, self._stale = 0, 1
        self._value: float | None = None

    def add(self, sample: float, now: float) -> None:
        """Take in one sample, above 0."""
        if self._turned_at is None:
            self._turned_at = now
        self._young.add(sample)
        self._since += 1
        count = self._young.count
        if count >= _WINDOW or (count >= _ENOUGH and now - self._turned_at >= _WINDOW_S):
            self._old, self._young, self._turned_at = self._young, DDSketch(_ACCURACY), now
            self._stale = _STALE

    def value(self) -> float | None:
        """The quantile, but for the newest sixteenth of its samples; None while there are too few."""
        if self._since >= self._stale:
            count = self._young.count + self._old.count
            if count < _ENOUGH:
                return None
            both = DDSketch(_ACCURACY)
            both.merge(self._old)
            both.merge(self._young)
            self._value = both.get_quantile_value(self._quantile)
            self._since, self._stale = 0, max(_STALE, count // _STALE)
        return self._value


class _Route:
    """What is known of one kind of calls."""

    __slots__ = ("_since", "_typical", "_usual", "decode_s", "decode_tokens", "multiples")

    def __init__(self, quantile: float) -> None:
        self.multiples = RecentQuantile(quantile)
        # By replica, as logarithms: of those, a stall moves a mean little.
        self._typical: Remembered[ReplicaId, float] = Remembered(1024)
        self._usual = inf
        self._since = 0
        self.decode_tokens = _TRUST_TOKENS
        self.decode_s = _TRUST_TOKENS * _DECODE_S_PER_TOKEN

    @property
    def usual(self) -> float | None:
        """The multiple that is typical of the median replica, once there are samples enough."""
        return exp(self._usual) if self._usual < inf else None

    def add(self, replica: ReplicaId, multiple: float, now: float) -> None:
        """Take in one sample, above 0, if its replica is not unusually slow."""
        sample, typical = log(multiple), self._typical.get(replica)
        typical = sample if typical is None else typical + _TYPICAL_STEP * (sample - typical)
        self._typical[replica] = typical
        self._since += 1
        if self._since >= _STALE and self._since >= len(self._typical):
            self._usual, self._since = median_low(self._typical.values()), 0
        if typical <= self._usual + _UNUSUAL:
            self.multiples.add(multiple, now)


class Expected:
    """What an attempt is expected to take, in seconds, by its pick. Made once, so that it is judged as it was sent."""

    __slots__ = ("pick", "route", "seconds")

    def __init__(self, pick: Pick, route: _Route, seconds: float) -> None:
        self.pick = pick
        self.route = route
        self.seconds = seconds


class Hedging:
    """One client's. ``wish``: the caller's; False forbids, True also allows what is switched off or above the bound."""

    def __init__(self, settings: HedgingSettings) -> None:
        self._settings = settings
        self.budget = Budget(settings.budget_ratio, settings.reserve_tokens)
        self._routes: Remembered[tuple[str, bool], _Route] = Remembered(256)
        self._mean_own_s: float | None = None

    def sent(self, pick: Pick) -> None:
        """A caller's own call was sent."""
        self.budget.sent(_tokens(pick.demand))
        own_s = pick.decision.chosen.own_s
        mean = self._mean_own_s
        self._mean_own_s = own_s if mean is None else mean + _STEP * (own_s - mean)

    def expect(self, pick: Pick) -> Expected:
        """An attempt was sent."""
        route = self._route(pick.demand)
        work_s = self._work_s(pick.decision.chosen, pick.demand, route)
        return Expected(pick, route, self._settings.floor_s + work_s)

    def slow_after_s(self, expected: Expected) -> float:
        """How long after its start an attempt is slow."""
        settings = self._settings
        known = expected.route.multiples.value()
        multiple = settings.first_guess if known is None else settings.margin * known
        return max(settings.floor_s, multiple * expected.seconds)

    def why_not(
        self,
        decision: Decision,
        demand: Demand,
        stood_s: float,
        left_s: float = inf,
        wish: bool | None = None,
    ) -> str:
        """Why the call, which has stood for ``stood_s``, is not to be sent to the chosen replica as well now, in words.

        Empty if it is to be. ``left_s``: until its deadline.
        """
        settings, other = self._settings, decision.chosen
        if wish is False:
            return "its caller forbids it"
        if not (settings.enabled or wish):
            return "that is switched off (hedging.enabled)"
        if demand.prompt_tokens - other.hit_tokens > settings.max_prefill_tokens and not wish:
            return "the other would have had too much to prefill (hedging.max_prefill_tokens)"
        if not self.sooner(decision, demand, stood_s, left_s):
            return "no other was expected to begin within the time that it had stood, or had left"
        if self._saturated(decision, stood_s):
            return "too much work stood everywhere (hedging.saturated_at)"
        if not self.budget.covers(_tokens(demand)):
            return "the budget for it was used up (hedging.budget_ratio, hedging.reserve_tokens)"
        return ""

    def sooner(self, decision: Decision, demand: Demand, stood_s: float, left_s: float = inf) -> bool:
        """Whether the chosen replica would take less than the call has stood already, and than it has left.

        By what calls of this kind usually take: of answers whose length is not told it is guessed many times too long.
        """
        route = self._route(demand)
        work_s = self._work_s(decision.chosen, demand, route)
        if (usual := route.usual) is not None:
            work_s = usual * (self._settings.floor_s + work_s)
        return work_s <= min(stood_s, left_s)

    def begun(self, demand: Demand) -> None:
        """A second attempt was sent."""
        self.budget.spend(_tokens(demand))

    def answered(
        self, expected: Expected, took_s: float, now: float, output_tokens: int | None = None
    ) -> None:
        """An attempt showed its first content ``took_s`` after its start; of one not streamed, with its length."""
        route, pick = expected.route, expected.pick
        route.add(pick.replica.id, max(took_s, 1e-6) / expected.seconds, now)
        if pick.demand.blind and output_tokens:
            chosen = pick.decision.chosen
            decode_s = max(0.0, took_s - chosen.waiting_s - chosen.own_s)
            route.decode_tokens = route.decode_tokens * _KEEP + output_tokens
            route.decode_s = route.decode_s * _KEEP + decode_s

    def cut_short(self, expected: Expected, stood_s: float, now: float) -> None:
        """An attempt was cancelled that had stood for ``stood_s`` without content."""
        route, multiple = expected.route, stood_s / expected.seconds
        known = route.multiples.value()
        if known is not None and multiple > known:
            route.add(expected.pick.replica.id, multiple, now)

    def _route(self, demand: Demand) -> _Route:
        key = demand.route, demand.blind
        route = self._routes.get(key)
        if route is None:
            route = self._routes[key] = _Route(self._settings.quantile)
        return route

    def _work_s(self, chosen: Candidate, demand: Demand, route: _Route) -> float:
        work_s = chosen.waiting_s + chosen.own_s
        if demand.blind:
            work_s += demand.output_tokens * route.decode_s / route.decode_tokens
        return work_s

    def _saturated(self, decision: Decision, stood_s: float) -> bool:
        """Whether the median replica has more than so many mean calls of work standing.

        Work that would be done in a part of the time that the call has stood is not what it stands for.
        """
        waiting = sorted(decision.compared.waiting_s)
        usual_s = self._settings.saturated_at * max(self._mean_own_s or 0.0, self._settings.floor_s)
        return waiting[len(waiting) // 2] > max(usual_s, stood_s / _FAR_LONGER)


def _tokens(demand: Demand) -> int:
    """What sending a call costs: its prompt; of one not streamed the answer too, for its loser is cancelled late."""
    return demand.prompt_tokens + (demand.output_tokens if demand.blind else 0)
