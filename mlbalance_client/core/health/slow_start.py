"""Leading replicas up to full load: those that are new, have come back, or were not ready until now.

Unknown is not idle: a newcomer has nothing outstanding and no cache, so that every client at once would find it the
least loaded. Until its first success it gets one call at a time (Finagle's rule for unknown nodes), one that may be
sent elsewhere; if no such has come within ``window_s``, any, else it would stay out where callers send no others.
Then its capacity counts as a growing share of itself, from ``min_share`` to all of it over ``window_s`` (Envoy's slow
start): what a call would cost there is divided by that share. Prompts that have their home there are handed over in
the same measure, by their hash. A fleet of newcomers only is taken as it is.
"""

from __future__ import annotations

from typing import Protocol

_KEYS = 1 << 64


class SlowStartSettings(Protocol):
    """The knobs; the configuration's section ``slow_start`` fulfils it."""

    @property
    def window_s(self) -> float: ...
    @property
    def min_share(self) -> float: ...


class SlowStart:
    """One client's: who is on trial, and who is on its way up. Not ``active`` while that is nobody."""

    __slots__ = ("_settings", "_since", "_trials", "_up", "active", "shares")

    def __init__(self, settings: SlowStartSettings) -> None:
        self._settings = settings
        self._trials: dict[int, int] = {}
        self._since: dict[int, float] = {}
        self._up: dict[int, float] = {}
        self.shares: dict[int, float] = {}
        self.active = False

    def __contains__(self, place: int) -> bool:
        return place in self._trials or place in self._up

    def admit(self, place: int, now: float) -> None:
        """The replica is to show itself, from now on."""
        if self._settings.window_s:
            self._up.pop(place, None)
            if place not in self._trials:
                self._trials[place], self._since[place] = 0, now
            self.active = True

    def on_trial(self, place: int) -> bool:
        """Whether the replica has yet to serve its first call."""
        return place in self._trials

    def barred(self, now: float, *, replayable: bool) -> int:
        """Who may not get a call: those that have their one on trial; if it cannot be sent elsewhere, the others too
        that have not been on trial for long."""
        mask = 0
        for place, under_way in self._trials.items():
            if under_way or not (replayable or now - self._since[place] >= self._settings.window_s):
                mask |= 1 << place
        return mask

    def taken(self, place: int) -> float | None:
        """A call goes there; if it is a trial, since when there are any, with which its end must be told."""
        if place not in self._trials:
            return None
        self._trials[place] += 1
        return self._since[place]

    def ended(self, place: int, since: float) -> None:
        """A trial is over."""
        if self._since.get(place) == since:
            self._trials[place] -= 1

    def served(self, place: int, sent: float, now: float) -> None:
        """The replica has served a call: from now on it is on its way up, unless that was ``sent`` before."""
        if place in self._trials and sent >= self._since[place]:
            del self._trials[place], self._since[place]
            self._up[place] = now

    def ramp(self, now: float) -> dict[int, float]:
        """The shares of those on their way up, at this moment; who is there at last is let go."""
        settings = self._settings
        up = self._up
        for place in [place for place, since in up.items() if now - since >= settings.window_s]:
            del up[place]
        self.shares = {
            place: max(settings.min_share, (now - since) / settings.window_s) for place, since in up.items()
        }
        self.active = bool(self._trials or up)
        return self.shares

    def drop(self, place: int) -> None:
        """The replica is gone, or out."""
        self._trials.pop(place, None)
        self._since.pop(place, None)
        self._up.pop(place, None)

    def keeps_home(self, place: int, key: int) -> bool:
        """Whether a key's home may be there already."""
        share = self.shares.get(place)
        return share is None or key < share * _KEYS
