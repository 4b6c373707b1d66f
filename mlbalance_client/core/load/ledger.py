"""What this client has outstanding at each replica: two accounts, prefill and decode, in integer tokens.

A charge is made in the same breath as the pick. Its prefill part is released at the first content, the rest
when it is settled, once, whatever the way out. A cancelled call stays charged for a short while, since the
engine needs time to notice (residual). A replica's prefill backlog in seconds drains as time passes: engines
prefill first come, first served, so the oldest prompt is the one under way. Of a *blind* call (not streamed) no
first content is seen; its prefill counts as done when its predicted time has passed. So does that of one which a
later call has *overtaken*: what keeps it is its own affair, and does not stand before others.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from functools import partial

from ..model import Verdict

_NOTICED_LATE = (Verdict.CANCELLED, Verdict.ABANDONED)


@dataclass(slots=True, eq=False)
class Charge:
    """One attempt's claim on one replica."""

    account: Account
    prefill_tokens: int
    decode_tokens: int
    prefill_s: float
    at: float
    waiting_s: float
    number: int = 0
    blind: bool = False
    overtaken: bool = False
    known: bool = False
    first_content_at: float | None = None
    took_s: float | None = None
    settled: bool = False

    @property
    def released(self) -> bool:
        """Whether its prompt is not waited for any more."""
        return self.blind or not self.account.open or self not in self.account.queue


@dataclass(slots=True, eq=False)
class Account:
    """One replica's side of the ledger."""

    ledger: Ledger
    prefill_tokens: int = 0
    decode_tokens: int = 0
    requests: int = 0
    prefill_s: float = 0.0
    moved_at: float = 0.0
    unknown_s: float = 0.0
    unknown: int = 0
    open: bool = True
    queue: OrderedDict[Charge, None] = field(default_factory=OrderedDict)

    def backlog_s(self, now: float) -> float:
        """Seconds of own prefill still outstanding."""
        return self.standing_s(now)[0]

    def standing_s(self, now: float) -> tuple[float, float]:
        """Seconds of own prefill still outstanding, the oldest prompt by what is left of it; and how long that is
        overdue, if it takes longer than predicted."""
        head = self._head(now)
        if head is None:
            return 0.0, 0.0
        left_s = head.prefill_s - max(0.0, now - self.moved_at)
        if left_s >= 0.0:
            return self.prefill_s - head.prefill_s + left_s, 0.0
        return max(0.0, self.prefill_s - head.prefill_s), -left_s

    def leave_queue(self, charge: Charge) -> None:
        """This prompt is no longer waiting for prefill."""
        del self.queue[charge]
        if self.open:
            self.ledger.queued -= not charge.blind
        self.prefill_s = self.prefill_s - charge.prefill_s if self.queue else 0.0
        if not charge.known:
            self._note(charge)

    def overtake(self, charge: Charge) -> None:
        """This prompt was prefilled before those that came before it."""
        for earlier in self.queue:
            if earlier is charge:
                return
            earlier.overtaken = True

    def reported(self, at: float, acked: int | None) -> None:
        """A report came that held at ``at``: the charges that it counts are known from now on.

        ``acked``: the newest call number that it counts; without it, or of a call that bore no number, what was sent
        before it held is taken to be in it.
        """
        for charge in self.queue:
            by_time = acked is None or not charge.number
            if not charge.known and (charge.at <= at if by_time else charge.number <= (acked or 0)):
                self._note(charge)

    def _note(self, charge: Charge) -> None:
        charge.known = True
        self.unknown -= 1
        self.unknown_s = self.unknown_s - charge.prefill_s if self.unknown else 0.0

    def _head(self, now: float) -> Charge | None:
        while self.queue:
            head = next(iter(self.queue))
            if not (head.blind or head.overtaken) or now - self.moved_at < head.prefill_s:
                return head
            self.leave_queue(head)
            self.moved_at += head.prefill_s
        return None

    @property
    def tokens(self) -> int:
        """All outstanding tokens."""
        return self.prefill_tokens + self.decode_tokens


class Ledger:
    """All accounts of one client. ``residual_s``: how long a cancelled call stays charged, in seconds.

    ``accounts``: by place, each made on first use. ``queued``: calls that have no first content yet, but blind ones.
    """

    def __init__(self, residual_s: float) -> None:
        self._residual_s = residual_s
        self.accounts: defaultdict[int, Account] = defaultdict(partial(Account, self))
        self._residuals: deque[tuple[float, Charge]] = deque()
        self.tokens = 0
        self.requests = 0
        self.queued = 0

    def account(self, place: int) -> Account:
        """The account of the replica at ``place``; made on first use."""
        return self.accounts[place]

    def close(self, place: int) -> None:
        """The replica is gone: charges still open settle into an account that nobody reads."""
        if account := self.accounts.pop(place, None):
            self.tokens -= account.tokens
            self.requests -= account.requests
            self.queued -= sum(not charge.blind for charge in account.queue)
            account.open = False

    def charge(
        self,
        place: int,
        *,
        prefill_tokens: int,
        decode_tokens: int,
        prefill_s: float,
        now: float,
        number: int = 0,
        blind: bool = False,
    ) -> Charge:
        """Claim ``prefill_tokens`` (uncached, predicted to take ``prefill_s``) and ``decode_tokens``.

        ``number``: what the replica acknowledges the call by; 0 if it bears none.
        """
        account = self.accounts[place]
        charge = Charge(
            account, prefill_tokens, decode_tokens, prefill_s, now, account.backlog_s(now), number, blind
        )
        if not account.queue:
            account.moved_at = now
        account.queue[charge] = None
        self.queued += not blind
        account.prefill_s += prefill_s
        account.unknown_s += prefill_s
        account.unknown += 1
        self._add(account, prefill_tokens, decode_tokens, 1)
        return charge

    def untold(self, charge: Charge) -> None:
        """Nobody will say when its first content comes, as of a blind call."""
        if not charge.blind and charge in charge.account.queue:
            charge.blind = True
            if charge.account.open:
                self.queued -= 1

    def first_content(self, charge: Charge, now: float) -> None:
        """Release the prefill part, and note how long this prefill took if the prompt was the oldest."""
        if charge.settled or charge.first_content_at is not None:
            return
        account = charge.account
        charge.first_content_at = now
        if charge in account.queue:
            if next(iter(account.queue)) is charge:
                charge.took_s = now - account.moved_at
                account.moved_at = max(account.moved_at, now)
            else:
                account.overtake(charge)
            account.leave_queue(charge)
        self._add(account, -charge.prefill_tokens, 0, 0)

    def settle(self, charge: Charge, verdict: Verdict, now: float) -> None:
        """End the charge; a second call does nothing."""
        if charge.settled:
            return
        charge.settled = True
        if verdict in _NOTICED_LATE and self._residual_s > 0:
            self._residuals.append((now + self._residual_s, charge))
        else:
            self._release(charge, now)

    def sweep(self, now: float) -> None:
        """Release the residuals whose time has come."""
        residuals = self._residuals
        while residuals and residuals[0][0] <= now:
            _, charge = residuals.popleft()
            self._release(charge, now)

    def _release(self, charge: Charge, now: float) -> None:
        account = charge.account
        prefill = 0
        if charge.first_content_at is None:
            prefill = charge.prefill_tokens
            if charge in account.queue:
                if next(iter(account.queue)) is charge:
                    account.moved_at = now
                account.leave_queue(charge)
        self._add(account, -prefill, -charge.decode_tokens, -1)

    def _add(self, account: Account, prefill: int, decode: int, requests: int) -> None:
        account.prefill_tokens += prefill
        account.decode_tokens += decode
        account.requests += requests
        if account.open:
            self.tokens += prefill + decode
            self.requests += requests
