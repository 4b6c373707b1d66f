"""Which replica gets the call. Every policy is a pure function of what the client knows and a seeded chance.

``prefix_tokens`` (ours): among the homes of the prompt's anchors, the replicas known to hold its prefix and a
few sampled ones, the least estimated seconds = work standing before it + miss_weight x own uncached prefill
+ decode work outstanding. A miss weighs more than its own time because all who queue behind it wait too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from math import isqrt
from random import Random
from typing import NamedTuple, Protocol

from ..cost import PrefillRates, prefill_units
from ..health.slow_start import SlowStart
from ..load.company import Company
from ..load.ledger import Ledger
from ..load.view import LoadView
from ..model import Demand
from .pool import Pool
from .prefix_index import PrefixIndex
from .published import Publishers


class Source(StrEnum):
    """Why a replica is believed to hold part of a prompt."""

    PUBLISHED = "published by the replica"
    RECORD = "own record"
    SESSION = "own record of the session"
    HOME = "home by rendezvous"
    NONE = "no known prefix"


class Candidate(NamedTuple):
    """One replica as the picker saw it. Tokens are tokens, times are estimated seconds."""

    place: int
    hit_tokens: int
    source: Source
    waiting_s: float
    own_s: float
    score_s: float


# How many tokens of a prompt a replica is believed to have cached, and why.
Hit = tuple[int, Source]
NO_HIT: Hit = (0, Source.NONE)


@dataclass(slots=True)
class Compared:
    """Candidates as lists side by side, in the order of ``hits``: few objects for the garbage collector to visit."""

    hits: Mapping[int, Hit]
    waiting_s: list[float]
    own_s: list[float]
    score_s: list[float]
    miss_weight: float

    def candidates(self) -> list[Candidate]:
        """Each on its own."""
        return [
            Candidate(place, hit, source, waiting_s, own_s, score_s)
            for (place, (hit, source)), waiting_s, own_s, score_s in zip(
                self.hits.items(), self.waiting_s, self.own_s, self.score_s, strict=True
            )
        ]

    def least(self, rng: Random) -> Candidate:
        """The one of least score, ties at random."""
        scores = self.score_s
        least_s = min(scores)
        at = scores.index(least_s)
        if scores.count(least_s) > 1:
            ties = [i for i, score_s in enumerate(scores) if score_s == least_s]
            at = ties[int(rng.random() * len(ties))]
        place = next(islice(self.hits, at, None))
        hit, source = self.hits[place]
        return Candidate(place, hit, source, self.waiting_s[at], self.own_s[at], least_s)


@dataclass(slots=True)
class Decision:
    """The chosen candidate, out of all that were compared. ``barred``: who was not to be, as a bit set."""

    chosen: Candidate
    compared: Compared
    policy: str
    pool: Pool
    barred: int = 0

    @property
    def candidates(self) -> list[Candidate]:
        """All that were compared, the chosen one among them."""
        return self.compared.candidates()

    @property
    def forced(self) -> bool:
        """Whether all others of the pool were barred."""
        return not self.pool.mask & ~self.barred & ~(1 << self.chosen.place)


class PickingSettings(Protocol):
    """The knobs that the policies read; the configuration's section ``picking`` fulfils it."""

    @property
    def miss_weight(self) -> float: ...
    @property
    def decode_weight(self) -> float: ...
    @property
    def anchor_depths(self) -> tuple[int, ...]: ...
    @property
    def prior_confidence(self) -> float: ...
    @property
    def bound_factor(self) -> float: ...
    @property
    def bound_floor_tokens(self) -> int: ...
    @property
    def sampled_candidates(self) -> int: ...
    @property
    def knee_tokens(self) -> float: ...
    @property
    def decode_s_per_token(self) -> float: ...


@dataclass(slots=True)
class Sight:
    """What a policy may look at. All of it belongs to one client."""

    ledger: Ledger
    load: LoadView
    index: PrefixIndex
    publishers: Publishers
    company: Company
    rates: PrefillRates
    handicap_s: Mapping[int, float]
    settings: PickingSettings
    slow_start: SlowStart
    tokens_per_block: float = 256.0

    def tokens(self, demand: Demand, depth: int) -> int:
        """Tokens of the first ``depth`` blocks; the last token is always computed anew."""
        return min(demand.prompt_tokens - 1, int(depth * self.tokens_per_block))

    def published(self, place: int, demand: Demand) -> Hit:
        """What the replica itself says that it holds of the prompt."""
        if not self.publishers.mask >> place & 1:
            return NO_HIT
        depth = self.publishers.depth(place, demand.fingerprint.chain)
        return (self.tokens(demand, depth), Source.PUBLISHED) if depth else NO_HIT

    def weigh(self, hits: Mapping[int, Hit], demand: Demand, now: float) -> Compared:
        """Score replicas for one call. On the path of every call, hence the flat loop."""
        settings, accounts, rates = self.settings, self.ledger.accounts, self.rates
        tokens, knee, handicap_s = demand.prompt_tokens, settings.knee_tokens, self.handicap_s
        miss_weight = settings.miss_weight
        decode_weight = settings.decode_weight * settings.decode_s_per_token
        units, units_of = prefill_units(tokens, tokens, knee), 0
        shares = self.slow_start.shares if self.slow_start.active else None
        waiting = self.load.all_waiting_s(hits, now, self.company.share)
        own, scores = [], []
        for (place, (hit, _)), waiting_s in zip(hits.items(), waiting, strict=True):
            if hit != units_of:  # many are alike
                units, units_of = prefill_units(tokens - hit, tokens, knee), hit
            own_s = units / rates[place]
            score_s = waiting_s + miss_weight * own_s + decode_weight * accounts[place].decode_tokens
            if handicap_s:
                score_s += handicap_s.get(place, 0.0)
            if shares:
                score_s = (score_s + _STANDS_S) / shares.get(place, 1.0)
            own.append(own_s)
            scores.append(score_s)
        return Compared(hits, waiting, own, scores, miss_weight)


class Policy(Protocol):
    """Chooses among ``pool`` less ``excluded`` (a bit set that never covers the whole pool)."""

    name: str

    def choose(
        self, sight: Sight, demand: Demand, pool: Pool, excluded: int, now: float, rng: Random
    ) -> Decision: ...

    def taken(self) -> None:
        """The call goes to the replica that was chosen last; it was not only asked for."""
        return


# So that what is nearly free counts as well where capacity is only a share of itself.
_STANDS_S = 0.05
_ALONE = 0.1
# What a session's next prompt repeats of the one that this client itself sent there before.
_SESSION_KEPT = 0.9


class PrefixTokens(Policy):
    """Sticky by prefix, least outstanding estimated seconds of tokens; cost does not grow with the fleet."""

    name = "prefix_tokens"

    def choose(
        self, sight: Sight, demand: Demand, pool: Pool, excluded: int, now: float, rng: Random
    ) -> Decision:
        """Score homes, holders and a sample; the least wins, ties at random."""
        allowed = pool.mask & ~excluded
        hits = self._recorded(sight, demand, allowed)
        self._add_homes(sight, demand, pool, allowed, hits)
        for place in pool.sample(sight.settings.sampled_candidates, rng):
            if place not in hits and allowed >> place & 1:
                hits[place] = sight.published(place, demand)
        if not hits:
            hits[_any(allowed, pool, rng)] = NO_HIT
        compared = sight.weigh(hits, demand, now)
        return Decision(compared.least(rng), compared, self.name, pool)

    @staticmethod
    def _recorded(sight: Sight, demand: Demand, allowed: int) -> dict[int, Hit]:
        most, index = sight.settings.sampled_candidates, sight.index
        hits: dict[int, Hit] = {}
        chain = demand.fingerprint.chain
        hit, hit_depth = NO_HIT, 0
        for place, depth in index.deepest(chain, allowed, most):
            if depth != hit_depth:  # many are alike
                hit, hit_depth = (sight.tokens(demand, depth), Source.RECORD), depth
            hits[place] = hit
        if sight.publishers:
            for place, depth in sight.publishers.deepest(chain, allowed, most):
                if (tokens := sight.tokens(demand, depth)) > hits.get(place, NO_HIT)[0]:
                    hits[place] = (tokens, Source.PUBLISHED)
        if demand.session is not None:
            doubtful = int((demand.prompt_tokens - 1) * _SESSION_KEPT)
            for place, _ in index.deepest((demand.session,), allowed, most):
                if hits.get(place, NO_HIT)[0] < doubtful:
                    hits[place] = (doubtful, Source.SESSION)
        return hits

    @staticmethod
    def _add_homes(sight: Sight, demand: Demand, pool: Pool, allowed: int, hits: dict[int, Hit]) -> None:
        settings, ledger, accounts = sight.settings, sight.ledger, sight.ledger.accounts
        mean = (ledger.tokens + demand.prompt_tokens) / len(pool)
        bound = max(settings.bound_floor_tokens, settings.bound_factor * mean)
        # Homes stand for what others sent; whoever finds no others at work knows better from own record.
        confidence = settings.prior_confidence * max(_ALONE, sight.company.degree)
        published = sight.publishers.mask
        starting = sight.slow_start if sight.slow_start.active else None
        found = anchors(demand, settings.anchor_depths)
        ends = [depth for depth, _ in found[1:]] + [max(1, len(demand.fingerprint.chain))]
        for (depth, key), end in zip(found, ends, strict=True):
            # What had its home there was no shorter than this anchor and shorter than the next: their geometric mean.
            doubtful = int(sight.tokens(demand, isqrt(depth * end)) * confidence)
            for place in pool.homes(key):
                if starting and not starting.keeps_home(place, key):
                    continue
                if allowed >> place & 1 and accounts[place].tokens <= bound:
                    if published >> place & 1:
                        if place not in hits:
                            hits[place] = sight.published(place, demand)
                    elif hits.get(place, NO_HIT)[0] < doubtful:
                        hits[place] = (doubtful, Source.HOME)
                    elif place not in hits:
                        hits[place] = NO_HIT
                    break


def anchors(demand: Demand, depths: tuple[int, ...]) -> list[tuple[int, int]]:
    """(depth in blocks, key) of the prompt's anchors, shallow first; a session is the deepest of all."""
    chain = demand.fingerprint.chain
    found = [(depth, chain[depth - 1]) for depth in depths if depth <= len(chain)]
    if demand.session is not None:
        found.append((max(1, len(chain)), demand.session))
    elif not found:
        found.append((max(1, len(chain)), demand.fingerprint.whole))
    return found


class Contrast(Policy):
    """The policies that know nothing of prefixes; a full scan, least ``load`` for its weight, ties by weight."""

    def __init__(self, name: str, load: Callable[[Sight, int], float]) -> None:
        self.name = name
        self._load = load

    def choose(
        self, sight: Sight, demand: Demand, pool: Pool, excluded: int, now: float, rng: Random
    ) -> Decision:
        """Least load wins."""
        replicas = pool.replicas
        loads = [
            (self._load(sight, place) / replicas[place].weight, place)
            for place in pool.places
            if not excluded >> place & 1
        ]
        least = min(loads)[0]
        ties = [place for load, place in loads if load == least]
        chosen = rng.choices(ties, [replicas[place].weight for place in ties])[0]
        return _only(sight, chosen, demand, pool, now, self.name)


_TIE = 1e-9


class RoundRobin(Policy):
    """Each in turn, from a random start; by weight, evenly spread (nginx's smooth weighted round robin)."""

    name = "round_robin"

    def __init__(self) -> None:
        self._credit: dict[int, float] = {}
        self._next: dict[int, float] = {}

    def choose(
        self, sight: Sight, demand: Demand, pool: Pool, excluded: int, now: float, rng: Random
    ) -> Decision:
        """Who has waited longest for its weight, of those that are not excluded."""
        before, credit, total = self._credit, {}, 0.0
        for place in pool.places:
            if not excluded >> place & 1:
                weight = pool.replicas[place].weight
                credit[place] = before.get(place, rng.random() * _TIE) + weight
                total += weight
        chosen = max(credit, key=credit.__getitem__)
        credit[chosen] -= total
        self._next = credit
        return _only(sight, chosen, demand, pool, now, self.name)

    def taken(self) -> None:
        """That was its turn."""
        self._credit.update(self._next)


def _only(sight: Sight, place: int, demand: Demand, pool: Pool, now: float, name: str) -> Decision:
    compared = sight.weigh({place: NO_HIT}, demand, now)
    return Decision(compared.candidates()[0], compared, name, pool)


def _any(allowed: int, pool: Pool, rng: Random) -> int:
    left = [place for place in pool.places if allowed >> place & 1]
    return left[int(rng.random() * len(left))]


def policy(name: str) -> Policy:
    """A fresh policy by its configured name."""
    if name == "prefix_tokens":
        return PrefixTokens()
    if name == "round_robin":
        return RoundRobin()
    loads: dict[str, Callable[[Sight, int], float]] = {
        "random": lambda sight, place: 0.0,
        "least_requests": lambda sight, place: sight.ledger.account(place).requests,
        "least_tokens": lambda sight, place: sight.ledger.account(place).tokens,
    }
    return Contrast(name, loads[name])
