"""Who serves which model, in tiers, under the names that replicas give themselves."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import inf

from ..model import Replica, ReplicaId
from ..remembered import Remembered
from .pool import Pool
from .tiers import tiers

_MODELS = 256
# A new name makes homes be ranked anew; one who takes a new one all the time must not keep the client busy.
_RENAMED_AFTER_S = 10.0


class Serving:
    """Pools by model, made when first asked for and anew when something has changed.

    ``replicas`` by place and ``places`` by id are its fleet's. ``unfit``: places that are ejected, as a bit set.
    """

    def __init__(
        self,
        replicas: Mapping[int, Replica],
        places: Mapping[ReplicaId, int],
        spill_below_share: float,
        unfit: Callable[[], int],
    ) -> None:
        self.identities: dict[int, str] = {}
        self._replicas = replicas
        self._places = places
        self._spill_below_share = spill_below_share
        self._unfit = unfit
        self._tiered = False
        self._named_at: dict[int, float] = {}
        self._pools: Remembered[str | None, tuple[Pool, ...]] = Remembered(_MODELS)
        self._alike: dict[frozenset[int], tuple[Pool, ...]] = {}

    def pools(self, model: str | None) -> tuple[Pool, ...]:
        """The replicas in use for a model; then, for when all of those have been tried, the other tiers."""
        pools = self._pools.get(model)
        if pools is None:
            serving = {place: r for place, r in self._replicas.items() if r.serves(model)}
            alike = frozenset(serving)
            if alike not in self._alike:
                self._alike[alike] = tiers(serving, self._spill_below_share, self.identities, self._unfit())
            pools = self._pools[model] = self._alike[alike]
        return pools

    def name(self, place: int, identity: str, at: float) -> None:
        """The replica itself says who it is, which is what homes go by; who claims another's name keeps its own."""
        if self.identities.get(place) == identity or at - self._named_at.get(place, -inf) < _RENAMED_AFTER_S:
            return
        self._named_at[place] = at
        if identity in self.identities.values() or self._places.get(ReplicaId(identity), place) != place:
            return
        self.identities[place] = identity
        self._renew()

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self.identities.pop(place, None)
        self._named_at.pop(place, None)

    def members_changed(self) -> None:
        """Others are there, or they are not what they were."""
        self._tiered = len({replica.priority for replica in self._replicas.values()}) > 1
        self._renew()

    def out_changed(self) -> None:
        """Others are ejected, who count as unhealthy where there are tiers."""
        if self._tiered:
            self._renew()

    def nobody(self, model: str | None, excluded: Collection[ReplicaId], nobody_at_all: str) -> str:
        """Why nobody serves a call, in words."""
        if not self._replicas:
            return f"no replica is known: {nobody_at_all}"
        if excluded:
            return f"no other replica is left for model {model!r}: {len(excluded)} tried"
        serving = [r for r in self._replicas.values() if r.serves(model)]
        if serving:
            states = ", ".join(f"{r.id} is {r.state}" for r in serving[:5])
            return f"no replica for model {model!r} may be used: {states}"
        models = sorted({m for r in self._replicas.values() for m in r.models})
        return f"no replica serves model {model!r}; the fleet serves {', '.join(models)}"

    def _renew(self) -> None:
        self._pools.clear()
        self._alike.clear()
