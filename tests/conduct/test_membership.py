"""Replicas that change or go: whoever asked them follows, and nothing is kept of those that are gone."""

from __future__ import annotations

import anyio
import pytest

from mlbalance_client.core.model import Replica, ReplicaId
from mlbalance_client.wire import Origin

from .virtual import WHOLE, Network, anyio_backend, engine_of, request

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio


async def test_reports_are_asked_for_under_the_name_by_which_calls_are_verified() -> None:
    engine = engine_of(Network([WHOLE]), replicas=1, load_reports={"kind": "vllm"})
    engine.start()
    for name in ("old.example", "new.example"):
        engine.fleet.update([Replica(ReplicaId("r"), "https://10.0.0.1:8000", tls_name=name)], engine.clock())
        engine._on_change()
        await anyio.sleep(30)
        assert {origin.tls_name for origin in engine.wire._pools} == {name}
    await engine.aclose()


async def test_connections_to_replicas_that_were_asked_but_never_called_go_with_them() -> None:
    engine = engine_of(Network([WHOLE]), replicas=1, load_reports={"kind": "vllm", "interval_s": 0.5})
    engine.start()
    for number in range(5):
        url = f"http://10.0.0.{number}:8000"
        engine.fleet.update([Replica(ReplicaId(f"r{number}"), url)], engine.clock())
        engine._on_change()
        await anyio.sleep(30)
        assert set(engine.wire._pools) == {Origin.from_url(url)}
    await engine.aclose()


async def test_who_checks_nobody_remembers_no_models() -> None:
    engine = engine_of(Network([WHOLE]))
    for number in range(20):
        answer = await engine.send(request(model=f"m{number}"))
        await answer.body.aclose()
    assert not engine.checkups._recent
    await engine.aclose()
