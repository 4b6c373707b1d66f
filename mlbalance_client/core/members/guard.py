"""Which replicas are in force: what a source says, behind a guard against its mistakes. Nothing is read or timed here.

A source gives full lists or fails. The guard keeps the last good list

- while the source fails, for ``max_stale_s`` (unset: for ever);
- while an answer names no usable replica, for ``empty_hold_s``;
- for ``shrink_hold_s``, as to those that vanished, when fewer than ``shrink_share`` of the usable ones are left at
  once; those that the answer does name follow it all the while, and have not vanished if it calls them unusable.

A replica that comes back after leaving ``flap_departures`` times within ``flap_window_s`` is out until it has stayed
for ``flap_hold_s``, unless that would leave fewer than ``shrink_share`` of the usable ones: then the registry is
what flaps, not the replica. Addresses outside ``allowed_networks`` are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Protocol

from ..model import Replica, ReplicaState
from .flapping import Flaps, FlapSettings
from .membership import Membership, Network, admitted

_NAMED = 5


class GuardSettings(FlapSettings, Protocol):
    """What the guard reads of the configuration; every kind of discovery has these keys. Times in seconds."""

    @property
    def max_stale_s(self) -> float | None: ...
    @property
    def empty_hold_s(self) -> float: ...
    @property
    def shrink_share(self) -> float: ...
    @property
    def shrink_hold_s(self) -> float: ...
    @property
    def allowed_networks(self) -> Sequence[Network]: ...


class Guard:
    """Told of every answer and failure; ``in_force`` is the list to use, None until there is one.

    ``trouble``: why the list is not simply what the source says, "" if it is; ``remarks``: what the last answer held
    that could not be used. After ``due`` (seconds of the caller's clock, None for never) ``tick`` may change them.
    While the source fails nothing changes but by ``max_stale_s``: an old answer is not confirmed by waiting, so what
    is held back is held anew from the first answer after it.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._settings = settings
        self._seen: Membership | None = None
        self._good: tuple[Replica, ...] = ()
        self._low: tuple[bool, float] | None = None
        self._failing_since: float | None = None
        self._failure = ""
        self._flaps = Flaps(settings)
        self.in_force: tuple[Replica, ...] | None = None
        self.trouble = ""
        self.remarks: tuple[str, ...] = ()
        self.due: float | None = None

    def observe(self, seen: Membership, now: float) -> None:
        """The source gave a full list."""
        if self._failing_since is not None:
            self._low = None  # what was held before it failed must last anew
        self._failing_since, self._failure = None, ""
        self._seen = admitted(seen, self._settings.allowed_networks)
        self._flaps.observe(self._seen.replicas, now)
        self._decide(now)

    def failed(self, cause: str, now: float) -> None:
        """The source gave no answer, for ``cause``."""
        if self._failing_since is None:
            self._failing_since = now
        self._failure = cause
        self._decide(now)

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._decide(now)

    def _decide(self, now: float) -> None:
        self.due = None
        if self._failing_since is not None:
            self.trouble = self._stale(self._failing_since, now)
        elif self._seen is not None:
            self.remarks = self._seen.remarks
            self.trouble = self._weigh(self._damped(self._seen.replicas, now), now)

    def _weigh(self, wanted: tuple[Replica, ...], now: float) -> str:
        """Accept the list or hold it back; what is wrong with it."""
        good = self._good
        usable = any(replica.usable for replica in wanted)
        before = {replica.id for replica in good if replica.usable}
        left = sum(replica.usable or replica.id in before for replica in wanted)
        if (usable and left >= self._settings.shrink_share * len(before)) or not before:
            self._accept(wanted)
            return "" if usable else self._emptiness(wanted)
        what = f"only {left} of {len(before)} replicas are left" if usable else self._emptiness(wanted)
        until = self._low_since(usable, now) + self._hold_s(usable)
        if now >= until:
            self._accept(wanted)
            return "" if usable else what
        self._wake(until)
        self.in_force = _merged(good, wanted) if usable else good
        return f"{what}; the list before is kept for now"

    def _accept(self, wanted: tuple[Replica, ...]) -> None:
        self._good = self.in_force = wanted
        self._low = None

    def _low_since(self, usable: bool, now: float) -> float:
        if self._low is None or self._low[0] is not usable:
            self._low = usable, now
        return self._low[1]

    def _hold_s(self, usable: bool) -> float:
        return self._settings.shrink_hold_s if usable else self._settings.empty_hold_s

    def _stale(self, since: float, now: float) -> str:
        limit_s = self._settings.max_stale_s
        if self.in_force is None or limit_s is None:
            return self._failure
        if now < since + limit_s:
            self._wake(since + limit_s)
            return self._failure
        self._accept(())
        return f"{self._failure}; the list is given up, older than max_stale_s ({limit_s:g} s)"

    def _damped(self, replicas: tuple[Replica, ...], now: float) -> tuple[Replica, ...]:
        flapping = {
            replica.id for replica in replicas if replica.usable and self._flaps.holds(replica.id, now)
        }
        usable = sum(replica.usable for replica in replicas)
        if not flapping or usable - len(flapping) < max(1, self._settings.shrink_share * usable):
            return replicas
        for id_ in flapping:
            self._wake(self._flaps.until(id_))
        return tuple(
            replace(replica, state=ReplicaState.OUT, because="it comes and goes; out until it stays")
            if replica.id in flapping
            else replica
            for replica in replicas
        )

    def _emptiness(self, wanted: Sequence[Replica]) -> str:
        if wanted:
            named = ", ".join(
                f"{r.id} {r.state}" + (f" ({r.because})" if r.because else "") for r in wanted[:_NAMED]
            )
            return f"none of {len(wanted)} replicas is usable: {named}"
        return (self._seen.empty_because if self._seen else "") or "no replica is registered"

    def _wake(self, at: float) -> None:
        self.due = at if self.due is None else min(self.due, at)


def _merged(good: Iterable[Replica], wanted: Iterable[Replica]) -> tuple[Replica, ...]:
    """What is wanted, and those of the good list that it does not name; not if another has their address by now."""
    named = {replica.id: replica for replica in wanted}
    taken = {replica.url for replica in named.values()}
    return *named.values(), *(old for old in good if old.id not in named and old.url not in taken)
