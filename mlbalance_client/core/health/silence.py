"""Which replicas have begun no answer for too long, though others have.

Five slow calls, or three of which one has stood three times as long, and no answer begun since, while most that others
began came sooner than the slowest of these has stood (by the least, one short prompt would be later than most of what
others do); streams that go on say nothing of whether prompts are served. After two such calls a replica is doubtful,
and gets one at a time. One alone is its own affair, but for a replica that was silent when it was last asked.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable
from dataclasses import dataclass, field

_DOUBTFUL_CALLS = 2
_LONG_CALLS = 3
_LONG_LOOKS = 3
_CALLS = 5


@dataclass(slots=True)
class _Silence:
    """Since ``began`` a replica has begun no answer, with these ``calls`` there, each found slow so many times.

    The slowest stood for ``stood_s``. Of the answers that others have begun meanwhile, so many came ``sooner`` than it
    had stood by then, so many ``later``.
    """

    began: float
    stood_s: float
    calls: dict[Hashable, int] = field(default_factory=dict)
    sooner: int = 0
    later: int = 0

    @property
    def odd(self) -> bool:
        """Whether others are not as slow."""
        return self.sooner > self.later


class Silences:
    """Of one client's replicas, by place."""

    __slots__ = ("_begun_at", "_left", "_mute", "_silent")

    def __init__(self) -> None:
        self._silent: dict[int, _Silence] = {}
        self._mute: set[int] = set()
        self._left: set[int] = set()
        self._begun_at: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._silent)

    def begun(self, place: int, stood_s: float, now: float) -> None:
        """The replica began to answer a call, which had stood there for ``stood_s``."""
        self._begun_at[place] = now
        self._mute.discard(place)
        self._left.discard(place)
        if self._silent:
            self._silent.pop(place, None)
            for silence in self._silent.values():
                if stood_s < silence.stood_s:
                    silence.sooner += 1
                else:
                    silence.later += 1

    def slow(self, place: int, call: Hashable, since: float, now: float) -> None:
        """A call has been slow since then; told as often as it is looked at, each time since the last."""
        if self._begun_at.get(place, since) > since:
            return
        silence = self._silent.get(place)
        if silence is None:
            silence = self._silent[place] = _Silence(since, now - since)
        silence.stood_s = max(silence.stood_s, now - since)
        looks = silence.calls.get(call, 0)
        if looks or len(silence.calls) < _CALLS:  # where no other is heard there may be very many
            silence.calls[call] = looks + 1

    def left(self, place: int) -> None:
        """A call has gone elsewhere for its silence."""
        self._left.add(place)

    def muted(self, place: int) -> None:
        """A call there was given up on, or the replica was ejected for its silence."""
        self._mute.add(place)

    def forget(self, place: int) -> None:
        """What its calls have shown counts no more; that it was silent when it was last asked does."""
        self._silent.pop(place, None)

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._silent.pop(place, None)
        self._mute.discard(place)
        self._left.discard(place)
        self._begun_at.pop(place, None)

    @property
    def places(self) -> list[int]:
        """Who may be silent."""
        return list(self._silent)

    def too_long(self, place: int, now: float) -> str | None:
        """Why its silence has become too long, in words, if it has."""
        silence = self._silent.get(place)
        if silence is None:
            return None
        calls, needed = silence.calls, _CALLS
        if place in self._mute:
            needed = 1
        elif max(calls.values()) >= _LONG_LOOKS:
            needed = _LONG_CALLS
        if len(calls) < needed or not silence.odd:
            return None
        why = f"it began no answer for {now - silence.began:.1f} s, with {len(calls)} slow calls there; "
        return (
            why + f"of the others' answers {silence.sooner} of {silence.sooner + silence.later} came sooner"
        )

    def mute(self, place: int, since: float) -> bool:
        """Whether it has begun no answer since then, though others have, or had while a call before was moved away."""
        begun_at = self._begun_at
        return begun_at.get(place, since) <= since and (
            place in self._left or any(at > since for other, at in begun_at.items() if other != place)
        )

    def unheard(self, place: int) -> bool:
        """Whether it was silent when it was last asked, and has begun no answer since."""
        return place in self._mute

    @property
    def doubtful(self) -> Collection[int]:
        """Those that may be silent: they are to get one call at a time."""
        return [place for place in self._silent if self.doubts(place)] if self._silent else ()

    def doubts(self, place: int) -> bool:
        """Whether it may be silent."""
        silence = self._silent.get(place)
        return silence is not None and len(silence.calls) >= _DOUBTFUL_CALLS and silence.odd
