"""How many own calls may stand before their first content, at all replicas together: a window on queueing delay.

What a first content comes later than its own prefill takes, it has queued. Up to the target the limit grows while half
of it is used, by one a round, or by one for each call of a client that finds nobody else's work. What is not used
fades, so that a burst does not begin with what was never tried. Beyond the target it is cut to target over delay, once
for all that were under way; the oldest at two replicas may show that before their contents come, of which one alone may
have stalled. A few are always open to a client of which no more wait than are under way: its own chance clusters are no
overload. Whom it has kept waiting for long without a break is owed more, at last as many as there are replicas: a fleet
that is slow by itself, cold say, looks like one full of others' work. A call that a later one at its replica has
overtaken tells nothing of queues: what keeps it is its own affair. One limit for all replicas: a client among many has
too few calls at each to learn from. Own work is no reason to cut: ``Windows`` bounds it by replica.

After Swift (Kumar et al., SIGCOMM 2020: target delay, increase by one a round, one cut a round)
and RFC 7661 (what is not used is not kept).
"""

from __future__ import annotations

from collections import deque
from math import inf

from .company import Company
from .ledger import Charge

_START = 256.0
_ALWAYS = 4.0
_FLOOR = 1.0
_CEILING = 65_536.0
# A call that is later by so many targets hangs: it keeps no place from others, who may go elsewhere.
_LOST = 4.0
# Up to how many limits calls may stand that are more important than those who wait.
_URGENT = 4.0
_FADE = 0.1
# After so many targets of waiting for it without a break, as many calls may stand as there are replicas.
_PATIENCE = 20.0
_LEAST_LEFT = 0.3


class DelayLimit:
    """One client's limit, in calls. ``target_s``: how long calls may stand behind others' work."""

    __slots__ = (
        *("_before", "_company", "_cut_at", "_cut_before", "_kept", "_lost", "_lost_at", "_replicas"),
        *("_round_at", "_target_s", "_under_way", "_untried", "_used", "_used_before"),
        *("_shut_at", "_shut_since", "_waiting", "value"),
    )

    def __init__(self, target_s: float, company: Company) -> None:
        self.value = _ALWAYS
        self._company = company
        self._target_s = target_s
        self._replicas = 0
        self._untried = True
        self._waiting = 0
        self._shut_since = inf
        self._shut_at = -inf
        self._lost: list[Charge] = []
        self._under_way: deque[tuple[Charge, bool]] = deque()
        self._kept = 0
        self._used = self._used_before = 0
        self._round_at = -inf
        self._lost_at = inf
        self._cut_at = self._cut_before = -inf
        self._before = self.value

    def members(self, replicas: int) -> None:
        """The fleet has so many now."""
        self._replicas = replicas
        if self._untried:
            self.value = max(_ALWAYS, _START * replicas)

    def sent(self, charge: Charge, *, tells: bool = True) -> None:
        """A call is on its way; ``tells``: its delay is of others' work."""
        self._under_way.append((charge, tells))
        self._lost_at = min(self._lost_at, self._lost_from(charge))
        if len(self._under_way) > 2 * self._kept + 64:
            self._sweep()

    def _sweep(self) -> None:
        self._under_way = deque(each for each in self._under_way if not each[0].released)
        self._kept = len(self._under_way)

    def _lost_from(self, charge: Charge) -> float:
        return charge.at + charge.prefill_s + _LOST * self._target_s

    def waits(self, calls: int) -> None:
        """So many wait for room now."""
        self._waiting = calls
        if not calls:
            self._shut_since = inf
            self.value = max(self.value, _ALWAYS)

    def answered(self, charge: Charge, under_way: int, now: float, *, judged: bool = True) -> None:
        """A call's first content has come; ``under_way``: own calls that had not had theirs, this one included."""
        if charge.overtaken:
            return
        queued_s = now - charge.at - charge.prefill_s
        target_s = self._target_s
        self._untried = self._untried and not judged
        under_way -= len(self._lost)
        self._used = max(self._used, under_way)
        if charge.at >= self._round_at:  # a round is over
            self._used_before, self._used, self._round_at = self._used, under_way, now
        under_way = max(self._used, self._used_before)
        if queued_s > target_s:
            if judged:
                self._late(queued_s, charge.at, now)
        elif 2 * under_way >= self.value:
            self.value = min(
                _CEILING, self.value + (1.0 if self._company.leaves_alone else 1.0 / max(1.0, self.value))
            )
        else:
            enough = max(2.0 * under_way, _START * self._replicas if self._company.leaves_alone else _ALWAYS)
            self.value -= _FADE * max(0.0, self.value - enough)

    def opens_in_s(self, under_way: int, now: float) -> float:
        """0 if one more may be sent, else infinite: when one of those ``under_way`` has its content, or after long."""
        if under_way + 1 > self.value or under_way + 1 > _ALWAYS:
            self._look(now)
            under_way -= len(self._lost)
        if under_way + 1 <= self.value:
            return 0.0
        if self._waiting:
            broken = now - self._shut_at > self._target_s  # who waits looks each second
            self._shut_since = now if broken else min(self._shut_since, now)
            self._shut_at = now
        return 0.0 if under_way + 1 <= self._owed(now) else inf

    def _owed(self, now: float) -> float:
        """How many may stand after so long a wait, whatever others have sent."""
        waited = max(0.0, now - self._shut_since) / (_PATIENCE * self._target_s)
        return self._replicas * min(1.0, waited)

    def takes_urgent(self, under_way: int, now: float) -> bool:
        """Whether one more may be sent that is more important than those who wait."""
        return under_way - len(self._lost) + 1 <= _URGENT * max(1.0, self.value, self._owed(now))

    def _look(self, now: float) -> None:
        """The oldest call under way may be late already: to wait for its content would be too late."""
        self._lost = [charge for charge in self._lost if not charge.released]
        if now > self._lost_at:
            self._sweep()
            self._lost += [charge for charge, _ in self._under_way if self._lost_from(charge) < now]
            left = [each for each in self._under_way if self._lost_from(each[0]) >= now]
            self._under_way, self._kept = deque(left), len(left)
            self._lost_at = min((self._lost_from(charge) for charge, _ in left), default=inf)
        calls = self._under_way
        while calls and (calls[0][0].released or calls[0][0].overtaken):
            calls.popleft()
        if calls and not self._untried:
            self._look_at_late(calls[0][0], now)

    def _look_at_late(self, oldest: Charge, now: float) -> None:
        """Late it is if one at another replica is too; else it may have stalled."""
        for charge, tells in self._under_way:
            if charge.released or charge.overtaken:
                continue
            queued_s = now - charge.at - charge.prefill_s
            if not tells or queued_s <= self._target_s:
                return
            if charge.account is not oldest.account or self._replicas <= 1:
                self._late(queued_s, charge.at, now)
                return

    def _late(self, queued_s: float, sent_at: float, now: float) -> None:
        if self._company.leaves_alone or sent_at <= self._cut_before:
            return
        if sent_at > self._cut_at:
            self._cut_before, self._cut_at = self._cut_at, now
            self._before = min(self.value, float(max(self._used, self._used_before)))
        least = _FLOOR if self._waiting >= self.value else min(self.value, _ALWAYS)
        left = max(_LEAST_LEFT, self._target_s / queued_s)
        self.value = max(least, min(self.value, self._before * left))
