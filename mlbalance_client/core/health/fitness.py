"""Which replicas may be sent calls: what was learned of their health, and what they say of themselves, in one place.

Replicas that rest, are ejected, on trial, closed by their own word, or have no memory left are avoided; each rule is a
module of its own. ``levels`` says in which order they are asked nevertheless where nobody else is left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from random import Random
from typing import NamedTuple

from ...events import PanicChanged, ReplicaEjected, ReplicaReturned
from ..load.memory import Fullness
from ..load.report import LoadReport
from ..model import Replica, ReplicaId
from .absences import Absences
from .outlier import Ejection, Failure, Outliers, Proof
from .pushback import Pushback
from .readiness import Readiness
from .slow_start import SlowStart

# Who refuses a connection is not called again before a check has reached it, or this is over.
_UNTIL_CHECKED_S = 30.0


class _NoDetection(NamedTuple):
    """Nobody is ever ejected."""

    consecutive_failures: int = 0
    failure_share: float = 1.0
    slow_factor: float = float("inf")
    ejection_base_s: float = 30.0
    ejection_max_s: float = 300.0
    max_ejected_share: float = 0.0
    panic_below_share: float = 0.0


class _NoSlowStart(NamedTuple):
    """Newcomers are taken as they are."""

    window_s: float = 0.0
    min_share: float = 1.0


class Unproven(NamedTuple):
    """A replica of which traffic tells nothing now, and the proof that it is well.

    ``out``: it is ejected, or rests for refusing connections.
    """

    replica: Replica
    needs: Proof
    out: bool = False


News = ReplicaEjected | ReplicaReturned | PanicChanged


def unheard(news: News) -> None:
    """Nobody listens."""


def _never(place: int) -> float:
    """No stream has come from anywhere."""
    return float("-inf")


def _idle(place: int) -> bool:
    """Nobody is known to wait."""
    return True


def _nothing(place: int) -> None:
    """Nobody has learned anything that is to be forgotten."""


class Fitness:
    """One client's. ``replicas`` and ``places``: the fleet's own tables, which change under it.

    ``forget``: called with the place of a replica whose speed is to be learned anew; ``changed``: when who is out has;
    ``idle``: whether no call waits at a place for its first content; ``streamed_at``: when a piece last came from it.
    """

    def __init__(
        self,
        replicas: Mapping[int, Replica],
        places: Mapping[ReplicaId, int],
        rng: Random,
        expiry_s: float,
        *,
        pushback: Pushback | None = None,
        outliers: Outliers | None = None,
        slow_start: SlowStart | None = None,
        tell: Callable[[News], None] = unheard,
    ) -> None:
        self._replicas = replicas
        self._places = places
        self.pushback = pushback or Pushback(1.0, 30.0)
        self.outliers = outliers or Outliers(_NoDetection(), rng)
        self.slow_start = SlowStart(_NoSlowStart()) if slow_start is None else slow_start
        self.readiness = Readiness(expiry_s)
        self.absences = Absences(self.pushback.alike)
        self.fullness = Fullness(expiry_s)
        self.forget: Callable[[int], None] = _nothing
        self.changed: Callable[[], None] = lambda: None
        self.idle: Callable[[int], bool] = _idle
        self.streamed_at: Callable[[int], float] = _never
        self._tell = tell
        self._panicked = False
        self._heard_at: dict[int, float] = {}
        self._returned_at: dict[int, float] = {}
        self._refused_at: dict[int, float] = {}
        self._failed: dict[int, Failure] = {}
        self._epochs: dict[int, str] = {}

    # -- who may be sent a call ---------------------------------------------------------------------------------

    def unwilling(self, model: str | None, now: float, *, replayable: bool) -> int:
        """Who is to get no call for ``model``, as a bit set; nor on trial, if it is not ``replayable``."""
        return (
            self.pushback.resting(now) | self._closed(model, now) | self._kept_out(now, replayable=replayable)
        )

    def levels(self, model: str | None, now: float, *, replayable: bool) -> Iterator[int]:
        """Who is not to get it, from the best case to the worst.

        Those who are full, on trial with another call, ejected, who rest, who cannot be reached, and who say that they
        are closed get a call only where nobody else is left, in this order: to ask one is better than to fail unasked.
        """
        closed = self._closed(model, now)
        resting = closed | self.pushback.resting(now)
        kept_out = resting | self._kept_out(now, replayable=replayable)
        yield kept_out | self.fullness.full(now)
        yield kept_out
        yield resting | self.outliers.barred
        yield resting | self.outliers.unreachable
        yield closed | self.outliers.unreachable
        yield closed
        yield 0

    def _closed(self, model: str | None, now: float) -> int:
        """Who says that it takes no calls for the model: by its report, or by its answer to one."""
        return self.readiness.closed(model, now) | self.absences.lacking(model, now)

    def _kept_out(self, now: float, *, replayable: bool) -> int:
        """Who is ejected, or may be silent or is on trial, and not to get this call."""
        self.pass_to(now)
        kept_out = self.outliers.barred
        for place in self.outliers.silences.doubtful:
            if not self.idle(place):
                kept_out |= 1 << place
        if self.slow_start.active:
            kept_out |= self.slow_start.barred(now, replayable=replayable)
        return kept_out

    def kept_out(self, model: str | None, now: float) -> dict[int, str]:
        """Who gets no call for ``model`` while others can have it, each with the first reason, in words."""
        unwilling, full = self.unwilling(model, now, replayable=True), self.fullness.full(now)
        closed, lacking = self.readiness.closed(model, now), self.absences.lacking(model, now)

        def why(place: int, replica: Replica) -> str:
            bit = 1 << place
            if not replica.usable:
                because = f": {replica.because}" if replica.because else ""
                return f"discovery says that it is {replica.state}{because}"
            if self.outliers.barred & bit and (ejection := self.outliers.ejection(place)) is not None:
                return f"it is ejected: {ejection.why}"
            if (rests_s := self.pushback.rests_s(place, now)) > 0.0:
                until = ", or until a check reaches it" if self._awaits_check(place) else ""
                return f"it {self._failed.get(place, Failure.ERROR)} and rests for {rests_s:.1f} s{until}"
            if closed & bit:
                return self.readiness.why_closed(place, model)
            if lacking & bit:
                return "it has answered that it does not have the model"
            if unwilling & bit:
                return "it gets one call at a time until it has answered one"
            return "its memory is all but full"

        return {
            place: why(place, replica)
            for place, replica in self._replicas.items()
            if not replica.usable or (unwilling | full) >> place & 1
        }

    def _awaits_check(self, place: int) -> bool:
        """Whether the replica has refused a connection, and gets no call before a check has reached it."""
        return self.outliers.awaits_checks and place in self._refused_at

    def pass_to(self, now: float) -> None:
        """Let back and eject those for whom it is time: at every pick, check and snapshot, and so without calls too."""
        if self.outliers.due(now):
            for place in self.outliers.returned(now):
                self._come_back(place, now)
            for ejection in self.outliers.overdue(now):
                self.eject(ejection, now)

    # -- what is learned of them --------------------------------------------------------------------------------

    def joined(self, place: int, now: float, *, cold: bool) -> None:
        """A replica is there; ``cold``: among others that were there before."""
        self._heard_at[place] = now
        if cold:
            self.slow_start.admit(place, now)

    def members_changed(self, now: float) -> None:
        """Discovery has changed who there is, or in which state."""
        self.outliers.members((place for place, replica in self._replicas.items() if replica.usable), now)
        self._out_changed(now)

    def drop(self, place: int) -> None:
        """The replica is gone."""
        for table in (
            *(self.pushback, self.readiness, self.absences, self.outliers, self.slow_start, self.fullness),
        ):
            table.drop(place)
        self._heard_at.pop(place, None)
        self._returned_at.pop(place, None)
        self._refused_at.pop(place, None)
        self._failed.pop(place, None)
        self._epochs.pop(place, None)

    def hear(self, place: int, report: LoadReport) -> None:
        """A replica has told how it is."""
        was_cold = self.readiness.cold(place, report.at)
        model_opens = self.readiness.hear(place, report)
        self.fullness.hear(place, report)
        opens = was_cold and not self.readiness.closed(None, report.at) >> place & 1
        restarted = self._restarted(place, report.epoch)
        if opens or restarted:
            self.slow_start.admit(place, report.at)
        if model_opens or restarted:
            self.absences.drop(place)

    def _restarted(self, place: int, epoch: str | None) -> bool:
        if epoch is None:
            return False
        known, self._epochs[place] = self._epochs.get(place, epoch), epoch
        return known != epoch

    def served(self, place: int, sent: float, now: float, by: Proof = Proof.CALLS) -> None:
        """A replica served a call, or a check of its model, which was sent at ``sent``, to its end."""
        self.answered(place, sent, now)
        self._heard_at[place] = now
        self.pushback.succeeded(place, sent)
        self.outliers.served(place, now, by)
        if self.slow_start.active:
            self.slow_start.served(place, sent, now)

    def answered(self, place: int, sent: float, now: float) -> None:
        """A replica answers a call that was sent at ``sent``, whatever it says: if it refused before, it does no more.

        That proves as much as a passed check of its server; but for a call that was sent before it refused, nothing:
        connections that are open may outlive the one who accepts them.
        """
        if (refused_at := self._refused_at.get(place)) is not None and sent >= refused_at:
            self.checked(self._replicas[place].id, now, Proof.SYSTEM)

    def failed(
        self,
        place: int,
        kind: Failure,
        now: float,
        retry_after_s: float | None,
        *,
        on_trial: bool,
        by: Proof = Proof.CALLS,
    ) -> None:
        """A replica failed a call, or a check."""
        self._heard_at[place] = now
        self._failed[place] = kind
        if kind is Failure.UNREACHABLE:
            self._refused_at[place] = now
            if self.outliers.awaits_checks:
                retry_after_s = retry_after_s or _UNTIL_CHECKED_S
        self.pushback.failed(place, now, retry_after_s)
        self.eject(self.outliers.failed(place, kind, now, on_trial=on_trial, by=by), now)

    def eject(self, ejection: Ejection | None, now: float) -> None:
        """Act on an ejection, if there is one."""
        if ejection is None:
            return
        self.slow_start.drop(ejection.place)
        self.forget(ejection.place)
        replica = self._replicas[ejection.place]
        self._tell(
            ReplicaEjected(
                now, replica.id, ejection.why, ejection.until - now, ejection.count, ejection.unreachable
            )
        )
        self._out_changed(now)

    def checked(self, id_: ReplicaId, now: float, proof: Proof) -> None:
        """A health check was passed; it ends an ejection of which it proves the evidence wrong.

        A model that has answered has shown itself: its replica is not on trial any more.
        """
        if (place := self._places.get(id_)) is None:
            return
        self._heard_at[place] = now
        refused = self._refused_at.pop(place, None) is not None
        if refused and self._failed.get(place) is Failure.UNREACHABLE:  # else it has asked for its rest since
            self.pushback.drop(place)
        ejection = self.outliers.ejection(place)
        if ejection is not None:
            if proof < ejection.needs:
                if ejection.unreachable:
                    self.outliers.reached(place, now)
                    self._out_changed(now)
                return
            self.outliers.release(place, now)
            self._come_back(place, now)
        if proof is Proof.MODEL:
            self.outliers.silences.begun(place, 0.0, now)
            self.served(place, now, now, proof)
        else:
            self.outliers.served(place, now, proof)

    def reached(self, id_: ReplicaId, now: float) -> None:
        """A replica has answered a check that says nothing of its health, but it can be reached."""
        place = self._places.get(id_)
        ejection = None if place is None else self.outliers.ejection(place)
        if place is not None and (
            self._awaits_check(place) or (ejection is not None and ejection.unreachable)
        ):
            self.checked(id_, now, Proof.SYSTEM)

    def check_failed(
        self, id_: ReplicaId, asked: float, now: float, kind: Failure, by: Proof = Proof.MODEL
    ) -> bool:
        """A health check was failed that was begun at ``asked``; it counts like a call among those in a row.

        False, and nothing has happened, if the replica is gone, or has come back since: it was asked how it was before.
        """
        place = self._places.get(id_)
        if place is None or self._returned_at.get(place, asked) > asked:
            return False
        self.failed(place, kind, now, None, on_trial=self.slow_start.on_trial(place), by=by)
        return True

    def without_evidence(self, now: float, older_than_s: float) -> list[Unproven]:
        """Those of whom nobody has told for so long, and those who are out or on trial: what proof each needs.

        Not those of whom only callers' calls can tell, nor those that take no calls by their own word or a registry's.
        """
        self.pass_to(now)
        closed = self.readiness.closed(None, now)
        found = []
        for place, replica in self._replicas.items():
            if not replica.usable or closed >> place & 1:
                continue
            if (ejection := self.outliers.ejection(place)) is not None:
                if ejection.needs < Proof.CALLS:
                    found.append(Unproven(replica, ejection.needs, out=True))
            elif self._awaits_check(place):
                found.append(Unproven(replica, Proof.SYSTEM, out=True))
            elif self.slow_start.on_trial(place):
                found.append(Unproven(replica, Proof.MODEL))
            elif now - max(self._heard_at[place], self.streamed_at(place)) >= older_than_s:
                found.append(Unproven(replica, Proof.SYSTEM))
        return found

    def _come_back(self, place: int, now: float) -> None:
        self._returned_at[place] = now
        self.slow_start.admit(place, now)
        self._refused_at.pop(place, None)
        self.pushback.drop(place)
        self.forget(place)
        self._tell(ReplicaReturned(now, self._replicas[place].id))
        self._out_changed(now)

    def _out_changed(self, now: float) -> None:
        self.changed()
        if self.outliers.panic != self._panicked:
            self._panicked = self.outliers.panic
            usable = sum(replica.usable for replica in self._replicas.values())
            self._tell(PanicChanged(now, self._panicked, len(self.outliers.out), usable))
