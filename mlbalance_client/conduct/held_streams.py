"""Answers that callers hold: closed when they are dropped, held unread or going on for too long, or the client closes.

The loop that tends them refers to this and, through an answer that is still open, to its client; so a client dropped
unclosed lives as long as its answers, and then the loop ends with it.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import ref

import anyio

from ..core.model import Verdict
from ..errors import FailureKind
from ..wire import Wire
from .answer import AnswerBody, Flow
from .tending import EventLoop

# A reader who does not come back for so long does not read; long enough to hand on what it has read.
_BETWEEN_READS_S = 0.2
_CLOSED = FailureKind.CANCELLED, "the client was closed"


class _Reader(ref[AnswerBody]):
    """Refers to a body, and knows its flow: a closure would be four more objects of each stream to collect."""

    __slots__ = ("flow",)
    flow: Flow


class HeldStreams:
    """``patience_s``: how long an answer may be held unread; ``idle_s``: how long a connection may be idle;
    ``whole_s``: how long a call may take."""

    def __init__(
        self, wire: Wire, clock: Callable[[], float], patience_s: float, idle_s: float, whole_s: float
    ) -> None:
        self._wire = wire
        self._clock = clock
        self._patience_s = patience_s
        self._whole_s = whole_s
        self._pause_s = min(patience_s / 4, whole_s / 4, max(1.0, idle_s))
        self._open: set[Flow] = set()
        self._dropped: list[Flow] = []
        self._event_loop: EventLoop | None = None
        self._woken = anyio.Event()

    def __len__(self) -> int:
        return len(self._open)

    def start(self, event_loop: EventLoop) -> None:
        """Before the loop is started: where it will run."""
        self._event_loop = event_loop
        self._woken = anyio.Event()

    def add(self, flow: Flow) -> None:
        """An answer has begun."""
        self._open.add(flow)

    def remove(self, flow: Flow) -> None:
        """It has ended."""
        self._open.discard(flow)
        flow.reader = None

    def being_read(self) -> bool:
        """Whether somebody waits for more of an answer, or did a moment ago."""
        lately = self._clock() - _BETWEEN_READS_S
        return any(flow.idle_since is None or flow.idle_since > lately for flow in self._open)

    def hand_out(self, flow: Flow) -> AnswerBody:
        """The body that a caller gets, watched."""
        body = AnswerBody(flow, self._clock())
        # Not weakref.finalize, which costs as much as the rest of handing it out.
        flow.reader = reader = _Reader(body, self._drop)
        reader.flow = flow
        return body

    def wake(self) -> None:
        """There is something to do: connections to close, an answer to end."""
        self._woken.set()

    async def tend(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with anyio.move_on_after(self._pause_s):
                    await self._woken.wait()
                self._woken = anyio.Event()
                while self._dropped:
                    await self._dropped.pop().aclose(Verdict.ABANDONED)
                now = self._clock()
                too_old = now - self._patience_s
                for flow in [f for f in self._open if f.idle_since is not None and f.idle_since < too_old]:
                    why = f"it was held unread for more than {self._patience_s:g} s (http.max_unread_s)"
                    await flow.stop(Verdict.ABANDONED, FailureKind.UNREAD, why)
                for flow in [f for f in self._open if f.reader is not None and f.ends_by < now]:
                    why = f"the call took more than {self._whole_s:g} s (http.call_timeout_s)"
                    await flow.stop(Verdict.CANCELLED, FailureKind.READ_TIMEOUT, why)
                await self._wire.reap()
        finally:
            await self._wire.aclose()

    def condemn(self) -> None:
        """The client closes: whoever reads on will hear so, whichever end of it he notices first."""
        for flow in self._open:
            flow.condemn(*_CLOSED)

    async def stop_all(self) -> None:
        """End them."""
        for flow in list(self._open):
            await flow.stop(Verdict.CANCELLED, *_CLOSED)

    def _drop(self, reader: _Reader) -> None:
        """The caller dropped a body. Runs in a finalizer: any thread, any moment; hence only a note and a wake-up."""
        if not reader.flow.settled and self._event_loop is not None:
            self._dropped.append(reader.flow)
            self._event_loop.call_soon(self.wake)
