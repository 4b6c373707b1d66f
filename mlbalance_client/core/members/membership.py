"""What a source says of its replicas, and what of it may be used at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, IPv6Network, ip_address

from ..model import Replica, ReplicaId

_REMARKS = 20
_NAMED = 5

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Membership:
    """Everybody who is there now; ``source`` says who says so, for events and messages.

    ``remarks``: what was left out of the answer, and why. ``empty_because``: what an empty list means, as far as the
    source can tell.
    """

    replicas: tuple[Replica, ...]
    source: str
    remarks: tuple[str, ...] = ()
    empty_because: str = ""


def admitted(seen: Membership, networks: Sequence[Network]) -> Membership:
    """The list without what is outside ``networks`` (none given: all are inside) and what is there twice."""
    kept: dict[ReplicaId, Replica] = {}
    outside: list[Replica] = []
    twins: list[Replica] = []
    for replica in seen.replicas:
        if not _inside(replica, networks):
            outside.append(replica)
        elif kept.setdefault(replica.id, replica) is not replica:
            twins.append(replica)
    remarks = [*seen.remarks[:_REMARKS]]
    if len(seen.remarks) > _REMARKS:
        remarks.append(f"and {len(seen.remarks) - _REMARKS} more")
    if outside:
        remarks.append(f"left out, outside allowed_networks: {_named(outside)}")
    if twins:
        remarks.append(f"left out, as another has the same id: {_named(twins)}")
    return replace(seen, replicas=tuple(kept.values()), remarks=tuple(remarks))


def _named(replicas: Sequence[Replica]) -> str:
    more = f" and {len(replicas) - _NAMED} more" if len(replicas) > _NAMED else ""
    return ", ".join(f"{replica.id} ({replica.url})" for replica in replicas[:_NAMED]) + more


def _inside(replica: Replica, networks: Sequence[Network]) -> bool:
    if not networks:
        return True
    host = replica.url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    host = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        address = ip_address(host)
    except ValueError:
        return False  # a name may lead anywhere
    return any(address in network for network in networks)
