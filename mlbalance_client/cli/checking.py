"""What discovery finds for a configuration: the same roster that runs in a client, asked once."""

from __future__ import annotations

import time
from dataclasses import dataclass
from random import Random
from typing import Any

from ..config import BalancerConfig
from ..config.urls import scrubbed
from ..core.fleet import Fleet
from ..core.model import Replica
from ..events import DiscoveryTrouble, Event, EventStream
from ..roster import Roster


@dataclass(frozen=True, slots=True)
class Found:
    """``troubles``: why there are not more or other replicas, as far as the source could tell."""

    source: str
    replicas: tuple[Replica, ...]
    troubles: tuple[str, ...]

    @property
    def usable(self) -> bool:
        """Whether calls can be made."""
        return any(replica.usable for replica in self.replicas)

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "source": self.source,
            "replicas": [_row(replica) for replica in self.replicas],
            "troubles": list(self.troubles),
        }

    def text(self) -> str:
        """For people: a line for each replica and each trouble."""
        usable = sum(replica.usable for replica in self.replicas)
        lines = [f"{self.source}: {len(self.replicas)} replica(s), {usable} may be used"]
        lines += [
            scrubbed("  ".join(f"{key}={value}" for key, value in _row(replica).items() if value))
            for replica in self.replicas
        ]
        return "\n".join([*lines, *(f"trouble: {trouble}" for trouble in self.troubles)])


async def find(config: BalancerConfig) -> Found:
    """Wait for the first list, as long as the configuration says. Raises ConfigError."""
    troubles: list[str] = []

    def hear(event: Event) -> None:
        if isinstance(event, DiscoveryTrouble):
            troubles.append(event.cause)

    events = EventStream()
    events.subscribe(hear)
    fleet = Fleet(config.picking, Random())
    roster = Roster(config.discovery, fleet, events, Random(), time.monotonic, _nothing_to_close)
    loops = roster.start(owner=roster)
    try:
        await roster.ready()
        return Found(roster.source, fleet.replicas, tuple(troubles))
    finally:
        for loop in loops:
            await loop.aclose()


def _nothing_to_close() -> None:
    pass


def _row(replica: Replica) -> dict[str, Any]:
    return {
        "id": replica.id,
        "url": replica.url,
        "state": replica.state.value,
        "because": replica.because,
        "weight": replica.weight,
        "priority": replica.priority,
        "zone": replica.zone,
        "models": sorted(replica.models),
        "labels": dict(replica.labels),
    }
