"""Those replicas that may serve one model, in the tiers (SRV priorities) that are in use; with their rendezvous."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random

from ..model import Replica
from .rendezvous import Rendezvous


class Pool:
    """Immutable: made anew when membership changes. ``places`` are dense small integers, ``mask`` their bits.

    ``weights``: shares of the keys by place, where they are not the replicas' own weights. ``identities``: of those
    places whose replicas name themselves; homes go by that name, else by the registry's id. ``homes``: the first places
    in the ranking of a key.
    """

    def __init__(
        self,
        replicas: Mapping[int, Replica],
        identities: Mapping[int, str],
        weights: Mapping[int, float] | None = None,
    ) -> None:
        self.replicas = replicas
        self.places = tuple(replicas)
        self.mask = sum(1 << place for place in self.places)
        shares = weights or {place: replica.weight for place, replica in replicas.items()}
        rendezvous = Rendezvous([(p, identities.get(p, r.id), shares[p]) for p, r in replicas.items()])
        self.homes = rendezvous.homes

    def __len__(self) -> int:
        return len(self.places)

    def sample(self, count: int, rng: Random) -> Iterable[int]:
        """``count`` random places (all of them, if no more), the same one perhaps twice."""
        places = self.places
        if len(places) <= count:
            return places
        draw, n = rng.random, len(places)
        return [places[int(draw() * n)] for _ in range(count)]
