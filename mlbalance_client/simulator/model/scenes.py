"""Scenes that a fleet goes through, as data: what happens to it when, how calls arrive, and what must come of it.

Times are seconds of the modelled engine from the scene's start; eight replicas, an open loop of recorded
conversations at about 70 % busy. Where time is compressed, ``Scene.compressed`` does it to all alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol

import anyio

from .traces import Trace

REPLICAS = 8
ALL = tuple(range(REPLICAS))
BAD = 0
# The recorded rate times this keeps eight replicas about 70 % busy under the omniscient router.
RATE = 1.4


class What(StrEnum):
    """What happens to replicas."""

    FAULTS = "faults"
    KILL = "kill"
    ROLL = "roll"


@dataclass(frozen=True, slots=True)
class Change:
    """At ``at_s``, ``replicas`` get ``faults`` instead of those they have, are killed, or drain and start anew."""

    at_s: float
    what: What = What.FAULTS
    replicas: tuple[int, ...] = (BAD,)
    faults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Burst:
    """From ``at_s`` on, calls arrive ``factor`` times as fast for ``lasts_s``."""

    at_s: float
    lasts_s: float
    factor: float


@dataclass(frozen=True, slots=True)
class Must:
    """What a scene must show. Limits that are None are not of interest.

    p99:            of slowdown, as a multiple of the omniscient router's on the same degraded fleet
    p99_usual:      of slowdown, as a multiple of the same client's on a fleet where nothing is wrong
    extra_tokens:   sent beyond those of the calls themselves, as a share of these
    failed:         share of calls that end in an error before any content came
    attempts:       that replicas see, as a multiple of calls, between the scene's first change and ``until_s``
    quiet_after_s:  the replica that is bad gets no new call later than this after the change,
    after_calls:    nor after so many of its calls
    """

    p99: float | None = None
    p99_usual: float | None = None
    extra_tokens: float | None = None
    failed: float = 0.0
    attempts: float | None = None
    quiet_after_s: float | None = None
    after_calls: int | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """``blind_to_cold``: the judging router does not know who is cold. ``load``: calls come so many times as fast."""

    name: str
    about: str
    must: Must
    changes: tuple[Change, ...] = ()
    burst: Burst | None = None
    blind_to_cold: bool = False
    load: float = 1.0

    def from_(self, at_s: float) -> Scene:
        """The same, its first change at ``at_s``."""
        first = min((change.at_s for change in self.changes), default=0.0)
        changes = tuple(replace(change, at_s=change.at_s - first + at_s) for change in self.changes)
        return replace(self, changes=changes, burst=self.burst and replace(self.burst, at_s=at_s))

    def compressed(self, factor: float) -> Scene:
        """The same in a fraction of the time."""
        return replace(
            self,
            changes=tuple(_compressed(change, factor) for change in self.changes),
            burst=self.burst
            and replace(self.burst, at_s=self.burst.at_s / factor, lasts_s=self.burst.lasts_s / factor),
        )

    def arrivals(self, trace: Trace) -> Trace:
        """The trace's calls, as they come in this scene."""
        trace = trace.at_rate(self.load)
        if self.burst is None:
            return trace
        start, lasts, factor = self.burst.at_s, self.burst.lasts_s, self.burst.factor
        taken = lasts * factor

        def moved(t: float) -> float:
            if t < start:
                return t
            return start + (t - start) / factor if t < start + taken else t - taken + lasts

        return Trace(trace.name, tuple(replace(call, t_s=moved(call.t_s)) for call in trace.calls))


def _compressed(change: Change, factor: float) -> Change:
    faults = dict(change.faults)
    if faults.get("retry_after_s", -1) > 0:
        faults["retry_after_s"] /= factor
    return replace(change, at_s=change.at_s / factor, faults=faults)


_AT = 20.0
_APART_S = 20.0
_COLD_CALLS = 20

SCENES = {
    scene.name: scene
    for scene in (
        Scene("usual", "nothing is wrong", Must(p99=1.5, extra_tokens=0.01)),
        Scene(
            "slow",
            "one replica is ten times slower",
            Must(p99=1.5, extra_tokens=0.05),
            (Change(_AT, faults={"slow": 10}),),
        ),
        Scene(
            "stalls",
            "two calls in a hundred take fifteen times as long, everywhere",
            Must(p99_usual=2.0, extra_tokens=0.05),
            (Change(0.0, replicas=ALL, faults={"stall_share": 0.02, "stall_factor": 15}),),
        ),
        Scene(
            "killed",
            "one replica is killed without warning",
            Must(quiet_after_s=1.0),
            (Change(_AT, What.KILL),),
        ),
        Scene(
            "hanging",
            "one replica takes calls and never answers",
            Must(after_calls=5),
            (Change(_AT, faults={"hanging": True}),),
        ),
        Scene(
            "failing",
            "one replica answers 500 to half of its calls",
            Must(failed=0.001, after_calls=20),
            (Change(_AT, faults={"failing": 0.5}),),
        ),
        Scene(
            "outage",
            "all replicas answer 503 for half a minute",
            Must(failed=1.0, attempts=1.2),
            (
                Change(_AT, replicas=ALL, faults={"reject_status": 503}),
                Change(_AT + 30, replicas=ALL),
            ),
        ),
        Scene(
            "rejecting",
            "one replica answers 429 with a Retry-After of ten seconds",
            Must(),
            (Change(_AT, faults={"reject_status": 429, "retry_after_s": 10.0}),),
        ),
        Scene(
            "rolling",
            "all eight are restarted, 20 s apart: they drain, and come back cold, with more work than they can do",
            Must(p99=1.5),
            tuple(Change(_AT + _APART_S * n, What.ROLL, (n,), {"cold_calls": _COLD_CALLS}) for n in ALL),
            blind_to_cold=True,
        ),
        Scene(
            "rolling_gently",
            "the same at a quarter of the load, which the fleet can bear while it is cold",
            Must(p99=1.5),
            tuple(Change(_AT + _APART_S * n, What.ROLL, (n,), {"cold_calls": _COLD_CALLS}) for n in ALL),
            blind_to_cold=True,
            load=0.25,
        ),
        Scene(
            "burst",
            "ten times the load for ten seconds",
            Must(failed=1.0),
            burst=Burst(_AT, 10, 10),
        ),
    )
}


class Stage(Protocol):
    """A fleet that scenes can be played on."""

    async def set_faults(self, number: int, **faults: Any) -> None:
        """These instead of those it has."""

    async def kill(self, number: int) -> None:
        """Without warning."""

    async def drain(self, number: int) -> None:
        """Ends once what is under way there is over."""

    async def start(self, number: int, **faults: Any) -> None:
        """Anew, where it was, with an empty cache."""


async def play(scene: Scene, stage: Stage, start: float) -> None:
    """Do what happens in a scene, by the event loop's clock; ``start``: when it began."""

    async def roll(number: int, faults: Mapping[str, Any]) -> None:
        await stage.drain(number)
        await stage.start(number, **faults)

    async with anyio.create_task_group() as tasks:
        for change in scene.changes:
            await anyio.sleep_until(start + change.at_s)
            for number in change.replicas:
                match change.what:
                    case What.FAULTS:
                        await stage.set_faults(number, **change.faults)
                    case What.KILL:
                        await stage.kill(number)
                    case What.ROLL:
                        tasks.start_soon(roll, number, change.faults)
