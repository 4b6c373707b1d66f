"""Who hears of the board, when, and in which bytes.

What is alike for all subscribers (a report, a page of prefixes) is made and encoded once; a subscriber keeps nothing
but its place, so that a slow one holds no memory.
"""

from __future__ import annotations

from math import inf

from ..core.load.format import PrefixDelta, encode_prefixes, personal
from ..core.load.report import LoadReport
from ..core.load.room import unit_of
from .chains import Page
from .change import LARGE, SMALL
from .grants import Grant, Grants
from .subscriber import Subscriber, Waiter
from .told import Source, Told, event

LEAST_S, EACH_S = 0.05, 0.001
SMALL_S, SMALL_TIMES = 0.5, 4  # for small changes, see change
MOST_S = 1.9  # the format asks for 2.0, and the way takes time
STUCK_S = 20.0
_LOOK_S = 5.0
_SHARED_PART = 2.0  # a report serves all who ask within this part of the least spacing
_MOVED_PART = 0.5  # of a large change: who has been told within less can wait for its time
_PAGE_S = 0.1


class _Armed:
    """Subscribers who wait, by what they were told."""

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        self._groups: dict[Told, dict[int, Subscriber]] = {}

    def __len__(self) -> int:
        return len(self._groups)

    def add(self, subscriber: Subscriber, told: Told) -> None:
        self._groups.setdefault(told, {})[id(subscriber)] = subscriber

    def discard(self, subscriber: Subscriber, told: Told) -> None:
        if group := self._groups.get(told):
            group.pop(id(subscriber), None)
            if not group:
                del self._groups[told]

    def take(self, report: LoadReport, least: int) -> list[Subscriber]:
        """Those for whom it is such a change."""
        found = [told for told in self._groups if told.expects.change(report) >= least]
        return [subscriber for told in found for subscriber in self._groups.pop(told).values()]


class BoardFull(Exception):
    """There are as many subscribers as are allowed."""


class Publisher:
    """The board's reports and its subscribers; take the board's lock first.

    spacing_s: how close two events of a stream may come; ``small_s``: if there is only a small change to tell;
    most_s:    how far apart they may be
    shared_s:  for how long one report serves all who ask
    """

    most_s = MOST_S

    def __init__(self, board: Source, first_seq: int) -> None:
        self.seq = self.first_seq = first_seq
        self.grants = Grants(board.acks, seed=first_seq)
        self._board = board
        self._told: Told | None = None
        self._page_at = board.clock()
        self._pages: dict[int, bytes] = {}
        self._everything: tuple[int, bytes] | None = None
        self._subscribers: dict[int, Subscriber] = {}
        self._hasty = _Armed()
        self._calm = _Armed()
        self._mutations = 0
        self._moved_tokens = 0.0
        self._looked_at = self._page_at
        self._space()

    def told(self, now: float) -> Told:
        """A report as new as the spacing asks for, with all in it that may be large."""
        known = self._recent(now, self.shared_s)
        return self.tell(now) if known is None or self._outdated(known) else known

    def newest(self, now: float) -> Told:
        """A report that knows all that has happened."""
        known = self._recent(now, self.shared_s)
        return self.tell(now) if known is None or known.mutations != self._mutations else known

    def _recent(self, now: float, most_s: float) -> Told | None:
        known = self._told
        return known if known is not None and 0 <= now - known.made_at <= most_s else None

    def _outdated(self, told: Told) -> bool:
        """Whether what has happened since may be a large change to somebody."""
        return self._moved_tokens >= _MOVED_PART * told.expects.large_tokens or (
            told.expects.limited and self._mutations - told.mutations > told.expects.large_requests
        )

    def tell(self, now: float) -> Told:
        """A new report."""
        self._seal(now)
        self.seq += 1
        report = self._board.report(now, self.seq, len(self._subscribers))
        told = self._told = Told(report, self._board.room(report), self._mutations)
        self._moved_tokens = 0.0
        if now - self._looked_at >= _LOOK_S:
            self._give_up(now)
        return told

    def places(self, told: Told, grant: Grant | None, now: float) -> int | None:
        """How many requests the subscriber may send; None: it is not known."""
        return None if told.room[0] is None else self.grants.share(grant, told.room[0], now)

    def turn_in_s(self, told: Told, grant: Grant, now: float, most_s: float) -> float:
        """In how many seconds one who may send none gets a place of those that are free; ``most_s`` at most."""
        return self.grants.turn_in_s(grant, told.room[0] or 0, now, most_s)

    def load(self, told: Told, client: str | None, grant: Grant | None, now: float) -> bytes:
        """A report's JSON for one client."""
        requests, tokens = self.places(told, grant, now), told.room[1]
        if tokens is not None:
            unit = unit_of(tokens, told.report.prefill_tokens or 0, self._board.usual_tokens)
            tokens = self.grants.share(grant, tokens, now, unit)
        acked = self._board.acks.acked(client, told.seq)
        return personal(
            told.json, requests, tokens, {client: acked} if client is not None and acked is not None else None
        )

    def header(self, client: str | None, now: float, *, anew: bool = False) -> str:
        """The short form for an answer to ``client``, with its newest call that is counted. ``anew``: a large change
        that has just come is to be in it.
        """
        told = self._recent(now, LEAST_S / _SHARED_PART)
        if told is None or (anew and self._outdated(told)):
            told = self.tell(now)
        if client is None:
            return told.short
        return f"{told.short};acked={self._board.acks.acked(client, told.seq) or 0}"

    # -- subscribers --------------------------------------------------------------------------------------------

    def subscribe(self, client: str | None, last_event_id: str | None, waiter: Waiter) -> Subscriber:
        """A place in the stream: from where the client was, if that is still known. Raises BoardFull."""
        if len(self._subscribers) >= self._board.settings.max_subscribers:
            raise BoardFull
        grant = self.grants.admit(client)
        subscriber = Subscriber(self, self._board, grant, self._place(last_event_id), waiter)
        self._subscribers[id(subscriber)] = subscriber
        self._space()
        return subscriber

    def drop(self, subscriber: Subscriber) -> None:
        """It is gone."""
        self._subscribers.pop(id(subscriber), None)
        self._space()
        self.grants.drop(subscriber.grant)
        self.disarm(subscriber)

    def arm(self, subscriber: Subscriber, told: Told, *, calm: bool) -> None:
        """Wake the subscriber when there is more than ``told`` lets it expect: much more, or anything if ``calm``."""
        (self._calm if calm else self._hasty).add(subscriber, told)

    def disarm(self, subscriber: Subscriber) -> None:
        """It is awake."""
        if subscriber.told is not None:
            self._calm.discard(subscriber, subscriber.told)
            self._hasty.discard(subscriber, subscriber.told)

    def mutated(self, now: float, prefill_tokens: float = inf) -> None:
        """Something has changed on the board, by so many tokens of prefill; wake those for whom it is news.

        Looking costs more than most changes do: it is done when, with those before, they might be large.
        """
        self._mutations += 1
        self._moved_tokens += prefill_tokens
        if not (self._calm or self._hasty):
            return
        if self._calm or self._told is None or self._outdated(self._told):
            report = self.tell(now).report
            for subscriber in (
                *self._calm.take(report, SMALL),
                *self._hasty.take(report, LARGE),
            ):
                subscriber.waiter.wake(False, subscriber.sent_at + self.spacing_s - now)

    def wake_all(self) -> None:
        """Wake everybody, from wherever: a signal handler perhaps."""
        for subscriber in list(self._subscribers.values()):
            subscriber.waiter.wake(True)

    def _space(self) -> None:
        self.spacing_s = min(MOST_S, max(LEAST_S, EACH_S * len(self._subscribers)))
        self.small_s = min(MOST_S, max(SMALL_S, SMALL_TIMES * self.spacing_s))
        self.shared_s = self.spacing_s / _SHARED_PART

    def _give_up(self, now: float) -> None:
        self._looked_at = now
        for subscriber in list(self._subscribers.values()):
            if subscriber.sending and now - subscriber.sent_at > STUCK_S:
                subscriber.waiter.give_up()

    # -- prefixes -----------------------------------------------------------------------------------------------

    def prefixes(self, number: int | None) -> tuple[int, list[bytes]]:
        """What one who is at page ``number`` lacks, and where it is then; None: it is nowhere."""
        chains = self._board.chains
        if number is None or not chains.tells_since(number):
            return chains.number, [self._all()]
        return chains.number, [self._pages[later] for later in range(number + 1, chains.number + 1)]

    def _all(self) -> bytes:
        chains = self._board.chains
        if self._everything is None or self._everything[0] != chains.number:
            delta = chains.all(self._board.epoch, self._board.hashing)
            self._everything = chains.number, event("prefixes", encode_prefixes(delta))
        return self._everything[1]

    def _place(self, last_event_id: str | None) -> int | None:
        if last_event_id is None or not (last_event_id.isascii() and last_event_id.isdigit()):
            return None
        seq = int(last_event_id[:20])
        return self._board.chains.number_at(seq) if self.first_seq < seq <= self.seq else None

    def _seal(self, now: float) -> None:
        if now - self._page_at < _PAGE_S:
            return
        chains = self._board.chains
        page = chains.seal(self.seq)
        if page is not None:
            self._page_at = now
            self._pages[page.number] = event("prefixes", encode_prefixes(self._delta(page)))
            while next(iter(self._pages), chains.oldest) < chains.oldest:
                del self._pages[next(iter(self._pages))]

    def _delta(self, page: Page) -> PrefixDelta:
        return PrefixDelta(
            self._board.epoch, page.number, add=page.add, drop=page.drop, hashing=self._board.hashing
        )
