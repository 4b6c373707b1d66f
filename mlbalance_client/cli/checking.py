"""What discovery finds for a configuration: the same roster that runs in a client, asked once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import urlsplit

import anyio

from ..conduct.roster import Roster
from ..conduct.sending import api_version, version_twice
from ..config import BalancerConfig
from ..config.urls import scrubbed
from ..core.fleet import Fleet
from ..core.model import Replica
from ..events import DiscoveryTrouble, Event, EventStream
from .reported import reports

_REACHED = "reached"


@dataclass(frozen=True, slots=True)
class Found:
    """``troubles``: why there are not more or other replicas, as far as the source could tell; why calls would fail.

    ``contacts``: by id, what came of opening a connection; empty if nobody tried.
    ``reports``: by id, what load reports those have that were reached.
    """

    source: str
    replicas: tuple[Replica, ...]
    troubles: tuple[str, ...]
    contacts: Mapping[str, str]
    reports: Mapping[str, str]

    @property
    def usable(self) -> bool:
        """Whether calls can be made."""
        return any(
            replica.usable and self.contacts.get(replica.id, _REACHED) == _REACHED
            for replica in self.replicas
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "source": self.source,
            "replicas": [self._row(replica) for replica in self.replicas],
            "troubles": list(self.troubles),
        }

    def text(self) -> str:
        """For people: a line for each replica and each trouble."""
        usable = sum(replica.usable for replica in self.replicas)
        reached = sum(said == _REACHED for said in self.contacts.values())
        head = f"{self.source}: {len(self.replicas)} replica(s), {usable} may be used"
        lines = [f"{head}, {reached} reached" if self.contacts else head]
        lines += [
            scrubbed("  ".join(f"{key}={value}" for key, value in self._row(replica).items() if value))
            for replica in self.replicas
        ]
        return "\n".join([*lines, *(f"trouble: {trouble}" for trouble in self.troubles)])

    def _row(self, replica: Replica) -> dict[str, Any]:
        heard = {"contact": self.contacts.get(replica.id), "reports": self.reports.get(replica.id)}
        return {**_row(replica), **{key: said for key, said in heard.items() if said is not None}}


async def find(config: BalancerConfig, *, contact: bool = False) -> Found:
    """Wait for the first list, as long as the configuration says.

    ``contact``: try to connect to each replica, and look for the load reports of those that are reached.
    Raises ConfigError.
    """
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
        contacts = await _contacts(fleet.replicas, config.http.connect_timeout_s) if contact else {}
        reached = [replica for replica in fleet.replicas if contacts.get(replica.id) == _REACHED]
        heard = await reports(config, reached)
        troubles += _unsuited(fleet.replicas)
        return Found(roster.told_source, fleet.replicas, tuple(troubles), contacts, heard)
    finally:
        for loop in loops:
            await loop.aclose()


def _nothing_to_close() -> None:
    pass


def _unsuited(replicas: Iterable[Replica]) -> list[str]:
    """What clients would say of most calls; of a prefix that many replicas share, once."""
    said: dict[str, str] = {}
    for replica in replicas:
        if version := api_version(replica.url):
            said.setdefault(
                urlsplit(replica.url).path, version_twice(replica.url, version, "a call is refused if that")
            )
    return list(said.values())


async def _connect(tls: bool, host: str, port: int, tls_name: str | None) -> None:
    """Connect and leave; TLS is verified by the system's certificates."""
    if tls:
        secured = await anyio.connect_tcp(
            host, port, tls=True, tls_hostname=tls_name or host, tls_standard_compatible=False
        )
        await secured.aclose()
    else:
        plain = await anyio.connect_tcp(host, port)
        await plain.aclose()


async def _contacts(replicas: Iterable[Replica], timeout_s: float) -> dict[str, str]:
    said: dict[str, str] = {}

    async def contact(replica: Replica) -> None:
        parts = urlsplit(replica.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with anyio.fail_after(timeout_s):
                await _connect(parts.scheme == "https", parts.hostname or "", port, replica.tls_name)
        except TimeoutError:
            said[replica.id] = f"no connection within {timeout_s:g} s"
        except (OSError, anyio.BrokenResourceError) as error:  # ssl's own among them
            said[replica.id] = f"no connection: {error.__cause__ or error}"
        else:
            said[replica.id] = _REACHED

    async with anyio.create_task_group() as tasks:
        for replica in replicas:
            tasks.start_soon(contact, replica)
    return said


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
