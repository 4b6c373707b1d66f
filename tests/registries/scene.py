"""A client under a running load, while a registry lives through something. Every call must succeed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

import mlbalance_client as mlb
from mlbalance_client.events import DiscoveryRecovered, DiscoveryTrouble, Event, ReplicasChanged

Snapshots = dict[str, Any]


class Scene:
    """``client`` is being used; ``done`` counts what went well for each caller, and what did not ends the scene."""

    def __init__(self, client: mlb.AsyncClient, callers: int) -> None:
        self.client = client
        self.done = [0] * callers
        self.events: list[Event] = []
        self.news = anyio.Event()
        client.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, ReplicasChanged | DiscoveryTrouble | DiscoveryRecovered):
            self.events.append(event)
            self.news.set()

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def causes(self) -> list[str]:
        return [event.cause for event in self.of(DiscoveryTrouble)]

    @property
    def replicas(self) -> Snapshots:
        return {replica.id: replica for replica in self.client.snapshot().replicas}

    def usable(self) -> set[str]:
        return {id_ for id_, r in self.replicas.items() if r.state in ("healthy", "degraded")}

    async def until(self, holds: Callable[[], object], within_s: float = 30.0) -> None:
        """Wait until something holds that changes with events only."""
        with anyio.move_on_after(within_s):
            while not holds():
                self.news = anyio.Event()
                await self.news.wait()
            return
        raise AssertionError(f"still {self.replicas}, told {self.causes}")

    async def until_usable(self, *ids: str) -> None:
        await self.until(lambda: self.usable() == set(ids))

    async def until_troubled(self, count: int = 1) -> None:
        await self.until(lambda: len(self.causes) >= count)

    async def until_recovered(self, count: int = 1) -> None:
        await self.until(lambda: len(self.of(DiscoveryRecovered)) >= count)

    @property
    def calls(self) -> int:
        return sum(self.done)

    async def more_calls(self, count: int = 20) -> None:
        """Let the load go on for so many calls."""
        wanted = self.calls + count
        with anyio.fail_after(30):
            while self.calls < wanted:
                await anyio.sleep(0.001)

    async def calls_under_way(self) -> None:
        """Wait until every caller is through with the call that it is in."""
        before = list(self.done)
        with anyio.fail_after(30):
            while any(now == was for now, was in zip(self.done, before, strict=True)):
                await anyio.sleep(0.001)


@asynccontextmanager
async def under_load(discovery: Any, callers: int = 3) -> AsyncIterator[Scene]:
    """Calls without end by some callers, until the block ends."""
    config = mlb.BalancerConfig(
        discovery=discovery, load_reports={"kind": "none"}, health_checks={"enabled": False}
    )
    async with mlb.AsyncClient(config) as client:
        scene = Scene(client, callers)

        async def call(caller: int) -> None:
            number = 0
            while True:
                number += 1
                body = {"prompt": f"{number % 50} " * 300, "model": "m"}
                response = await client.post("/v1/completions", json=body)
                assert response.status_code == 200
                scene.done[caller] += 1
                await anyio.sleep(0.002)

        async with anyio.create_task_group() as tasks:
            for caller in range(callers):
                tasks.start_soon(call, caller)
            await scene.more_calls(1)
            yield scene
            await scene.more_calls()
            tasks.cancel_scope.cancel()
