"""One call's attempts as a machine without I/O: events in, one command out.

Rules. What the caller's own limit ended goes nowhere. What was never sent goes to another replica at once, once
per replica, free of the limit. What was sent and failed (no answer, or a status of ``RETRIED_STATUSES`` before the
commit point) goes elsewhere if the call is replayable and the limit of sent attempts is not reached. An answer in
hand is delivered rather than an error raised: the last failing answer is held while others are tried. After the commit
point no attempt starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import FailureKind
from .model import ReplicaId

# What another replica may do better. 429 and 529 (Anthropic's overload) speak for their replica; 500 goes elsewhere
# too, since an engine that has died says so. All else is the call's own fault, and the same everywhere.
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Start:
    """Pick a replica that is not in ``avoid`` and send the call to it."""

    avoid: frozenset[ReplicaId]


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand the answer of attempt ``number`` to the caller. ``exhausted``: it is a failure that was given up on."""

    number: int
    exhausted: bool = False


@dataclass(frozen=True, slots=True)
class GiveUp:
    """No attempt got an answer and none is left."""


Command = Start | Deliver | GiveUp
_FIRST = Start(frozenset())


@dataclass(slots=True)
class Attempts:
    """``max_sent``: attempts that may reach a replica, the first included. Attempts are numbered from 1."""

    replayable: bool
    max_sent: int
    _tried: frozenset[ReplicaId] = frozenset()
    _sent: int = 0
    _held: int | None = None
    _committed: bool = False

    def begin(self) -> Command:
        """The call starts."""
        return _FIRST

    @property
    def tried(self) -> frozenset[ReplicaId]:
        """The replicas that the call was sent to."""
        return self._tried

    def started(self, replica: ReplicaId) -> None:
        """An attempt was sent on its way."""
        self._tried = self._tried | {replica}
        self._sent += 1

    def content(self, number: int) -> Command:
        """The first content came: the commit point."""
        self._committed = True
        return Deliver(number)

    def refused(self, number: int, status: int, *, held: bool = True) -> Command:
        """An answer that is an error came, as a status or as the first event of a stream.

        ``held``: it can be delivered later; one too large for that is given up where another attempt starts.
        """
        if status in RETRIED_STATUSES and self._may_go_elsewhere():
            if held:
                self._held = number
            return self._elsewhere()
        self._committed = True
        return Deliver(number, exhausted=status in RETRIED_STATUSES)

    def failed(self, kind: FailureKind) -> Command:
        """An attempt ended without any answer."""
        if kind.never_sent:
            self._sent -= 1
            return self._elsewhere()
        return self._elsewhere() if self._may_go_elsewhere() and not kind.by_caller else self._end()

    def nobody_left(self) -> Command:
        """There was no replica to start on."""
        return self._end()

    def out_of_time(self) -> Command:
        """The call's deadline has passed."""
        return self._end()

    def _may_go_elsewhere(self) -> bool:
        return self.replayable and self._sent < self.max_sent and not self._committed

    def _elsewhere(self) -> Command:
        return Start(self._tried)

    def _end(self) -> Command:
        self._committed = True
        return GiveUp() if self._held is None else Deliver(self._held, exhausted=True)
