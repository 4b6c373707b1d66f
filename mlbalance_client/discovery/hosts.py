"""The addresses of SRV records' targets."""

from __future__ import annotations

import anyio
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.resolver

from mlbalance_client.errors import DiscoveryError

from .resolving import Resolver, sorted_addresses

_AT_ONCE = 16

Addresses = tuple[str, ...]


class Hosts:
    """The addresses of SRV targets: from the same answer where it brings them, else asked for, else the last known."""

    def __init__(self, resolver: Resolver, last: dict[dns.name.Name, Addresses]) -> None:
        self._resolver = resolver
        self._last = last
        self.addresses: dict[dns.name.Name, Addresses] = {}
        self.ttls_s: list[float] = []
        self.remarks: list[str] = []

    def take_glue(self, answer: dns.resolver.Answer) -> None:
        """Take the additional section's addresses, of the first family only: it may lack the others."""
        first = dns.rdatatype.from_text(self._resolver.families[0])
        for rrset in answer.response.additional:
            if rrset.rdtype == first and rrset.rdclass == dns.rdataclass.IN:
                self.addresses[rrset.name] = sorted_addresses(record.address for record in rrset)
                self.ttls_s.append(float(rrset.ttl))

    async def look_up(self, names: set[dns.name.Name]) -> None:
        """Ask for those that the answer did not bring."""
        limit = anyio.CapacityLimiter(_AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for name in sorted(names - self.addresses.keys()):
                tasks.start_soon(self._ask, name, limit)
        self.addresses = {name: found for name, found in self.addresses.items() if name in names}
        self.remarks.sort()

    async def _ask(self, name: dns.name.Name, limit: anyio.CapacityLimiter) -> None:
        async with limit:
            try:
                found, ttl_s = await self._resolver.addresses(name)
            except DiscoveryError as error:
                found, ttl_s = self._last.get(name, ()), None
                self.remarks.append(f"{error}: {'its last address is kept' if found else 'left out'}")
            else:
                if not found:
                    self.remarks.append(f"{name} has no address: left out")
        if found:
            self.addresses[name] = found
        if ttl_s is not None:
            self.ttls_s.append(ttl_s)
