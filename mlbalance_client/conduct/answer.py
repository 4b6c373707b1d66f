"""One attempt from its first byte to its settlement, and the body that a caller reads.

A ``Flow`` belongs to the engine; an ``AnswerBody`` belongs to the caller and knows its flow, never the other way
round, so that a body which the caller drops can be noticed and its flow ended.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from math import inf
from typing import Any, NamedTuple
from weakref import ref

from ..core.attempts import RETRIED_STATUSES
from ..core.fleet import Pick
from ..core.health.outlier import Failure, failure_of_status
from ..core.model import Usage, Verdict
from ..core.report import CallReport
from ..dialects.base import AnswerWatch, Ending, InBandError, Sign
from ..errors import BalancerError, FailureKind, StreamInterrupted
from ..wire import WireAnswer, WireError

HELD_BYTES = 64 * 1024


class Stopped(NamedTuple):
    """Why a flow was closed that its caller held."""

    kind: FailureKind
    why: str


Translate = Callable[[BalancerError, Any], BalancerError]


def _as_it_is(error: BalancerError, request: object) -> BalancerError:
    return error


class Flow:
    """An attempt's answer: reads it up to the commit point, then passes it on; settles its pick exactly once.

    ``closed``: nobody reads on. ``translate``: into what its reader is told, of which ``request``.
    """

    __slots__ = (
        "_chunks", "_clock", "_watch", "blind", "buffered", "closed", "delivered", "ending", "ends_by", "first",
        "idle_since", "number", "on_end", "pick", "reader", "report", "request", "settled", "stopped", "translate",
        "whole", "wire",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        pick: Pick,
        wire: WireAnswer,
        watch: AnswerWatch,
        report: CallReport,
        clock: Callable[[], float],
        on_end: Callable[[Flow, Verdict, Usage | None], None],
        *,
        blind: bool,
        ends_by: float = inf,
    ) -> None:
        self.ends_by = ends_by
        self.number = number
        self.pick = pick
        self.wire = wire
        self.report = report
        self.blind = blind
        self.buffered: list[bytes] = []
        self.delivered = 0
        self.idle_since: float | None = None
        self.reader: ref[AnswerBody] | None = None
        self.settled = self.closed = False
        self.translate: Translate = _as_it_is
        self.request: object = None
        self.stopped: Stopped | None = None
        self.ending: Ending | None = None
        self.first = Sign.CONTENT
        self.whole = False
        self._watch = watch
        self._chunks: AsyncIterator[bytes] = aiter(wire)
        self._clock = clock
        self.on_end = on_end

    @property
    def commits_at_head(self) -> bool:
        """Whether the answer is of a form in which nothing can be read."""
        return self._watch.commits_at_head

    async def until_commit(self) -> Sign:
        """Read up to the commit point; what was read stays buffered. Raises WireError."""
        if self._watch.commits_at_head:
            return Sign.CONTENT
        feed = self._watch.feed
        while (chunk := await self._read()) is not None:
            self.buffered.append(chunk)
            self.first = feed(chunk)
            if self.first is not Sign.PREAMBLE:
                return self.first
        return Sign.CONTENT

    async def hold(self) -> bool:
        """Read the rest of a small answer, so that it can be delivered later; False if it is too large for that.

        Raises WireError.
        """
        size = sum(map(len, self.buffered))
        while size <= HELD_BYTES:
            chunk = await self._read()
            if chunk is None:
                return True
            self.buffered.append(chunk)
            self._watch.passed(chunk)
            size += len(chunk)
        return False

    async def _read(self) -> bytes | None:
        """The next bytes, or None at the end. Raises WireError."""
        try:
            return await self._chunks.__anext__()
        except StopAsyncIteration:
            self._ended()
            return None

    def _ended(self) -> None:
        """Raises WireError if only a closed connection ended the answer, and it lacks its own mark of an end."""
        ending = self.ending = self._watch.end()
        if not (ending.complete or ending.error) and self._lacks_its_end():
            raise WireError(FailureKind.READ, "the connection was closed before the answer's end")
        self.whole = True

    def _lacks_its_end(self) -> bool:
        wire = self.wire
        return wire.status < 400 and self._watch.has_mark and wire.ends_with_connection

    def finish(self) -> InBandError | None:
        """The answer was read to its end, which has freed its connection: settle by what it says of itself.

        The error event, if it has ended in one after content.
        """
        ending = self.ending or self._watch.end()
        if (error := self._late_error(ending)) is not None:
            self.speaks_against_its_replica(error.status)
        self.settle(Verdict.FAILED if ending.error else Verdict.OK, ending.usage)
        return error

    def _late_error(self, ending: Ending) -> InBandError | None:
        """The error event with which a stream has ended after content."""
        return None if self.blind or self.first is Sign.ERROR or self.settled else ending.error

    def speaks_against_its_replica(self, status: int, retry_after_s: float | None = None) -> None:
        """It is a failure of this status, which a body or an event may name, unless that is the call's own fault."""
        if status in RETRIED_STATUSES:
            says_busy = (error := self.in_band_error) is not None and error.busy
            kind = failure_of_status(status, retry_after_s, says_busy=says_busy)
            self.pick.failed(self._clock(), retry_after_s, kind)

    @property
    def in_band_error(self) -> InBandError | None:
        """The engine's error inside a 200 answer, if its first event or its whole body was one."""
        return self._watch.error

    async def next_chunk(self) -> bytes:
        """The next bytes for the caller, unchanged. Raises StreamInterrupted, as ``translate`` puts it.

        On the path of every piece, hence no other coroutine between the caller and the wire.
        """
        if self.closed:
            raise StopAsyncIteration
        if self.stopped is not None:
            raise self.translate(self._interruption(self.stopped), self.request)
        chunk: bytes | None = None
        if self.buffered:
            chunk = self.buffered.pop(0)
            self.idle_since = self._clock()
        elif not self.whole:
            self.idle_since = None
            asked = self._clock()
            try:
                try:
                    chunk = await self._chunks.__anext__()
                except StopAsyncIteration:
                    self._ended()
                else:
                    arrived = self.idle_since = self._clock()
                    self._watch.passed(chunk)
                    self.pick.piece(asked, arrived)
            except WireError as error:
                self.closed = True
                if self.stopped is not None:  # while we were reading
                    raise self.translate(self._interruption(self.stopped), self.request) from None
                if not self.settled:  # else its caller has closed it meanwhile
                    self.pick.failed(self._clock(), kind=Failure.BROKEN)
                await self.aclose(Verdict.FAILED)
                broken = StreamInterrupted(
                    f"the answer of {self.pick.replica.id} broke off after {self.delivered} bytes: {error}",
                    bytes_delivered=self.delivered,
                    kind=error.kind,
                )
                raise self.translate(broken, self.request) from error
            except BaseException:
                self.closed = True
                await self.aclose(Verdict.CANCELLED)
                raise
        if chunk is None:
            self.closed = True
            if (late := self.finish()) is not None:
                raise self.translate(self._ended_in(late), self.request)
            raise StopAsyncIteration
        self.delivered += len(chunk)
        return chunk

    def _ended_in(self, error: InBandError) -> StreamInterrupted:
        return StreamInterrupted(
            f"the answer of {self.pick.replica.id} ended in an error {error.status} after {self.delivered} bytes: "
            f"{error.message}",
            bytes_delivered=self.delivered,
            kind=FailureKind.IN_BAND,
        )

    def _interruption(self, stopped: Stopped) -> StreamInterrupted:
        """What a reader hears of a flow that was stopped."""
        return StreamInterrupted(
            f"the answer of {self.pick.replica.id} was closed: {stopped.why}",
            bytes_delivered=self.delivered,
            kind=stopped.kind,
        )

    def settle(self, verdict: Verdict, usage: Usage | None = None) -> None:
        """Settle the pick; only the first call counts."""
        if not self.settled:
            self.settled = True
            self.pick.settle(verdict, self._clock(), usage)
            self.on_end(self, verdict, usage)

    async def leave(self) -> None:
        """Its reader goes before its end, perhaps for the error event that it has just read."""
        if not (self.settled or self.blind or self._watch.commits_at_head):
            ending = self._watch.end()
            if (error := self._late_error(ending)) is not None:
                self.speaks_against_its_replica(error.status)
                self.settle(Verdict.FAILED, ending.usage)
        await self.aclose(Verdict.CANCELLED)

    async def aclose(self, verdict: Verdict) -> None:
        """Settle, and close the connection unless the answer was read to its end."""
        self.settle(verdict)
        await self.wire.aclose()

    async def stop(self, verdict: Verdict, kind: FailureKind, why: str) -> None:
        """Close what the caller still holds; whoever reads on will hear why."""
        self.condemn(kind, why)
        await self.aclose(verdict)

    def condemn(self, kind: FailureKind, why: str) -> None:
        """It is about to be closed, if it has not ended by then."""
        if not self.settled:
            self.stopped = Stopped(kind, why)


class AnswerBody:
    """The body as the caller reads it: raw bytes, once."""

    __slots__ = ("__weakref__", "_flow")

    def __init__(self, flow: Flow, now: float) -> None:
        self._flow = flow
        flow.idle_since = now

    def translated(self, translate: Translate, request: object) -> AnswerBody:
        """Itself, raising errors as this puts them."""
        self._flow.translate, self._flow.request = translate, request
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def __anext__(self) -> Awaitable[bytes]:
        return self._flow.next_chunk()

    async def aclose(self) -> None:
        """Close early: the replica sees the connection go and stops. Idempotent."""
        flow = self._flow
        if not flow.closed:
            flow.closed = True
            await flow.leave()


class HeldBody:
    """A small body that is already in memory: to read it raises no errors."""

    __slots__ = ("_chunks",)

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = chunks

    def translated(self, translate: Translate, request: object) -> HeldBody:
        """Itself."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.pop(0)

    async def aclose(self) -> None:
        """Drop what is left."""
        self._chunks.clear()
