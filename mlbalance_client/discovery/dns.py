"""Replicas by DNS: SRV records with their targets' addresses, or every address of one name."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import anyio
import dns.name
import dns.resolver

from mlbalance_client.config import DnsConfig, ResolverConfig, SrvConfig
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.core.model import Replica
from mlbalance_client.errors import ConfigError, DiscoveryError

from .base import Publish, address_url, make_replica
from .hosts import Addresses, Hosts
from .resolving import Resolver

_LATER = 0.05
_EMPTY_AGAIN_S = 5.0
# RFC 2782: weight 0 has a very small chance. Weights are relative, so that all of weight 0 are alike.
_LEAST_WEIGHT = 0.1


class _Refreshed:
    """Looks up again when the TTL has passed, and a little later by chance, so that clients spread."""

    def __init__(self, config: ResolverConfig, rng: Random) -> None:
        self._config = config
        self._rng = rng

    def initial(self) -> None:
        """Not without asking."""

    async def run(self, publish: Publish) -> None:
        """Publish every answer. Raises DiscoveryError if there is none."""
        resolver = Resolver(self._config)
        while True:
            membership, ttl_s = await self._look_up(resolver)
            publish(membership)
            await anyio.sleep(self._refresh_s(ttl_s))

    async def _look_up(self, resolver: Resolver) -> tuple[Membership, float | None]:
        raise NotImplementedError

    def _refresh_s(self, ttl_s: float | None) -> float:
        config = self._config
        wait_s = _EMPTY_AGAIN_S if ttl_s is None else ttl_s
        return min(config.max_refresh_s, max(config.min_refresh_s, wait_s)) * (
            1.0 + _LATER * self._rng.random()
        )

    def _replica(
        self,
        address: str,
        port: int,
        asked: str,
        *,
        identity: str | None = None,
        weight: float = 1.0,
        priority: int = 0,
    ) -> Replica:
        config = self._config
        return make_replica(
            address_url(address, port, tls=config.tls),
            id=identity,
            weight=weight,
            priority=priority,
            models=config.models,
            tls_name=(config.tls_server_name or asked) if config.tls else None,
        )


class DnsDiscovery(_Refreshed):
    """Every address of a name is a replica; its identity is the address."""

    config_type = DnsConfig

    def __init__(self, config: DnsConfig, rng: Random) -> None:
        super().__init__(config, rng)
        self._name, self._port = config.name, config.port

    async def _look_up(self, resolver: Resolver) -> tuple[Membership, float | None]:
        addresses, ttl_s = await resolver.addresses(self._name)
        replicas = tuple(self._replica(address, self._port, self._name.rstrip(".")) for address in addresses)
        empty = f"{self._name} has no {' and no '.join(resolver.families)} records"
        return Membership(replicas, f"dns {self._name}", empty_because=empty), ttl_s


class Target(NamedTuple):
    """One SRV record."""

    priority: int
    weight: int
    port: int
    name: dns.name.Name


class SrvDiscovery(_Refreshed):
    """Every SRV record is a replica; its identity is the target's name and port, whatever its address."""

    config_type = SrvConfig

    def __init__(self, config: SrvConfig, rng: Random) -> None:
        super().__init__(config, rng)
        self._name = config.name
        self._verified = _without_underscores(config.name)
        self._last: dict[dns.name.Name, Addresses] = {}

    async def _look_up(self, resolver: Resolver) -> tuple[Membership, float | None]:
        found = await resolver.ask(self._name, "SRV")
        # A target of "." says that the service is not there (RFC 2782).
        targets = (
            [] if found.answer is None else [t for t in _targets(found.answer) if t.name != dns.name.root]
        )
        hosts = Hosts(resolver, self._last)
        if found.answer is not None:
            hosts.take_glue(found.answer)
        await hosts.look_up({target.name for target in targets})
        self._last = hosts.addresses
        remarks = list(hosts.remarks)
        replicas = tuple(self._replicas(targets, hosts.addresses, remarks))
        if targets and not replicas:
            raise DiscoveryError(f"no target of {self._name} can be used: {'; '.join(remarks[:3])}")
        empty = f"{self._name} has no SRV records"
        ttl_s = None if found.ttl_s is None else min([found.ttl_s, *hosts.ttls_s])
        return Membership(replicas, f"srv {self._name}", tuple(remarks), empty), ttl_s

    def _replicas(
        self, targets: list[Target], hosts: dict[dns.name.Name, Addresses], remarks: list[str]
    ) -> Iterator[Replica]:
        for target in sorted(targets):
            addresses = hosts.get(target.name, ())
            name = target.name.to_text(omit_final_dot=True).lower()
            for address in addresses:
                id_ = f"{name}:{target.port}" + (f"/{address}" if len(addresses) > 1 else "")
                weight = max(_LEAST_WEIGHT, float(target.weight))
                try:
                    yield self._replica(
                        address,
                        target.port,
                        self._verified,
                        identity=id_,
                        weight=weight,
                        priority=target.priority,
                    )
                except ConfigError as error:
                    remarks.append(f"{id_}: left out: {error}")


def _targets(answer: dns.resolver.Answer) -> Iterator[Target]:
    for record in answer:
        yield Target(record.priority, record.weight, record.port, record.target)


def _without_underscores(name: str) -> str:
    """``_llm._tcp.example.com`` as ``example.com``: the name that the user asked a certificate of (RFC 6125)."""
    labels = name.rstrip(".").split(".")
    while len(labels) > 1 and labels[0].startswith("_"):
        labels.pop(0)
    return ".".join(labels)
