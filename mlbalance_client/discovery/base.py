"""The Protocol that every source of replicas fulfils, and how a replica is made of what one says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from mlbalance_client.config import replica_url
from mlbalance_client.core.model import Replica, ReplicaId


@dataclass(frozen=True, slots=True)
class Membership:
    """Everybody who is there now; ``source`` says who says so, for events and messages."""

    replicas: tuple[Replica, ...]
    source: str


class Discovery(Protocol):
    """A source of replicas. A plugin's class is called with its ``config_type`` and gives one of these."""

    def initial(self) -> Membership | None:
        """The first list if it is known without waiting, so that a client needs no task for it."""

    async def run(self, publish: Callable[[Membership], None]) -> None:
        """Publish the first and every later full list; return when there will be no other.

        Raises nothing but BalancerError.
        """


def make_replica(
    url: str,
    *,
    id: str | None = None,  # noqa: A002
    weight: float = 1.0,
    zone: str | None = None,
    priority: int = 0,
    labels: Mapping[str, str] | None = None,
) -> Replica:
    """A replica as the core wants it: URL checked and normalised, id derived, models read off the labels.

    Raises ConfigError if the URL is not ``http(s)://host[:port][/prefix]``.
    """
    parsed = replica_url(url)
    labels = MappingProxyType(dict(labels or {}))
    return Replica(ReplicaId(id or parsed.id), str(parsed), weight, zone, priority, labels, _models(labels))


def _models(labels: Mapping[str, str]) -> frozenset[str]:
    listed = ",".join(labels.get(name, "") for name in ("model", "models"))
    return frozenset(filter(None, map(str.strip, listed.split(","))))
