"""``mlbalance simulate``: a trace in virtual time, through the product and through those it is judged by."""

from __future__ import annotations

from random import Random

from ..core.fleet import FleetSettings
from ..simulator.model.engine import Engine
from ..simulator.model.measures import measure
from ..simulator.model.replay import RouterPlacer, replay
from ..simulator.model.router import LeastRequestsRouter, Omniscient, RandomRouter, Router
from ..simulator.model.spec import EngineSpec
from ..simulator.model.traces import Trace
from ..simulator.world import simulate as simulate_clients
from .comparison import Row

_SEED = 1
_WARM_UP_SHARE = 0.25


def simulate(trace: Trace, settings: FleetSettings, clients: int, replicas: int) -> list[Row]:
    """One row a policy; the first quarter of the calls only warms the caches."""
    spec = EngineSpec()
    warm = trace.calls[int(len(trace.calls) * _WARM_UP_SHARE)].index
    routers: dict[str, Router] = {
        "random": RandomRouter(Random(_SEED)),
        "least requests": LeastRequestsRouter(Random(_SEED), clients),
        "omniscient router": Omniscient(Random(_SEED)),
    }
    rows = []
    for name, router in routers.items():
        engines = [Engine(spec) for _ in range(replicas)]
        records = replay(trace, engines, RouterPlacer(router, engines))
        rows.append(Row(name, measure((r for r in records if r.index >= warm), spec)))
    records, _ = simulate_clients(trace, settings, replicas=replicas, clients=clients, seed=_SEED, spec=spec)
    return [*rows, Row("mlbalance", measure((r for r in records if r.index >= warm), spec), ours=True)]
