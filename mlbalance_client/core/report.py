"""What a caller may read about one call or about the fleet: plain values, and why in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from ..errors import AttemptReport, FailureKind, retold
from .fleet import Fleet, Pick
from .load.windows import Window
from .model import Demand, ReplicaId, Usage
from .placement.picker import Decision, Source


@dataclass(frozen=True, slots=True)
class Weighed:
    """One replica as it was weighed for a call; times are estimated seconds.

    score_s = waiting_s + miss_weight * own_s + rest_s: what stands there, the call's own uncached prefill, and what
    decodes there and how far it is. The least wins.
    """

    replica: str
    cached_tokens: int
    because: str
    waiting_s: float
    own_s: float
    rest_s: float
    score_s: float
    miss_weight: float


@dataclass(frozen=True, slots=True)
class KeptOut:
    """A replica that gets no such call now, and ``why``."""

    replica: str
    why: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Which replica a call goes to, out of which, and why. ``str()`` of it is for people.

    ``reason``: in one line. ``candidates``: those that were compared, as they were weighed. Of a call that is yet to be
    made: ``kept_out``: who would not get it; ``queued``: whether it would wait in this client. Of a call that was made:
    ``tried``: where it was sent in turn, and why it was not left there, if it was sent more than once; ``hedge``: what
    came of a second attempt beside the first, or why a slow call got none; ``queued``: what it waited for in this
    client; ``gave_up``: why its failure was not tried again; ``broke_off``: how its answer did, if it did. Tokens are
    estimates.
    """

    replica: str
    url: str
    policy: str
    model: str | None
    prompt_tokens: int
    output_tokens: int
    predicted_hit_tokens: int
    reason: str
    candidates: tuple[Weighed, ...]
    hedge: str = ""
    queued: str = ""
    tried: str = ""
    gave_up: str = ""
    broke_off: str = ""
    kept_out: tuple[KeptOut, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.replica} ({self.url}): {self.reason}"]
        lines += [
            f"    {told}"
            for told in (self.tried, self.gave_up, self.broke_off, self.queued, self.hedge)
            if told
        ]
        for c in sorted(self.candidates, key=lambda c: c.score_s):
            mark = "->" if c.replica == self.replica else "  "
            lines.append(
                f" {mark} {c.replica}: {_time(c.score_s)} = waiting {_time(c.waiting_s)} "
                f"+ {c.miss_weight:g} x own prefill {_time(c.own_s)} + decoding and distance {_time(c.rest_s)}; "
                f"about {c.cached_tokens} tokens cached ({c.because})"
            )
        lines += [f"    {each.replica} is kept out: {each.why}" for each in self.kept_out[:_TOLD_OUT]]
        if (more := len(self.kept_out) - _TOLD_OUT) > 0:
            lines.append(f"    and {more} more are kept out")
        return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


@dataclass(slots=True)
class CallReport:
    """What became of one call; lies in ``response.extensions["mlbalance"]`` and fills as the call goes on.

    Times are seconds since the call began. ``predicted_hit_tokens`` is what the picker believed the replica to
    have cached; ``usage`` is what the replica said, once the answer has ended. ``hedged``: another replica was asked
    as well; ``hedge_won``: and answered first; ``not_hedged``: why none was when the slow call was last looked at, in
    words. ``queued_s``: how long it waited in this client
    for room, ``queued_for``: and for whose, in words. ``gave_up``: why the failure that was delivered was not
    tried again, in words. ``broke_off``: how the answer broke off after its first content, in words; its attempt then
    bears the failure too. ``ttft_s``: until the commit point, which is a stream's first
    content, the whole answer (or its first 64 KiB) of a call that is not streamed, and the head of one of unknown form.
    """

    replica: str = ""
    url: str = ""
    attempts: tuple[AttemptReport, ...] = ()
    hedged: bool = False
    hedge_won: bool = False
    predicted_hit_tokens: int = 0
    prompt_tokens: int = 0
    reason: str = ""
    queued_s: float = 0.0
    queued_for: str = ""
    gave_up: str = ""
    broke_off: str = ""
    not_hedged: str = ""
    ttft_s: float | None = None
    total_s: float | None = None
    usage: Usage | None = None
    tenant: str | None = None
    priority: int = 0
    _answered: int = field(default=0, repr=False)
    _explanation: Explanation | None = field(default=None, repr=False)
    _demand: Demand | None = field(default=None, repr=False)
    _decision: Decision | None = field(default=None, repr=False)

    def picked(self, pick: Pick, answered: int = 0) -> None:
        """Note where the call goes; the words are made only if somebody asks. ``answered``: its attempt, if it did."""
        self.replica, self.url = pick.replica.id, pick.replica.url
        self.predicted_hit_tokens = pick.decision.chosen.hit_tokens
        self.prompt_tokens = pick.demand.prompt_tokens
        self.reason = reason(pick.decision)
        self._demand, self._decision = pick.demand, pick.decision
        self._answered, self._explanation = answered, None

    def explain(self) -> Explanation:
        """Why this replica, of the attempt that answered, and where the call was sent before. Raises LookupError."""
        if self._explanation is None:
            if self._demand is None or self._decision is None:
                raise LookupError("no replica was picked for this call")
            self._explanation = replace(
                explain(self._demand, self._decision, self._hedge_words()),
                queued=self._queue_words(),
                tried=retold(self.attempts, self._answered) if len(self.attempts) > 1 else "",
                gave_up=f"it failed and was not tried again: {self.gave_up}" if self.gave_up else "",
                broke_off=f"its answer {self.broke_off}" if self.broke_off else "",
            )
        return self._explanation

    def interrupted(
        self, number: int, delivered: int, failure: FailureKind, detail: str, status: int | None = None
    ) -> None:
        """Note that the answer of attempt ``number`` broke off. ``status``: the one that an error in it names."""
        self.broke_off = f"broke off after {delivered} bytes ({failure}): {detail}"
        self.attempts = tuple(
            told._replace(failure=failure, detail=detail, status=status or told.status)
            if told.number == number
            else told
            for told in self.attempts
        )
        self._explanation = None

    def _queue_words(self) -> str:
        return f"it waited {_time(self.queued_s)} for {self.queued_for}" if self.queued_for else ""

    def _hedge_words(self) -> str:
        if not self.hedged:
            why = self.not_hedged
            return f"it was slow to begin, but no other was asked as well: {why}" if why else ""
        if self.hedge_won:
            return "it was asked as well, since another was slow to begin, and answered first"
        return "it was slow to begin, so another was asked as well, but it answered first"


@dataclass(frozen=True, slots=True)
class LastCheck:
    """What came of a health check, of the ``system`` or the ``model``: passed, failed or unknown. ``at``: its end."""

    check: str
    result: str
    why: str
    at: float


@dataclass(frozen=True, slots=True)
class ReplicaSnapshot:
    """What the client believes of one replica. Tokens and requests are this client's own, outstanding now.

    ``ejected``: why it is kept out now, in words; None if it is not. ``starting``: as what share of itself it counts
    while it is led up to full load; None if it is not. ``looks``: unseen, free, busy or long busy, by the pace of own
    streams. ``rests_s``: for how long it is not picked yet, since it has failed. ``kept_out``: why it gets no calls
    while others can have them, of all reasons the first, in words; None if it gets them. ``lacks``: the models of which
    alone it gets none, since it has answered that it does not have them. ``report``: what the replica
    itself said last and how many seconds ago, if that still counts; ``published_prefixes``: how many of its cached
    prefixes it has named. ``window``: whether it is full, how many requests and tokens more it may be sent (None: any
    number), and by which word.
    """

    id: str
    url: str
    weight: float
    zone: str | None
    priority: int
    state: str
    models: tuple[str, ...]
    requests: int
    prefill_tokens: int
    decode_tokens: int
    ejected: str | None
    starting: float | None
    looks: str
    rests_s: float
    kept_out: str | None
    lacks: tuple[str, ...]
    waiting_s: float
    prefill_tokens_per_s: float
    rate_samples: int
    recorded_cache_limit_tokens: int
    published_prefixes: int
    window: Window | None
    report: dict[str, Any] | None
    last_check: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class FleetSnapshot:
    """What the client believes of its fleet. ``queued``: calls of this client that wait for room."""

    policy: str
    outstanding_requests: int
    outstanding_tokens: int
    queued: int
    replicas: tuple[ReplicaSnapshot, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


_TOLD_OUT = 8
_WORDS = {
    Source.PUBLISHED: "it says that it holds the prompt's beginning",
    Source.RECORD: "this client sent a prompt with the same beginning there",
    Source.SESSION: "this client sent the session there before",
    Source.HOME: "it is the home of the prompt's beginning, by rendezvous hashing",
    Source.NONE: "nobody is known to hold the prompt's beginning, and no other would begin with it sooner",
}


def reason(decision: Decision) -> str:
    """One line: why the chosen replica."""
    if decision.policy != "prefix_tokens":
        return f"policy {decision.policy}"
    if decision.forced:
        return "it is the only one that it could be sent to"
    return _WORDS[decision.chosen.source]


def explain(demand: Demand, decision: Decision, hedge: str = "") -> Explanation:
    """Put a decision into words and figures. ``hedge``: what came of a second attempt, if there was one."""
    replicas = decision.pool.replicas
    chosen, weight = decision.chosen, decision.compared.miss_weight
    return Explanation(
        replica=replicas[chosen.place].id,
        url=replicas[chosen.place].url,
        policy=decision.policy,
        model=demand.model,
        prompt_tokens=demand.prompt_tokens,
        output_tokens=demand.output_tokens,
        predicted_hit_tokens=chosen.hit_tokens,
        reason=reason(decision),
        candidates=tuple(
            Weighed(
                replica=replicas[c.place].id,
                cached_tokens=c.hit_tokens,
                because=str(c.source),
                waiting_s=c.waiting_s,
                own_s=c.own_s,
                rest_s=max(0.0, c.score_s - c.waiting_s - weight * c.own_s),
                score_s=c.score_s,
                miss_weight=weight,
            )
            for c in decision.candidates
        ),
        hedge=hedge,
    )


def preview(fleet: Fleet, demand: Demand, now: float, *, queued: int, urgent: bool) -> Explanation:
    """What would become of a call now, with ``queued`` calls waiting. Raises NoReplicas."""
    decision, room = fleet.judge(demand, now, ordinary=not urgent)
    serving = {p: r for p, r in fleet.places() if r.serves(demand.model)}
    kept_out = fleet.fitness.kept_out(demand.model, now)
    if (why := kept_out.get(decision.chosen.place)) is not None:
        kept_out[decision.chosen.place] = f"{why}; nobody else is left, so it gets the call"
    waits = not room or (queued and not urgent)
    return replace(
        explain(demand, decision),
        queued="it would wait: those that could take it have enough to do" if waits else "",
        kept_out=tuple(KeptOut(serving[p].id, why) for p, why in kept_out.items() if p in serving),
    )


def _unchecked(id_: ReplicaId) -> LastCheck | None:
    return None


def snapshot(
    fleet: Fleet,
    now: float,
    policy: str,
    queued: int = 0,
    last_check: Callable[[ReplicaId], LastCheck | None] = _unchecked,
) -> FleetSnapshot:
    """What ``fleet`` believes at ``now``."""
    fleet.fitness.pass_to(now)
    rows = tuple(_replicas(fleet, now, last_check))
    return FleetSnapshot(policy, fleet.ledger.requests, fleet.ledger.tokens, queued, rows)


def _seen(check: LastCheck | None, now: float) -> dict[str, Any] | None:
    """A check, with its age instead of its moment."""
    if check is None:
        return None
    return {"age_s": max(0.0, now - check.at), "check": check.check, "result": check.result, "why": check.why}


def _told(fleet: Fleet, place: int, now: float) -> dict[str, Any] | None:
    """What of the last report is known, with its age instead of its moment."""
    report = fleet.load.report(place, now)
    if report is None:
        return None
    told = {f.name: getattr(report, f.name) for f in fields(report) if f.name not in ("at", "doubts")}
    known = {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in told.items()
        if value is not None and value != {} and value is not False
    }
    return {"age_s": max(0.0, now - report.at), **known}


def _replicas(
    fleet: Fleet, now: float, last_check: Callable[[ReplicaId], LastCheck | None]
) -> Sequence[ReplicaSnapshot]:
    rows = []
    shares = fleet.fitness.slow_start.ramp(now)
    kept_out = fleet.fitness.kept_out(None, now)
    for place, replica in fleet.places():
        account = fleet.ledger.account(place)
        rows.append(
            ReplicaSnapshot(
                id=replica.id,
                url=replica.url,
                weight=replica.weight,
                zone=replica.zone,
                priority=replica.priority,
                state=replica.state.value,
                models=tuple(sorted(replica.models)),
                requests=account.requests,
                prefill_tokens=account.prefill_tokens,
                decode_tokens=account.decode_tokens,
                rests_s=fleet.fitness.pushback.rests_s(place, now),
                kept_out=kept_out.get(place),
                lacks=tuple(fleet.fitness.absences.models(place, now)),
                ejected=None if (out := fleet.fitness.outliers.ejection(place)) is None else out.why,
                starting=shares.get(place),
                looks=fleet.load.found(place, now).value,
                waiting_s=fleet.load.waiting_s(place, now),
                prefill_tokens_per_s=fleet.rates[place],
                rate_samples=fleet.rates.samples(place),
                recorded_cache_limit_tokens=fleet.cache_limit_tokens(place),
                published_prefixes=fleet.publishers.count(place),
                window=None if fleet.windows is None else fleet.windows.window(place, now),
                report=_told(fleet, place, now),
                last_check=_seen(last_check(replica.id), now),
            )
        )
    return rows
