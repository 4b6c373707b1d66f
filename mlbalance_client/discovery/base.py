"""The Protocol that every source of replicas fulfils, and how a replica is made of what one says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType
from typing import Protocol

from mlbalance_client.config import ReplicaConfig, replica_url
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.core.model import Replica, ReplicaId, ReplicaState
from mlbalance_client.errors import ConfigError

Publish = Callable[[Membership], None]


class Discovery(Protocol):
    """A source of replicas. A plugin's class is called with its ``config_type`` and gives one of these.

    It says what it sees and no more: that the last good list is kept, when to try again, and what is logged, is
    decided above, alike for all kinds.
    """

    def initial(self) -> Membership | None:
        """The first list if it is known without waiting, so that the first call need not."""

    async def run(self, publish: Publish) -> None:
        """Publish the first and every later full list, on asyncio or trio; return when there will be no other.

        An empty list means that the registry says so. Raises DiscoveryError, with the cause in plain words and the
        same words for the same cause, when it gives no usable answer; it is then called again after a while.
        """


def make_replica(
    url: str,
    *,
    id: str | None = None,  # noqa: A002
    weight: float = 1.0,
    zone: str | None = None,
    priority: int = 0,
    labels: Mapping[str, str] | None = None,
    models: Sequence[str] = (),
    state: ReplicaState = ReplicaState.HEALTHY,
    because: str = "",
    tls_name: str | None = None,
) -> Replica:
    """A replica as the core wants it: URL checked and normalised, id derived, models read off the labels.

    ``models``: what it serves if the labels do not say. Raises ConfigError if the URL is not
    ``http(s)://host[:port][/prefix]``, the weight not a number above 0, or a name not text that UTF-8 can encode, as
    half of a surrogate pair is not, which JSON may hold.
    """
    parsed = replica_url(url)
    if not 0.0 < weight < inf:
        raise ConfigError(f"replica {url}: the weight must be a number above 0")
    labels = MappingProxyType(dict(labels or {}))
    for text in (id, zone, tls_name, *labels, *labels.values(), *models):
        if text is not None and not _encodes(text):
            raise ConfigError(f"replica {url}: {text[:80]!a} is not text that UTF-8 can encode")
    return Replica(
        ReplicaId(id or parsed.id),
        str(parsed),
        weight,
        zone,
        priority,
        labels,
        _models(labels) or frozenset(models),
        state,
        because.encode("utf-8", "replace").decode(),
        tls_name,
    )


def address_url(address: str, port: int, *, tls: bool) -> str:
    """The URL of a replica at an address that a registry gives. Raises ConfigError if it is more than an address."""
    if any(character in address for character in "/?#@[]"):
        raise ConfigError(f"address {address[:80]!r}: must be an IP address or a host name")
    host = f"[{address}]" if ":" in address else address
    return f"{'https' if tls else 'http'}://{host}:{port}"


def replica_of(config: ReplicaConfig) -> Replica:
    """The replica that a table of the configuration, or of a file, describes."""
    return make_replica(
        config.url,
        id=config.id,
        weight=config.weight,
        zone=config.zone,
        priority=config.priority,
        labels=config.labels,
        state=ReplicaState(config.state),
        tls_name=config.tls_server_name,
    )


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _models(labels: Mapping[str, str]) -> frozenset[str]:
    listed = ",".join(labels.get(name, "") for name in ("model", "models"))
    return frozenset(filter(None, map(str.strip, listed.split(","))))
