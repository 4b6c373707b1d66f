"""How soon a change in a real registry is applied at the client, from before it is made; and what idling costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from statistics import median
from typing import Any

import anyio

import mlbalance_client as mlb
from mlbalance_client.events import Event, ReplicasChanged

from ..registries import packages
from ..registries.consul import Consul
from ..registries.dnsmasq import Dnsmasq

CHANGES = 40
TTL_S = 2
IDLE_S = 5.0


class Changes:
    """Waits for the next change that a client applies."""

    def __init__(self, client: mlb.AsyncClient) -> None:
        self._seen = anyio.Event()
        client.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        if isinstance(event, ReplicasChanged):
            self._seen.set()

    async def seconds(self, change: Callable[[], None]) -> float:
        """From before ``change`` until it is applied."""
        self._seen = anyio.Event()
        began = time.perf_counter()
        await anyio.to_thread.run_sync(change)
        with anyio.fail_after(10 * TTL_S):
            await self._seen.wait()
        return time.perf_counter() - began


async def started(client: mlb.AsyncClient) -> Changes:
    changes = Changes(client)
    try:
        await client.get("/")
    except mlb.BalancerError:
        pass  # nobody listens there; the list is known
    return changes


async def consul_s(consul: Consul) -> list[float]:
    """Seconds of each change of one among 20 instances."""
    for number in range(20):
        consul.register(f"r{number}", f"127.0.0.1:{number + 1}")
    discovery = {"kind": "consul", "service": "llm", "address": consul.address}
    async with mlb.AsyncClient(mlb.BalancerConfig(discovery=discovery)) as client:
        changes = await started(client)
        taken = []
        for number in range(CHANGES):
            meta = {"version": str(number)}
            taken.append(
                await changes.seconds(lambda meta=meta: consul.register("r0", "127.0.0.1:1", Meta=meta))
            )  # type: ignore[misc]
            await anyio.sleep(0.06)
        return taken


async def idle_cpu_s(consul: Consul) -> float:
    """CPU seconds that a client of 500 instances spends while nothing changes."""
    consul.change(add={f"m{number}": f"127.0.0.1:{number + 1}" for number in range(500)})
    discovery = {"kind": "consul", "service": "llm", "address": consul.address}
    async with mlb.AsyncClient(mlb.BalancerConfig(discovery=discovery)) as client:
        await started(client)
        began = time.process_time()
        await anyio.sleep(IDLE_S)
        return time.process_time() - began


async def dns_s(server: Dnsmasq) -> list[float]:
    """Seconds of each change of a name's addresses, at random moments of the TTL."""
    rng = Random(1)
    discovery: dict[str, Any] = {"kind": "dns", "name": "llm.test", "port": 1}
    discovery |= {"nameservers": ["127.0.0.1"], "nameserver_port": server.port}
    async with mlb.AsyncClient(mlb.BalancerConfig(discovery=discovery)) as client:
        changes = await started(client)
        taken = []
        for number in range(8):
            await anyio.sleep(rng.random() * TTL_S)
            addresses = ["127.0.0.1", f"127.0.0.{number + 2}"]
            taken.append(await changes.seconds(lambda addresses=addresses: server.set_hosts(*addresses)))  # type: ignore[misc]
        return taken


def main() -> None:
    """Consul, then DNS; what cannot be had is said."""
    try:
        with Consul(packages.consul()) as consul:
            taken = anyio.run(consul_s, consul)
            print(f"discovery: a change in Consul applied, ms, {CHANGES} changes")
            print(f"  median {median(taken) * 1e3:7.1f}   target below 100")
            print(f"  worst  {max(taken) * 1e3:7.1f}")
            idle = anyio.run(idle_cpu_s, consul) / IDLE_S
            print(f"  idle, 520 replicas: {idle * 1e3:.2f} ms of CPU a second, one query pending")
        with Dnsmasq(packages.dnsmasq(), ttl_s=TTL_S) as server:
            server.set_hosts("127.0.0.1")
            server.serve([f"addn-hosts={server.hosts}"])
            taken = anyio.run(dns_s, server)
            print(
                f"discovery: a change in DNS applied, s, TTL {TTL_S} s, {len(taken)} changes at random moments"
            )
            print(f"  median {median(taken):7.2f}")
            print(f"  worst  {max(taken):7.2f}   target at most {TTL_S * 1.1:.2f}")
    except packages.Unavailable as error:
        print(f"discovery: {error}")
