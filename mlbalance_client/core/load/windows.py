"""How much more a replica may be sent now: its window, in requests and in tokens.

======================== =============================================================================================
known of the replica     it is full when
======================== =============================================================================================
``free`` (a grant)       the requests that it granted this client are under way; for calls that wait also the tokens
batch limit              running and waiting requests exceed it by an eighth
KV memory                as ``memory`` says
work that stands there   it is ``engine_queue_s`` seconds or more; for calls that wait in an overload a third of it;
                         for ordinary ones a fifth of either, for a minute after each urgent one
======================== =============================================================================================

What was sent since a report was made is counted against it until a report counts it. The place of a call that has come
to its own end is free again at once, unless the replica counts the call and grants places to several clients: then it
says who is next.
A replica that has places free but grants none (where clients are more than places each has its turn) may be sent one
call: at once if none waits, else if nobody has taken the place for a while. Who has nothing of this client in its
queue, and does not itself say that work stands there, is not full by a guess: idle ones must be found.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Protocol

from .company import Company
from .delay_limit import DelayLimit
from .ledger import Charge, Ledger
from .memory import left_tokens
from .report import LoadReport, State
from .view import LoadView

# An engine's own queue keeps it busy between two of its reports.
_QUEUE_SHARE = 1 / 8
# In an overload a replica gets the next one when no more than this part of its queue is left.
_PULL_SHARE = 1 / 3
# And where urgent calls have come of late only this part of that, from before the overload on, which does not announce
# itself: the rest is kept for them, who would else wait behind what stands already, or for their own client's turn
# among all clients (trunk reservation).
_KEPT_SHARE = 1 / 5
_KEPT_FOR_S = 60.0
# Who hears of free places for so long, and is granted none, takes one: nobody else wants them. That the last one is
# taken the load stream tells within 50 ms, or a millisecond for each client; all clients together would be too many.
_UNSOLD_S = 0.3
_UNSOLD_EACH_S = 0.0012
_APART_EACH_S = 0.003
# What is urgent waits for no ordinary call's end: to be refused, or to stand in line here, is worse than a full queue
# there. Only that so much stands already, in queues, says that urgent calls themselves are too many.
_URGENT_QUEUES = 4.0


class WindowSettings(Protocol):
    """What windows read of the configuration."""

    @property
    def engine_queue_s(self) -> float: ...


@dataclass(slots=True)
class _Room:
    """What a report leaves open. ``sent``: own charges that it does not count; ``counted``: how many calls it does.

    ``granted``: it is for this client; ``spare_from``: but its one place is for anybody, for calls that wait from then
    on.
    """

    report: LoadReport
    requests: float | None
    tokens: float | None
    granted: bool
    spare_from: float | None = None
    sent: dict[Charge, None] = field(default_factory=dict)
    sent_tokens: int = 0
    counted: int = 0

    @property
    def shut(self) -> bool:
        """No request, or (unless tokens are a grant of work) no memory is left."""
        return (self.requests is not None and self.requests <= len(self.sent)) or (
            not self.granted and self.tokens is not None and self.tokens <= self.sent_tokens
        )

    def pulls(self, now: float) -> bool:
        """Whether a call that waits may be sent."""
        return (
            (self.spare_from is None or now >= self.spare_from)
            and not self.shut
            and (self.tokens is None or self.tokens > self.sent_tokens)
        )

    def add(self, charge: Charge) -> None:
        self.sent[charge] = None
        self.sent_tokens += self._tokens(charge)

    def give_back(self, charge: Charge) -> None:
        """The call has ended."""
        if charge in self.sent:
            del self.sent[charge]
            self.sent_tokens -= self._tokens(charge)
        elif not self._shared and self.requests is not None and self.counted and _counts(self.report, charge):
            # By time, more calls may be in the report than it counts; and it may be quicker than the end of a call that
            # it counts no more.
            places = self.requests - len(self.sent) + charge.account.requests
            limit = self.report.batch_limit
            if not limit or places + 1.0 <= limit + (0.0 if self.granted else _queued(self.report)):
                self.counted -= 1
                self.requests += 1.0

    @property
    def _shared(self) -> bool:
        """Whether the replica says who gets a place."""
        return self.granted and self.report.subscribers != 1

    def _tokens(self, charge: Charge) -> int:
        # A grant is about prefill; memory is held for what is generated too.
        return charge.prefill_tokens + (0 if self.granted else charge.decode_tokens)


@dataclass(frozen=True, slots=True)
class Window:
    """A replica's window, for people: what is left of it, and by whose word. None: not limited."""

    full: bool
    requests: int | None
    tokens: int | None
    basis: str


class Windows:
    """``expiry_s``: a report's life."""

    def __init__(
        self,
        settings: WindowSettings,
        ledger: Ledger,
        load: LoadView,
        company: Company,
        expiry_s: float,
        rng: Random,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._load = load
        self._expiry_s = expiry_s
        self._rng = rng
        self._rooms: dict[int, _Room] = {}
        self._kept_until = -inf
        self.limit = DelayLimit(settings.engine_queue_s, company)

    def hear(self, place: int, report: LoadReport) -> None:
        """A report came that is believed. Only the stream ends a grant that still counts by telling of none."""
        known = self._rooms.get(place)
        granted = report.free_requests is not None or report.free_tokens is not None
        if (
            not (granted or report.pushed)
            and known is not None
            and known.granted
            and report.at - known.report.at < self._expiry_s
        ):
            return
        requests, tokens = _room(report)
        spare_from = None
        if requests == 0 and granted and report.state is State.READY and (places := _places(report) or 0) > 0:
            requests, spare_from = 1.0, self._spare_from(report, places, known)
        if requests is None and tokens is None:
            self._rooms.pop(place, None)
            return
        calls = (report.running or 0) + (report.waiting or 0)
        room = self._rooms[place] = _Room(report, requests, tokens, granted, spare_from, counted=int(calls))
        for charge in known.sent if known is not None else ():
            if not _counts(report, charge):
                room.add(charge)

    def _spare_from(self, report: LoadReport, places: int, known: _Room | None) -> float:
        """From when on a call that waits may have one of the places that are for anybody."""
        if known is not None and known.spare_from is not None:
            return known.spare_from
        clients = report.subscribers or 1
        apart_s = self._rng.random() * _APART_EACH_S * clients / places
        return report.at + max(_UNSOLD_S, _UNSOLD_EACH_S * clients) + apart_s

    def charged(self, place: int, charge: Charge, *, starting: bool) -> None:
        """A call was sent there; ``starting``: to one that starts slowly, of which no delay tells of others' work."""
        if not charge.blind:
            self.limit.sent(charge, tells=not starting)
        room = self._rooms.get(place)
        if room is not None and self._current(place, room, charge.at):
            room.add(charge)

    def answered(self, charge: Charge, now: float, *, judged: bool) -> None:
        """A call's first content has come."""
        self.limit.answered(charge, self._ledger.queued + 1, now, judged=judged)

    def ended(self, place: int, charge: Charge) -> None:
        """A call there has come to its own end, whether the last report counts it or not."""
        if (room := self._rooms.get(place)) is not None:
            room.give_back(charge)

    def opens_in_s(self, now: float) -> float:
        """In how many seconds this client may send one more, wherever it be; infinite: it is not known."""
        return self.limit.opens_in_s(self._ledger.queued, now)

    def shut(self, place: int, now: float) -> bool:
        """Whether nothing more may be sent there: its requests or its memory are at their limit."""
        room = self._rooms.get(place)
        return room is not None and self._current(place, room, now) and room.shut

    def full(self, place: int, waiting_s: float, now: float, most_s: float) -> bool:
        """Whether it has enough to do. ``waiting_s``: work that stands there; ``most_s``: that may stand there.

        On the path of every call.
        """
        if self.shut(place, now):
            return True
        return waiting_s >= most_s and not self._guessed(place, now)

    def most_s(self, now: float, *, ordinary: bool = True, overload: bool = False) -> float:
        """How much work may stand where a call is sent to."""
        most_s = self._settings.engine_queue_s
        if overload:
            most_s *= _PULL_SHARE
        return most_s * _KEPT_SHARE if ordinary and now < self._kept_until else most_s

    def _guessed(self, place: int, now: float) -> bool:
        """Whether work is there only by what calls before have found: nothing of it would ever end by itself."""
        return not self._ledger.accounts[place].queue and not self._load.tells_of_work(place, now)

    def _standing_s(self, place: int, now: float) -> float:
        return 0.0 if self._guessed(place, now) else self._load.waiting_s(place, now)

    def window(self, place: int, now: float) -> Window:
        """What is left of it."""
        room = self._rooms.get(place)
        full = self.full(place, self._load.waiting_s(place, now), now, self.most_s(now))
        if room is not None and self._current(place, room, now):
            requests = None if room.requests is None else max(0, int(room.requests - len(room.sent)))
            tokens = None if room.tokens is None else max(0, int(room.tokens - room.sent_tokens))
            return Window(
                full, requests, tokens, "granted" if room.granted and room.spare_from is None else "reported"
            )
        return Window(full, None, None, "open")

    def urgent_comes(self, now: float) -> None:
        """A call that is more important than others: room is kept for more of them."""
        self._kept_until = now + _KEPT_FOR_S

    def takes_urgent(self, place: int, now: float) -> bool:
        """Whether it takes a call that is more important than others who wait; a grant is about ordinary ones."""
        if self.shut(place, now) or not self.limit.takes_urgent(self._ledger.queued, now):
            return False
        if self._load.tells_of_work(place, now):
            standing_s = self._load.waiting_s(place, now)
        else:
            standing_s = sum(self._ledger.accounts[place].standing_s(now))
        return standing_s < _URGENT_QUEUES * self._settings.engine_queue_s

    def pulls(self, place: int, now: float, *, overload: bool) -> bool:
        """Whether it has room for a call that waits."""
        if (room := self._granting(place, now)) is not None:
            return room.pulls(now)
        return not self.full(
            place, self._load.waiting_s(place, now), now, self.most_s(now, overload=overload)
        )

    def drains_in_s(self, place: int, now: float, *, overload: bool) -> float:
        """In how many seconds it pulls by the mere draining of work; infinite if that is not what it wants."""
        if (room := self._granting(place, now)) is not None:
            left_s = (room.spare_from or -inf) - now
            return left_s if left_s > 0.0 and not room.shut else inf
        if self.shut(place, now):
            return inf
        left_s = self._standing_s(place, now) - self.most_s(now, overload=overload)
        return left_s if left_s > 0.0 else inf

    def _granting(self, place: int, now: float) -> _Room | None:
        room = self._rooms.get(place)
        return room if room is not None and room.granted and self._current(place, room, now) else None

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._rooms.pop(place, None)

    def _current(self, place: int, room: _Room, now: float) -> bool:
        if now - room.report.at < self._expiry_s:
            return True
        self._rooms.pop(place, None)  # a question may find the same room too old twice
        return False


def _room(report: LoadReport) -> tuple[float | None, float | None]:
    """Requests and tokens that are left."""
    if report.free_requests is not None or report.free_tokens is not None:
        return report.free_requests, report.free_tokens
    if report.partial:  # what one of several processes runs is not what the replica runs
        return None, None
    places = _places(report)
    return None if places is None else places + _queued(report), left_tokens(report)


def _queued(report: LoadReport) -> float:
    """How many requests may wait there beyond its batch."""
    return max(1.0, (report.batch_limit or 0) * _QUEUE_SHARE)


def _places(report: LoadReport) -> int | None:
    """How many of the batch are free, for all clients together."""
    if not report.batch_limit or report.running is None or report.partial:
        return None
    return report.batch_limit - report.running - (report.waiting or 0)


def _counts(report: LoadReport, charge: Charge) -> bool:
    if charge.settled and charge.at <= report.at:
        return True  # it is over, also where it never arrived and is therefore never acknowledged
    if report.acked is None or not charge.number:
        return charge.at <= report.at
    return charge.number <= report.acked
