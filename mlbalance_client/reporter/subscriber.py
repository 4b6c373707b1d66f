"""One subscriber's place in the stream, whatever carries its bytes."""

from __future__ import annotations

from typing import Protocol

from .change import LARGE, SMALL
from .grants import Grant
from .told import Source, Told, event


class Feed(Protocol):
    """Where the events come from."""

    spacing_s: float
    small_s: float
    most_s: float

    def told(self, now: float) -> Told: ...
    def tell(self, now: float) -> Told: ...
    def load(self, told: Told, client: str | None, grant: Grant | None, now: float) -> bytes: ...
    def places(self, told: Told, grant: Grant, now: float) -> int | None: ...
    def turn_in_s(self, told: Told, grant: Grant, now: float, most_s: float) -> float: ...
    def prefixes(self, number: int | None) -> tuple[int, list[bytes]]: ...
    def arm(self, subscriber: Subscriber, told: Told, *, calm: bool) -> None: ...
    def disarm(self, subscriber: Subscriber) -> None: ...
    def drop(self, subscriber: Subscriber) -> None: ...


class Waiter(Protocol):
    """What carries a subscriber's bytes, and waits in between."""

    def wake(self, foreign: bool, in_s: float = 0.0) -> None:
        """End a wait early; ``foreign``: perhaps from another thread or a signal handler.

        ``in_s``: what there is to tell may not be told before, so waking can wait (or not: nothing is told then).
        """

    def give_up(self) -> None:
        """Sending has taken too long: nobody reads."""


class Subscriber:
    """``next()`` and, if it is not None, send; then wait as ``pause()`` says, and again; ``close()`` at the end."""

    __slots__ = (
        "_board",
        "_ended",
        "_feed",
        "_none",
        "_number",
        "grant",
        "sending",
        "sent_at",
        "told",
        "waiter",
    )

    def __init__(self, feed: Feed, board: Source, grant: Grant, number: int | None, waiter: Waiter) -> None:
        self.grant = grant
        self.told: Told | None = None
        self.waiter = waiter
        self.sending = False
        self._board = board
        self._feed = feed
        self._number = number
        self._none = False  # it was told of no place
        self.sent_at = 0.0
        self._ended = False

    @property
    def over(self) -> bool:
        """The server ends, and this has been said: there will be no more."""
        return self._ended

    def next(self) -> bytes | None:
        """The events that are due, if any are."""
        board = self._board
        with board.lock:
            now = board.clock()
            self._feed.disarm(self)
            closing = board.readiness.closing
            told = self._feed.tell(now) if closing else self._feed.told(now)
            if not (closing or self._due(told, now)):
                return None
            self._ended = closing
            self._number, events = self._feed.prefixes(self._number)
            self.told, self.sent_at, self.sending = told, now, True
            self._none = self._feed.places(told, self.grant, now) == 0
            data = self._feed.load(told, self.grant.client, self.grant, now)
            return b"".join((*events, event("load", data, told.seq)))

    def pause(self) -> tuple[float, bool]:
        """How many seconds to wait, and whether ``wake`` may end it before; news that waits for its time cannot."""
        with self._board.lock:
            self.sending = False
            now = self._board.clock()
            since_s = now - self.sent_at
            feed = self._feed
            assert self.told is not None
            told = feed.told(now)
            found = self.told.expects.change(told.report)
            if since_s < feed.spacing_s:
                if found == LARGE:
                    return feed.spacing_s - since_s, False
            elif self._hears(found, since_s):
                return 0.0, False
            calm = since_s >= feed.small_s
            feed.arm(self, self.told, calm=calm)
            wait_s = max(0.0, (feed.most_s if calm else feed.small_s) - since_s)
            if self._none:
                turn_s = feed.turn_in_s(told, self.grant, now, wait_s)
                wait_s = min(wait_s, max(feed.spacing_s - since_s, turn_s))
            return wait_s, True

    def close(self) -> None:
        """It hears no more."""
        with self._board.lock:
            self._feed.drop(self)

    def _due(self, told: Told, now: float) -> bool:
        if self.told is None:
            return True
        since_s = now - self.sent_at
        if since_s < self._feed.spacing_s:
            return False
        if since_s >= self._feed.most_s or (self._none and self._feed.places(told, self.grant, now)):
            return True
        return self._hears(self.told.expects.change(told.report), since_s)

    def _hears(self, found: int, since_s: float) -> bool:
        """Whether a change is enough to be told now."""
        return found == LARGE or (found == SMALL and since_s >= self._feed.small_s)
