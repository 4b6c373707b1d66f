"""Which replicas are kept out for a while because they behave unlike the others (outlier detection, as Envoy's).

Evidence against a replica, each weighed against what the others show, so that a bad hour of all ejects nobody:

========== ==================================================================================================
failures   so many calls or checks in a row (of broken connections fewer), while most others do not fail
refusals   of connections, likewise: *unreachable*, which is out in any case and does not count as ejected
rate       the lower Wilson bound of its share of failed calls is above ``failure_share`` and twice the others'
silence    several slow calls, and no answer begun since, though others begin theirs (``silence.py``)
slowness   even the quicker quarter of its recent calls took ``slow_factor`` times what the others' took, each
           as a multiple of what a replica of its declared weight would need: long prompts and queues that are
           known do not count, and a replica somewhat slower is not ejected but weighed by its learned rate
pace       its streams' quickest pieces come ``slow_factor`` times slower than the others', beside no prefill
========== ==================================================================================================

An ejection lasts ``ejection_base_s``, longer with each one (k times, 10 % jitter), k decaying as time passes well. At
most ``max_ejected_share`` of those that can be reached are out at once, and never the last one. With fewer than
``panic_below_share`` left, ejections are ignored (panic): it is better to ask everyone than to drown the rest.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from math import sqrt
from random import Random
from statistics import median
from typing import Protocol

from ...errors import FailureKind
from .silence import Silences

_WINDOW_S = 30.0
_LEAST_FAILURES = 3
_Z = 1.64
_BROKEN_COUNTS = 5 / 3
_SAMPLES = 16
_ENOUGH = 6
_QUICKER = 0.25
_OTHERS = 2
_UNREACHABLE_S = 5.0
_UNREACHABLE_CHECKED_S = 60.0
_JITTER = 0.1


class Failure(StrEnum):
    """How a replica failed a call. ``PUSHBACK`` is no fault: it has too much to do."""

    UNREACHABLE = "refused the connection"
    BROKEN = "broke the connection"
    SILENT = "did not answer"
    ERROR = "answered with an error"
    PUSHBACK = "pushed back"


# Of a connection that the other side closed in the midst of an answer, HTTP says that its rules were broken.
_BROKEN = frozenset({FailureKind.READ, FailureKind.WRITE, FailureKind.PROTOCOL})
_SILENT = frozenset(
    {
        FailureKind.READ_TIMEOUT,
        FailureKind.WRITE_TIMEOUT,
        FailureKind.FIRST_CONTENT_TIMEOUT,
        FailureKind.SILENT,
    }
)


def failure_of(kind: FailureKind) -> Failure | None:
    """What an attempt without an answer says of its replica; None: nothing, it was its caller's doing."""
    if kind.never_sent:
        return Failure.UNREACHABLE
    if kind in _BROKEN:
        return Failure.BROKEN
    return Failure.SILENT if kind in _SILENT else None


def failure_of_status(status: int, retry_after_s: float | None, *, says_busy: bool = False) -> Failure:
    """What a refusal says of its replica; a 503 is a fault unless it names a time, or says in words that it is busy."""
    busy = status in (429, 529) or (status == 503 and (says_busy or bool(retry_after_s)))
    return Failure.PUSHBACK if busy else Failure.ERROR


class Proof(IntEnum):
    """What shows how a replica is: a check of its server, one of its model, or callers' calls."""

    SYSTEM = 1
    MODEL = 2
    CALLS = 3


class OutlierSettings(Protocol):
    """The knobs; the configuration's section ``outlier_detection`` fulfils it."""

    @property
    def consecutive_failures(self) -> int: ...
    @property
    def failure_share(self) -> float: ...
    @property
    def slow_factor(self) -> float: ...
    @property
    def ejection_base_s(self) -> float: ...
    @property
    def ejection_max_s(self) -> float: ...
    @property
    def max_ejected_share(self) -> float: ...
    @property
    def panic_below_share(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Ejection:
    """One replica is out until ``until``; ``why``: the evidence in words and figures. ``count``: it grows with each.

    ``needs``: what would prove the evidence wrong before its time. One good answer says nothing against slowness, nor
    against a share of failures.
    """

    place: int
    why: str
    until: float
    count: int
    unreachable: bool
    needs: Proof = Proof.MODEL


@dataclass(slots=True)
class _Record:
    """What one replica has shown. ``failures``: in a row, by what has shown them, ``row``: by their weight."""

    good: float = 0.0
    bad: float = 0.0
    counted_at: float = 0.0
    row: dict[Proof, float] = field(default_factory=dict)
    failures: Counter[Proof] = field(default_factory=Counter)
    broken: int = 0
    multiples: deque[float] = field(default_factory=lambda: deque(maxlen=_SAMPLES))
    times_out: int = 0
    refused: int = 0
    back_at: float = 0.0
    needed: Proof = Proof.SYSTEM

    def count(self, good: float, bad: float, now: float) -> None:
        """Add to counts that fade over the window."""
        keep = 0.5 ** (max(0.0, now - self.counted_at) / _WINDOW_S)
        self.good, self.bad, self.counted_at = self.good * keep + good, self.bad * keep + bad, now

    def row_ends(self) -> None:
        """What comes next is the first in a row."""
        self.row.clear()
        self.failures.clear()
        self.broken = 0

    def failed_in_a_row(self) -> str:
        """``3 calls and 2 checks``."""
        calls = self.failures[Proof.CALLS]
        counts = {"call": calls, "check": self.failures.total() - calls}
        return " and ".join(f"{count} {what}{'s' * (count > 1)}" for what, count in counts.items() if count)


class Outliers:
    """One client's. Places are those of its fleet; ``members``: those that may be picked as far as discovery goes.

    ``awaits_checks``: whether health checks run, which tell when one that was unreachable is back.
    """

    def __init__(self, settings: OutlierSettings, rng: Random) -> None:
        self._settings = settings
        self._rng = rng
        self._records: dict[int, _Record] = {}
        self._members: frozenset[int] = frozenset()
        self._out: dict[int, Ejection] = {}
        self.silences = Silences()
        self._barred = 0
        self._unreachable = 0
        self._next_back = float("inf")
        self._typical: tuple[int, float | None] = (0, None)
        self._timed = 0
        self.panic = False
        self.awaits_checks = False

    # -- who is out ---------------------------------------------------------------------------------------------

    @property
    def out(self) -> Collection[Ejection]:
        """Who is out, and why."""
        return self._out.values()

    @property
    def barred(self) -> int:
        """Who is not to be picked, as a bit set; in panic only the unreachable."""
        return self._unreachable if self.panic else self._barred

    @property
    def unfit(self) -> int:
        """Who is out, panic or not."""
        return self._barred

    @property
    def unreachable(self) -> int:
        """Who is out for refusing connections."""
        return self._unreachable

    def ejection(self, place: int) -> Ejection | None:
        """The ejection that keeps a replica out."""
        return self._out.get(place)

    def due(self, now: float) -> bool:
        """Whether ``returned`` or ``overdue`` may have something to say; on the path of every pick."""
        return now >= self._next_back or bool(self.silences)

    def returned(self, now: float) -> list[int]:
        """Let those back whose time is over."""
        back = [ejection.place for ejection in self._out.values() if now >= ejection.until]
        for place in back:
            self.release(place, now)
        return back

    def overdue(self, now: float) -> Iterable[Ejection]:
        """Eject those whose silence has become too long."""
        for place in self.silences.places:
            if (ejection := self._by_silence(place, now)) is not None:
                yield ejection

    def release(self, place: int, now: float) -> None:
        """A replica is let back: what it has shown before is forgotten, how often it was out is not."""
        if self._out.pop(place, None) is not None:
            self._forget(place)
            self._records[place].back_at = now
            self._changed()

    def reached(self, place: int) -> None:
        """One that refused connections takes them again, but is out for other evidence too."""
        self._out[place] = replace(self._out[place], unreachable=False)
        self._changed()

    def members(self, places: Iterable[int], now: float) -> None:
        """Discovery has changed who there is."""
        self._members = frozenset(places)
        for place in [place for place in self._records if place not in self._members]:
            self.drop(place)
        for place in self._members:
            self._records.setdefault(place, _Record())
        self._trim(now)
        self._changed()

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._records.pop(place, None)
        self._out.pop(place, None)
        self.silences.drop(place)

    # -- evidence -----------------------------------------------------------------------------------------------

    def served(self, place: int, now: float, by: Proof = Proof.CALLS) -> None:
        """The replica served a call to its end, or passed a check: of its server, which ends a row of such alone."""
        record = self._records.get(place)
        if record is None:
            return
        if by is Proof.SYSTEM:
            record.row.pop(by, None)
            record.failures.pop(by, None)
            record.broken = 0
            return
        record.row_ends()
        record.refused = 0
        if by is Proof.CALLS:
            record.count(1.0, 0.0, now)

    def failed(
        self, place: int, kind: Failure, now: float, *, on_trial: bool = False, by: Proof = Proof.CALLS
    ) -> Ejection | None:
        """The replica failed a call, or a check, which is no call and so none of the share of them that failed.

        ``on_trial``: it was let back for this one.
        """
        record = self._records.get(place)
        if record is None or kind is Failure.PUSHBACK:
            return None
        if place in self._out:
            if kind is Failure.UNREACHABLE and self.awaits_checks:
                self._still_unreachable(place, now)
            return None
        broken = kind in (Failure.UNREACHABLE, Failure.BROKEN)
        if (
            by is Proof.CALLS and kind is not Failure.UNREACHABLE
        ):  # which harms no call, and has a rule of its own
            record.count(0.0, 1.0, now)
        record.row[by] = record.row.get(by, 0.0) + (_BROKEN_COUNTS if broken else 1.0)
        record.failures[by] += 1
        record.broken = record.broken + 1 if kind is Failure.UNREACHABLE else 0
        if kind is Failure.SILENT:
            self.silences.muted(place)
        if on_trial:
            unreachable, needs = kind is Failure.UNREACHABLE, max(record.needed, min(by, Proof.MODEL))
            why = f"it {kind} on trial" + ("" if by is Proof.CALLS else ", when it was checked")
            return self._eject(place, why, now, unreachable=unreachable, needs=needs)
        limit = self._settings.consecutive_failures
        if record.broken * _BROKEN_COUNTS >= limit > 0:
            return self._eject(place, f"it {kind} {record.broken} times in a row", now, unreachable=True)
        if sum(record.row.values()) >= limit > 0 and self._others_do_not_fail(place):
            why = f"it failed {record.failed_in_a_row()} in a row, the last time it {kind}"
            return self._eject(place, why, now, needs=min(max(record.row), Proof.MODEL))
        return self._by_rate(place, record, now) if by is Proof.CALLS else None

    def timed(
        self, place: int, multiple: float, now: float, *, at_least: bool = False, unsure: bool = False
    ) -> Ejection | None:
        """A call took ``multiple`` times what a replica of this weight would need.

        ``at_least``: it was given up on by then, which tells something only if that was slow.
        """
        record = self._records.get(place)
        if record is None or place in self._out:
            return None
        slow = multiple >= self._settings.slow_factor * (self._usual() or float("inf"))
        if (at_least and not slow) or (unsure and slow):
            return None
        samples = record.multiples
        samples.append(multiple)
        self._timed += 1
        if not slow or len(samples) < _ENOUGH:
            return None
        usual = self._usual_of_others(place)
        quicker = sorted(samples)[int(_QUICKER * (len(samples) - 1))]
        if usual is None or quicker < self._settings.slow_factor * usual:
            return None
        why = f"even the quicker of its last {len(samples)} calls took {quicker:.1f} times what they should, "
        why += f"the other replicas' {usual:.1f} times"
        return self._eject(place, why, now, needs=Proof.CALLS)

    def lags(self, place: int, factor: float, now: float) -> Ejection | None:
        """The replica's streams come ``factor`` times slower than the others'."""
        if factor < self._settings.slow_factor or place not in self._records or place in self._out:
            return None
        why = f"its streams come {factor:.1f} times slower than the other replicas'"
        return self._eject(place, why, now, needs=Proof.CALLS)

    def silent(self, place: int, call: Hashable, since: float, now: float) -> Ejection | None:
        """A call has been slow since then; told as often as it is looked at, each time since the last."""
        if place not in self._records or place in self._out:
            return None
        self.silences.slow(place, call, since, now)
        return self._by_silence(place, now)

    # -- rules --------------------------------------------------------------------------------------------------

    def _by_silence(self, place: int, now: float) -> Ejection | None:
        why = self.silences.too_long(place, now)
        if why is None:
            return None
        self.silences.forget(place)
        self.silences.muted(place)
        return self._eject(place, why, now)

    def _by_rate(self, place: int, record: _Record, now: float) -> Ejection | None:
        if record.bad < _LEAST_FAILURES - 0.5:
            return None
        calls = record.good + record.bad
        good = bad = 0.0
        for other, its in self._records.items():
            if other != place:
                good, bad = good + its.good, bad + its.bad
        others = bad / (good + bad) if good + bad else 0.0
        if wilson_low(record.bad, calls) <= max(self._settings.failure_share, 2 * others):
            return None
        why = (
            f"it failed {record.bad:.0f} of about {calls:.0f} recent calls, the others {others:.0%} of theirs"
        )
        return self._eject(place, why, now, needs=Proof.CALLS)

    def _others_do_not_fail(self, place: int) -> bool:
        others = [
            record for other, record in self._records.items() if other != place and other not in self._out
        ]
        return 2 * sum(bool(record.row) for record in others) <= len(others)

    def _usual(self) -> float | None:
        """The median of the replicas' medians, some samples old: the more replicas, the less often it is sought."""
        timed, usual = self._typical
        newer = self._timed - timed
        if newer >= _SAMPLES and newer >= len(self._records):
            usual = self._usual_of_others(None)
            self._typical = self._timed, usual
        return usual

    def _usual_of_others(self, place: int | None) -> float | None:
        medians = [
            median(record.multiples)
            for other, record in self._records.items()
            if other != place and other not in self._out and len(record.multiples) >= _ENOUGH
        ]
        return median(medians) if len(medians) >= _OTHERS + (place is None) else None

    def _eject(
        self, place: int, why: str, now: float, *, unreachable: bool = False, needs: Proof = Proof.MODEL
    ) -> Ejection | None:
        if not unreachable and self._ejected() >= self._most_ejected():
            return None
        settings, record = self._settings, self._records[place]
        if unreachable:
            count = record.refused = record.refused + 1
            base_s = min(_UNREACHABLE_S, settings.ejection_base_s)
            if self.awaits_checks:  # a check finds out that it is back, not a call
                base_s = _UNREACHABLE_CHECKED_S
        else:
            healthy = int((now - record.back_at) / settings.ejection_base_s)
            count = record.times_out = max(0, record.times_out - healthy) + 1
            base_s = settings.ejection_base_s
        jitter = 1.0 + _JITTER * (2 * self._rng.random() - 1)
        until = now + min(settings.ejection_max_s, base_s * count * jitter)
        needs = record.needed = Proof.SYSTEM if unreachable else needs
        ejection = self._out[place] = Ejection(place, why, until, count, unreachable, needs)
        self.silences.forget(place)
        self._trim(now)
        self._changed()
        return ejection

    def _still_unreachable(self, place: int, now: float) -> None:
        ejection = self._out[place]
        until = max(ejection.until, now + _UNREACHABLE_CHECKED_S)
        self._out[place] = replace(ejection, until=until, unreachable=True)
        self._trim(now)
        self._changed()

    def _trim(self, now: float) -> None:
        """Fewer can be reached now: let those back first whose time would be over first."""
        ejected = sorted((e for e in self._out.values() if not e.unreachable), key=lambda e: e.until)
        for ejection in ejected[: max(0, len(ejected) - self._most_ejected())]:
            self._out[ejection.place] = replace(ejection, until=now)

    def _ejected(self) -> int:
        return sum(not ejection.unreachable for ejection in self._out.values())

    def _most_ejected(self) -> int:
        reachable = len(self._members) - sum(ejection.unreachable for ejection in self._out.values())
        share = int(reachable * self._settings.max_ejected_share)
        return max(0, min(reachable - 1, max(share, 1 if self._settings.max_ejected_share else 0)))

    def _forget(self, place: int) -> None:
        record = self._records[place]
        record.good = record.bad = 0.0
        record.row_ends()
        record.multiples.clear()

    def _changed(self) -> None:
        out = self._out.values()
        self._barred = sum(1 << ejection.place for ejection in out)
        self._unreachable = sum(1 << ejection.place for ejection in out if ejection.unreachable)
        self._next_back = min((ejection.until for ejection in out), default=float("inf"))
        left = len(self._members) - len(out)
        self.panic = bool(out) and left < self._settings.panic_below_share * len(self._members)


def wilson_low(hits: float, count: float) -> float:
    """The lower bound (one-sided 95 %) of a share of which ``hits`` of ``count`` were seen (Wilson 1927)."""
    if count <= 0:
        return 0.0
    share, z2 = hits / count, _Z * _Z
    middle = share + z2 / (2 * count)
    spread = _Z * sqrt(max(0.0, share * (1 - share) / count + z2 / (4 * count * count)))
    return (middle - spread) / (1 + z2 / count)
