"""How much work stands before a new call at a replica, in seconds.

The newest load report, drained as time passes, plus own charges that it cannot know yet. What a report leaves open,
and all of others' work where there is none, is guessed: what own calls have found on average at replicas that looked
alike by the pace of own streams (free, busy, busy for long, unseen) and by what they reported. A report loses its say
as it ages, to nothing at its expiry. A call that is overdue says more than any of them; but one alone, where there are
no other clients whose work it may wait for: the longer it takes, the likelier has it stalled by itself, and the sooner
is the next sent there, which shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import exp

from ..cost import MovingMean
from .company import Company
from .ledger import Account, Ledger
from .levelling import Inflow, levelled
from .pace import Found, Pace
from .report import REPORTER, LoadReport, State
from .standing import TELLING, Basis, Work, basis, has_others_work, reported_s, tells, under_way_s
from .under_way import UnderWay

_STEP = 0.05
# What a replica of each look has standing, against the mean over all calls, until own calls have shown it.
_PRIOR = {Found.FREE: 0.2, Found.BUSY: 1.0, Found.LONG_BUSY: 2.0, Found.UNSEEN: 1.0}
_PRIOR_CALLS = 10
# Bases of which a report tells a queue alone, or all work, so that own calls are in it.
_QUEUES = frozenset({Basis.QUEUED_WORK, Basis.EMPTY_QUEUE, Basis.QUEUE})
_ALL_TOLD = frozenset({Basis.WORK, Basis.ADMITTED})
# A load stream tells within so many seconds of what moves picks, and for each subscriber (our reporter holds back what
# is less than 0.2 s of work for half a second); and something every 2 s. Each with some time on the way.
_TOLD_WITHIN_S, _PER_SUBSCRIBER_S, _SILENT_S = 0.1, 0.001, 2.5
# Python 3.11 looks up a member of an enum by a call.
_UNSEEN, _NOTHING = Found.UNSEEN, Basis.NOTHING

Look = tuple[Found, Basis]


@dataclass(frozen=True, slots=True)
class Guess:
    """What a replica looked like when a call was sent there, and how much others' work its report told of."""

    look: Look
    reported_s: float


_UNTOLD = {found: Guess((found, _NOTHING), 0.0) for found in Found}


class _Looks:
    """The mean of what own calls found at replicas that looked alike, under one basis of knowledge."""

    __slots__ = ("_all", "_means", "seconds")

    def __init__(self) -> None:
        self._means = {found: MovingMean(_STEP) for found in Found}
        self._all = MovingMean(_STEP)
        self.seconds = dict.fromkeys(Found, 0.0)

    def add(self, found: Found, seconds: float) -> None:
        self._means[found].add(seconds)
        self._all.add(seconds)
        for look, mean in self._means.items():
            prior_s = _PRIOR[look] * self._all.value
            self.seconds[look] = prior_s + (mean.value - prior_s) * mean.count / (mean.count + _PRIOR_CALLS)


class LoadView:
    """``memory_s``: time constant with which what own streams have shown fades; ``expiry_s``: a report's life.

    ``rate``: work units a second of the replica at a place.
    """

    def __init__(
        self,
        ledger: Ledger,
        memory_s: float,
        expiry_s: float,
        rate: Callable[[int], float],
        company: Company | None = None,
    ) -> None:
        self.pace = Pace()
        self.work = Work()
        self._ledger = ledger
        self._memory_s = memory_s
        self._expiry_s = expiry_s
        self._rate = rate
        self._company = Company() if company is None else company
        self._reports: dict[int, tuple[LoadReport, Basis, float]] = {}
        self._pushed: dict[int, LoadReport] = {}
        self._under_way: defaultdict[int, UnderWay] = defaultdict(UnderWay)
        self._looks = {basis_: _Looks() for basis_ in Basis}
        self._inflow = Inflow()

    def hear(self, place: int, report: LoadReport, *, in_passing: bool = False) -> bool:
        """A replica has told how it is; what is older than the report at hand, or tells less, is not believed.

        ``in_passing``: with an answer, which there is only while it is busy.
        """
        if report.pushed:
            self._pushed[place] = report
        left_s, rules = 0.0, basis(report)
        known = self._reports.get(place)
        if known is not None and report.at - known[0].at < self._expiry_s:
            if self._is_old(known[0], report) or self._is_less(known[0], report):
                return False
            left_s = under_way_s(known[0], known[2], report, self.work, self._rate(place))
        if rules in _QUEUES:
            counted_s = self._under_way[place].hear(report, self.work, self._rate(place))
            if counted_s is not None:
                left_s, rules = counted_s, Basis.ADMITTED
        self._reports[place] = report, rules, left_s
        account = self._ledger.account(place)
        if not in_passing and (busy := has_others_work(report, account.requests)) is not None:
            self._inflow.hear(place, report.at, busy=busy)
        account.reported(report.at, report.acked)
        return True

    def tells_of_work(self, place: int, now: float) -> bool:
        """Whether the replica itself says that work stands there, or how much."""
        known = self._reports.get(place)
        return known is not None and known[1] in TELLING and self._say(now - known[0].at) >= 0.5

    def report(self, place: int, now: float) -> LoadReport | None:
        """The last report, unless it has expired."""
        known = self._reports.get(place)
        return known[0] if known is not None and now - known[0].at < self._expiry_s else None

    def waiting_s(self, place: int, now: float) -> float:
        """Seconds of prefill that stand before a call sent now."""
        account = self._ledger.accounts[place]
        own_s, overdue_s = self._standing_s(account, now) if account.queue else (0.0, 0.0)
        guessed_s = own_s + max(overdue_s, self._looked_s(place, now, _NOTHING))
        known = self._reports.get(place)
        if known is None or known[1] is _NOTHING:
            return guessed_s
        say = self._say(now - known[0].at)
        if say <= 0.0:
            return guessed_s
        told_s = self._told_s(place, account, own_s, overdue_s, *known, now)
        if known[0].partial:
            told_s = max(told_s, guessed_s)
        return say * told_s + (1.0 - say) * guessed_s

    def all_waiting_s(self, places: Collection[int], now: float, others: float = 0.0) -> list[float]:
        """``waiting_s`` of each, and what others will have sent there since; ``others``: their share of the traffic.

        On the path of every call, hence one loop over those of which nothing is known.
        """
        accounts, reports, paced = self._ledger.accounts, self._reports, self.pace.places
        unseen_s = self._looks[_NOTHING].seconds[_UNSEEN]
        seconds = []
        for place in places:
            if place in reports or place in paced:
                seconds.append(self.waiting_s(place, now))
            elif accounts[place].queue:
                own_s, overdue_s = self._standing_s(accounts[place], now)
                seconds.append(own_s + max(overdue_s, unseen_s))
            else:
                seconds.append(unseen_s)
        if reports and others > 0.0:
            return levelled(seconds, self._ages_s(places, now), self._inflow.value * others)
        return seconds

    def _standing_s(self, account: Account, now: float) -> tuple[float, float]:
        """Of own calls: what stands there, and how long the oldest is overdue as far as that tells of its replica."""
        own_s, overdue_s = account.standing_s(now)
        if overdue_s > 0.0 and len(account.queue) == 1:
            again_s = next(iter(account.queue)).prefill_s
            if overdue_s > again_s:
                alone_s = again_s * again_s / overdue_s
                overdue_s = alone_s + self._company.degree * (overdue_s - alone_s)
        return own_s, overdue_s

    def _ages_s(self, places: Iterable[int], now: float) -> list[float | None]:
        """How old the reports at hand are, as far as they are believed; None where none rules.

        What a load stream has told is no older than the time within which it would have told of more: silent, it says
        that nothing has come.
        What own calls have found at a queue's look holds whatever came since: such reports are as old as the youngest.
        """
        ages: list[float | None] = []
        guessed = []
        told_within_s: dict[int, float] = {}
        for at, place in enumerate(places):
            known = self._reports.get(place)
            age_s = None
            if known is not None and known[1] is not _NOTHING and now - known[0].at < self._expiry_s:
                age_s = max(0.0, now - known[0].at) * self._say(now - known[0].at)
                if self._would_have_told(place, known[0], now):
                    told_within_s[at] = _TOLD_WITHIN_S + _PER_SUBSCRIBER_S * (known[0].subscribers or 0)
                if known[1] not in _ALL_TOLD:
                    guessed.append((age_s, at))
            ages.append(age_s)
        if guessed:
            youngest_s = min(guessed)[0]
            for _, at in guessed:
                ages[at] = youngest_s
        for at, within_s in told_within_s.items():
            ages[at] = min(ages[at] or 0.0, within_s)
        return ages

    def _would_have_told(self, place: int, report: LoadReport, now: float) -> bool:
        """Whether a load stream speaks that tells of changes of this report, which may have come with an answer."""
        pushed = self._pushed.get(place)
        return (
            pushed is not None
            and pushed.epoch == report.epoch  # that no other format has
            and not report.partial
            and now - pushed.at < _SILENT_S
        )

    def guess(self, place: int, now: float) -> Guess:
        """What the replica looks like now, to learn from when the call has found how it is."""
        found = self.found(place, now)
        known = self._reports.get(place)
        if known is None or known[1] is _NOTHING or self._say(now - known[0].at) < 0.5:
            return _UNTOLD[found]
        account = self._ledger.account(place)
        others_s = self._others_s(place, account, *known, now - known[0].at)
        return Guess((found, known[1]), max(0.0, others_s))

    def found(self, place: int, now: float) -> Found:
        """How the replica looks, if that is still worth more than not having seen it."""
        found, age_s = self.pace.found(place, now)
        return found if age_s < self._memory_s else _UNSEEN

    def explained(self, guess: Guess, stood_s: float, own_s: float) -> None:
        """A call stood ``stood_s`` seconds until its first content; its own client had caused ``own_s`` of them."""
        found, basis_ = guess.look
        self._looks[basis_].add(found, max(0.0, stood_s - own_s - guess.reported_s))

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self.pace.drop(place)
        self._reports.pop(place, None)
        self._pushed.pop(place, None)
        self._under_way.pop(place, None)
        self._inflow.drop(place)

    @staticmethod
    def _is_old(known: LoadReport, report: LoadReport) -> bool:
        if known.epoch is not None and known.epoch == report.epoch and known.seq is not None:
            # Answers and the stream overtake one another: the replica's own count knows which was first.
            return report.seq is not None and report.seq <= known.seq
        return report.at < known.at

    def _is_less(self, known: LoadReport, report: LoadReport) -> bool:
        """Whether it tells nothing but that all is well, or is of another source and tells less than the one at hand,
        while that is fully believed.
        """
        told = tells(report)
        if told >= tells(known):
            return False
        if not told and _says_well(known) and _says_well(report) and report.epoch in (None, known.epoch):
            return report.free_requests is None and report.free_tokens is None
        if report.source == known.source or {report.source, known.source} == REPORTER:
            return False
        return report.at - known.at < self._expiry_s / 2

    def _say(self, age_s: float) -> float:
        """How much a report of this age is believed: fully for half of its life, then less and less."""
        return min(1.0, max(0.0, 2.0 - 2.0 * age_s / self._expiry_s))

    def _told_s(
        self,
        place: int,
        account: Account,
        own_s: float,
        overdue_s: float,
        report: LoadReport,
        basis_: Basis,
        left_s: float,
        now: float,
    ) -> float:
        others_s = self._others_s(place, account, report, basis_, left_s, now - report.at)
        if basis_ in _ALL_TOLD:
            # Own calls that it counts are there, whatever it says: one that lies piles them up, and is left alone.
            return max(others_s, own_s - account.unknown_s) + account.unknown_s
        if basis_ is Basis.EMPTY_QUEUE:
            # Nobody waits: what stands there is under way, whoever sent it.
            under_s = max(0.0, left_s - (now - report.at))
            return account.unknown_s + max(
                own_s - account.unknown_s + overdue_s, under_s, self._looked_s(place, now, basis_)
            )
        return own_s + max(overdue_s, others_s + self._looked_s(place, now, basis_))

    def _others_s(
        self, place: int, account: Account, report: LoadReport, basis_: Basis, left_s: float, age_s: float
    ) -> float:
        known, known_s = 0, 0.0
        if basis_ not in _ALL_TOLD:
            known = len(account.queue) - account.unknown
            known_s = account.prefill_s - account.unknown_s
        seconds = reported_s(report, self.work, self._rate(place), known, known_s)
        if basis_ is not Basis.SHARE:
            seconds += left_s
        return max(0.0, seconds - age_s)

    def _looked_s(self, place: int, now: float, basis_: Basis) -> float:
        """Seconds of others' work that no report tells of, by the looks of the replica."""
        found, age_s = self.pace.found(place, now)
        seconds = self._looks[basis_].seconds
        unseen_s = seconds[_UNSEEN]
        if found is _UNSEEN:
            return unseen_s
        return unseen_s + (seconds[found] - unseen_s) * exp(-age_s / self._memory_s)


def _says_well(report: LoadReport) -> bool:
    return report.state is None or report.state is State.READY
