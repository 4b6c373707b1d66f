"""Which priorities are in use, lower first, and how they share the keys when the first alone is not fit enough.

A tier can carry the share healthy / ``spill_below_share`` of the load, at most all of it, where healthy is the share of
its replicas that are; those that are draining are on their way out and do not count. Tiers are added until they carry
everything (Envoy's priority levels, with 1 / ``spill_below_share`` as the overprovisioning factor). The weights of
a tier's replicas are scaled to its share, so that only the share spilt moves, and the ranking inside a tier stays.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..model import Replica, ReplicaState
from .pool import Pool

_ENOUGH = 1.0 - 1e-9

Members = dict[int, Replica]


def tiers(
    serving: Mapping[int, Replica],
    spill_below_share: float,
    identities: Mapping[int, str],
    unfit: int = 0,
) -> tuple[Pool, ...]:
    """Pools in the order in which they are to be tried: the tiers in use as one, then each of the others.

    ``identities``: as for ``Pool``. ``unfit``: the places that are not healthy whatever discovery says, as a bit set.
    """
    shares: list[tuple[Members, float]] = []
    others: list[Members] = []
    left = 1.0
    for priority in sorted({replica.priority for replica in serving.values()}):
        tier = [(place, r) for place, r in serving.items() if r.priority == priority]
        usable = {place: r for place, r in tier if r.usable}
        share = min(left, _healthy(tier, unfit) / spill_below_share)
        if share > 1.0 - _ENOUGH:
            shares.append((usable, share))
            left -= share
        elif usable:
            others.append(usable)
    first = [_joined(shares, identities)] if shares else []
    return tuple(first + [Pool(members, identities) for members in others])


def _joined(shares: list[tuple[Members, float]], identities: Mapping[int, str]) -> Pool:
    if len(shares) == 1:
        return Pool(shares[0][0], identities)
    members: Members = {}
    weights: dict[int, float] = {}
    for usable, share in shares:
        total = sum(replica.weight for replica in usable.values())
        members |= usable
        weights |= {place: replica.weight * share / total for place, replica in usable.items()}
    return Pool(members, identities, weights)


def _healthy(tier: list[tuple[int, Replica]], unfit: int) -> float:
    staying = [(place, r) for place, r in tier if r.state is not ReplicaState.DRAINING]
    fit = sum(r.state is ReplicaState.HEALTHY and not unfit >> place & 1 for place, r in staying)
    return fit / len(staying) if staying else 0.0
