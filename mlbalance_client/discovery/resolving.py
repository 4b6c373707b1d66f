"""Questions to name servers, by dnspython, on the event loop that is running."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.message
import dns.name
import dns.rdatatype
import dns.resolver

from mlbalance_client.config import ResolverConfig
from mlbalance_client.errors import DiscoveryError

_EDNS_BYTES = 1232
_ONE_TRY_S = 2.0
_ALWAYS_SEARCH = 128  # more labels than a name can have
_FAMILIES = {
    "v4_first": ("A", "AAAA"),
    "v6_first": ("AAAA", "A"),
    "v4_only": ("A",),
    "v6_only": ("AAAA",),
}


@dataclass(frozen=True, slots=True)
class Found:
    """The records of one answer, none if the name or its records do not exist; ``ttl_s`` is None then."""

    answer: dns.resolver.Answer | None
    ttl_s: float | None


class Resolver:
    """One event loop's. Raises DiscoveryError if the system names no name server."""

    def __init__(self, config: ResolverConfig) -> None:
        own = bool(config.nameservers)
        try:
            self._resolver = dns.asyncresolver.Resolver(configure=not own)
        except (dns.resolver.NoResolverConfiguration, OSError) as error:
            raise DiscoveryError("the system's resolv.conf names no name server; set nameservers") from error
        if own:
            self._resolver.nameservers = list(config.nameservers)
            self._resolver.port = config.nameserver_port
            self._resolver.domain = dns.name.root
            self._resolver.search = []
        if config.search_domains is not None:
            self._resolver.domain = dns.name.root
            self._resolver.search = [dns.name.from_text(domain) for domain in config.search_domains]
            self._resolver.ndots = _ALWAYS_SEARCH
        self._resolver.lifetime = config.lookup_timeout_s
        self._resolver.timeout = min(_ONE_TRY_S, config.lookup_timeout_s)
        self._resolver.use_edns(0, 0, _EDNS_BYTES)
        self.families = _FAMILIES[config.families]
        # Named, for dnspython guesses once and keeps to it in every loop of the process.
        self._backend = dns.asyncbackend.get_backend("trio" if _in_trio() else "asyncio")

    async def ask(self, name: str | dns.name.Name, kind: str) -> Found:
        """One question, over TCP where the answer is cut. Raises DiscoveryError if nobody answers it."""
        try:
            answer = await self._resolver.resolve(
                name, kind, raise_on_no_answer=False, search=True, backend=self._backend
            )
        except dns.resolver.NXDOMAIN:
            return Found(None, None)
        except dns.resolver.LifetimeTimeout as error:
            servers = ", ".join(map(str, self._resolver.nameservers))
            raise DiscoveryError(
                f"{kind} of {name}: no answer within {self._resolver.lifetime:g} s from {servers}"
            ) from error
        except dns.resolver.NoNameservers as error:
            raise DiscoveryError(f"{kind} of {name}: {_said(error)}") from error
        except (dns.exception.DNSException, OSError) as error:
            raise DiscoveryError(f"{kind} of {name}: {error or type(error).__name__}") from error
        if answer.rrset is None:
            return Found(None, None)
        return Found(answer, float(answer.chaining_result.minimum_ttl))

    async def addresses(self, name: str | dns.name.Name) -> tuple[tuple[str, ...], float | None]:
        """Addresses of the first family that has any, and for how long they hold in seconds. Raises DiscoveryError."""
        for family in self.families:
            found = await self.ask(name, family)
            if found.answer is not None:
                return sorted_addresses(record.address for record in found.answer), found.ttl_s
        return (), None


def sorted_addresses(addresses: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the order of numbers, since answers come shuffled."""
    return tuple(
        map(str, sorted({ip_address(address) for address in addresses}, key=lambda a: (a.version, int(a))))
    )


def _said(error: dns.resolver.NoNameservers) -> str:
    """What each name server did, the same text for the same failures; that an answer was cut is no failure."""
    failures = {
        f"{server} answered {str(what) or type(what).__name__}"
        for server, _, _, what, _ in error.kwargs.get("errors", ())
        if not isinstance(what, dns.message.Truncated)
    }
    return "; ".join(sorted(failures)) or "no name server is left"


def _in_trio() -> bool:
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_run())
