"""One call's attempts as a machine without I/O: events in, one command out. Attempts are numbered from 1.

Rules. What the caller's own limit ended goes nowhere. What was never sent goes to another replica at once, once
per replica, free of limits and budget. What was sent and failed (no answer, or a status of ``RETRIED_STATUSES`` before
the commit point) goes elsewhere if the call is replayable, the strategies allow it and the budget has room; what met a
connection that had just been closed may go to the same replica once more, once a call, out of the same budget: that is
no attempt of its own, since it is about a connection, not a replica. A refusal that speaks for
its replica's load goes only to one that does not rest: when the whole fleet pushes back, a retry would add to it; then
the time that the replica named is waited for if it is short, else its answer delivered. So does what met a replica
without the call's model; if nobody else is left, that is the call's own fault. What a replica says of retrying comes
before its status.

Besides, a second attempt may *hedge* the first while that is under way. The first content of any ends the others; one
that fails leaves the others running, and only when none is under way does another start. An answer in hand is
delivered rather than an error raised: a failing answer is held while others are tried. One of them that failed while
the other goes on may be replaced, once. After the commit point no attempt starts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from math import inf
from typing import NamedTuple, Protocol

from ..errors import FailureKind
from .budget import Budget
from .model import ReplicaId

# What another replica may do better; 500 too, since an engine that has died says so. All else is the call's own fault,
# and the same everywhere.
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})
# These (529 is Anthropic's overload) speak for their replica's load.
_PUSHBACK = frozenset({429, 503, 529})


class Hints(NamedTuple):
    """What an answer says of another attempt: in how many seconds it is welcome, and whether there should be one."""

    after_s: float | None = None
    retry: bool | None = None


NO_HINTS = Hints()


class Others(IntEnum):
    """Who is left for a call: nobody, only such as rest, or somebody who takes calls."""

    NOBODY = 0
    RESTING = 1
    WILLING = 2


class Strategies(Protocol):
    """The user's knobs. ``sent``: attempts that may have reached a replica, hedges left out; times in seconds."""

    @property
    def sends_again(self) -> bool:
        """Whether a second attempt is allowed at all."""

    def stops(self, sent: int, elapsed_s: float) -> bool:
        """Whether no more is to be sent."""

    def wait_s(self, sent: int, elapsed_s: float) -> float:
        """How long to wait before the next."""

    def heeds_s(self, hint_s: float) -> float | None:
        """How long to wait for a fleet that asks for this; None if that is too long to wait for."""


@dataclass(frozen=True, slots=True)
class Start:
    """Pick a replica that is not in ``avoid`` and send the call to it."""

    avoid: frozenset[ReplicaId]


@dataclass(frozen=True, slots=True)
class Wait:
    """Another attempt is under way; what comes of it will tell."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Do nothing until ``until``, then tell ``resumed``."""

    until: float


class Deliver(NamedTuple):
    """Hand the answer of attempt ``number`` to the caller. ``exhausted``: it is a failure that was given up on."""

    number: int
    exhausted: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No attempt got an answer and none is left."""


Command = Start | Wait | Pause | Deliver | GiveUp
_FIRST = Start(frozenset())
_WAIT = Wait()


# What a retry that failed costs besides, in calls: so that an outage soon ends them (as failures do in gRFC A6).
_IN_VAIN = 4.0


@dataclass(slots=True)
class Attempts:
    """``budget``: for retries, in calls. ``deadline_at``: nothing is waited for beyond it. ``max_hedges``: a call."""

    replayable: bool
    strategies: Strategies
    budget: Budget
    began: float = 0.0
    deadline_at: float = inf
    max_hedges: int = 0
    _tried: frozenset[ReplicaId] = frozenset()
    _numbers: int = 0
    _sent: int = 0
    _hedges: frozenset[int] = frozenset()
    _open: set[int] = field(default_factory=set)
    _held: int | None = None
    _anew: bool = False
    _unsent: bool = False
    _resent: bool = False
    _barred: str = ""
    _end: Deliver | GiveUp | None = None
    why_ended: str = field(default="", init=False)
    """Why a failure was not tried again, in words."""

    def begin(self) -> Command:
        """The call starts."""
        self.budget.sent()
        return _FIRST

    @property
    def tried(self) -> frozenset[ReplicaId]:
        """The replicas that the call was sent to."""
        return self._tried

    @property
    def winner(self) -> int | None:
        """The attempt whose answer is delivered, if that is decided."""
        return self._end.number if isinstance(self._end, Deliver) else None

    def is_hedge(self, number: int) -> bool:
        """Whether an attempt was started beside another."""
        return number in self._hedges

    @property
    def _may_go_on(self) -> bool:
        return self.replayable and self._end is None and not self._barred

    @property
    def may_hedge(self) -> bool:
        """Whether another attempt may start beside those under way."""
        return (
            self._may_go_on
            and 0 < len(self._open) <= self.max_hedges
            and len(self._hedges) < 2 * self.max_hedges
        )

    def started(self, replica: ReplicaId, *, hedge: bool = False) -> int:
        """An attempt was sent on its way; its number."""
        self._numbers += 1
        self._tried = self._tried | {replica}
        self._open.add(self._numbers)
        if hedge:
            self._hedges |= {self._numbers}
        else:
            self._sent += 1
            self._unsent = False
        return self._numbers

    @property
    def may_send_again(self) -> bool:
        """Whether an attempt may go to its replica once more, should the connection turn out to be closed."""
        return (
            self.replayable
            and self._end is None
            and not self._resent
            and self.budget.covers()
            and self.strategies.sends_again
        )

    def may_move(self, now: float) -> bool:
        """Whether the only attempt under way may be given up for one elsewhere."""
        return (
            self._may_go_on
            and len(self._open) == 1
            and self.budget.covers()
            and not self.strategies.stops(self._sent, now - self.began)
        )

    def begin_move(self) -> None:
        """It is given up, and the next one paid now: a call that may yet be answered must not end for want of it."""
        self.budget.spend()

    def moved(self, number: int) -> Command:
        """It has ended."""
        self._open.discard(number)
        return self._end or Start(self._tried)

    def begin_resend(self) -> bool:
        """The attempt in progress met a closed connection: whether it goes to its replica once more."""
        if not (self.may_send_again and self.budget.spend()):
            return False
        self._resent = True
        return True

    def end_resend(self, *, sent: bool) -> None:
        """It did, or there was no new connection."""
        if not sent:
            self._resent = False
            self.budget.give_back()

    def content(self, number: int) -> Deliver | GiveUp:
        """The first content came: the commit point, unless another attempt was there first."""
        self._open.discard(number)
        if self._end is None:
            self._end = Deliver(number)
        return self._end

    def refused(
        self,
        number: int,
        status: int,
        now: float,
        *,
        held: bool = True,
        hints: Hints = NO_HINTS,
        others: Others = Others.WILLING,
        lacks_model: bool = False,
    ) -> Command:
        """An answer that is an error came, as a status or as the first event of a stream.

        ``held``: it can be delivered later; one too large for that is given up where another attempt goes on.
        ``others``: who is left that the call was not sent to. ``lacks_model``: it says that the model is not there.
        """
        self._open.discard(number)
        if self._end is not None:
            return self._end
        failing = status in RETRIED_STATUSES
        if failing:
            self._in_vain(number)
        absent = lacks_model and (others is Others.WILLING or bool(self._open) or self._held is not None)
        if not (failing or absent or hints.retry):
            self._end = Deliver(number)
            return self._end
        if hints.retry is False:
            self._barred = self._barred or "the replica forbids it (x-should-retry, grpc-retry-pushback-ms)"
        if held and not (absent and self._held is not None):  # another has it, and says more of the call
            self._held = number
        if self._open:
            return _WAIT
        needed = Others.WILLING if absent or status in _PUSHBACK else Others.RESTING
        command = self._next(now, hints, elsewhere=others >= needed)
        if held or not isinstance(command, Deliver | GiveUp):
            return command
        self._end = Deliver(number, exhausted=True)
        return self._end

    def failed(
        self, number: int, kind: FailureKind, now: float, *, others: Others = Others.WILLING
    ) -> Command:
        """An attempt ended without any answer. ``others``: as in ``refused``."""
        self._open.discard(number)
        if self._end is not None:
            return self._end
        if not kind.never_sent:
            self._in_vain(number)
        elif number not in self._hedges:
            self._sent -= 1
            self._unsent = True
        if kind.by_caller:
            self._barred = (
                self._barred or "the limit that has passed is the call's own, or its request cannot be sent"
            )
        if self._open:
            return _WAIT
        return self._next(now, NO_HINTS, elsewhere=others > Others.NOBODY)

    def resumed(self) -> Command:
        """The pause is over."""
        return self._end or Start(frozenset() if self._anew else self._tried)

    def nobody_left(self) -> Command:
        """There was no replica to start on."""
        return _WAIT if self._open else self._finish("no other replica is left")

    def out_of_time(self) -> Command:
        """The call's deadline has passed."""
        return self._end or self._finish("its deadline has passed")

    def _next(self, now: float, hints: Hints, *, elsewhere: bool) -> Command:
        if self._unsent and not self._barred:
            return Start(self._tried)
        elapsed_s = now - self.began
        if not self.replayable:
            return self._finish("the call may not be sent twice")
        if self._barred:
            return self._finish(self._barred)
        if self.strategies.stops(self._sent, elapsed_s):
            return self._finish("it was sent as often as it may be (retries.max_attempts)")
        wait_s: float | None
        if elsewhere:
            wait_s = self.strategies.wait_s(self._sent, elapsed_s)
        else:
            wait_s = None if hints.after_s is None else self.strategies.heeds_s(hints.after_s)
        if wait_s is None:
            return self._finish("no other replica is left, or all others rest")
        if now + wait_s >= self.deadline_at:
            return self._finish("its deadline would pass before")
        if not self.budget.spend():
            return self._finish(
                "the budget for retries is used up (retries.budget_ratio, retries.reserve_calls)"
            )
        self._anew = not elsewhere
        return Pause(now + wait_s) if wait_s > 0 else self.resumed()

    def _in_vain(self, number: int) -> None:
        """A retry that fails too shows that retries do not help now: it costs more than one that does."""
        if self._sent > 1 and number not in self._hedges:
            self.budget.drain(_IN_VAIN)

    def _finish(self, why: str) -> Command:
        if self._end is None:
            self.why_ended = why
            self._end = GiveUp() if self._held is None else Deliver(self._held, exhausted=True)
        return self._end
