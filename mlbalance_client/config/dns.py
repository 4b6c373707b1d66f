"""Replicas by DNS: SRV records, or the addresses of one name."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from mlbalance_client.errors import ConfigError

from .discovery import Name
from .registry import AddressedConfig, Seconds
from .urls import TargetURL, replica_url

_LABEL = re.compile(r"[\w-]{1,63}", re.ASCII)


def _domain(name: str) -> str:
    if not all(map(_LABEL.fullmatch, name.removesuffix(".").split("."))):
        raise ValueError(
            "must be a domain name: letters, digits, - and _ between dots, at most 63 in a row; others as xn--"
        )
    return name


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError("must be an IP address: a name server cannot be looked up") from None


DomainName = Annotated[Name, AfterValidator(_domain)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class ResolverConfig(AddressedConfig):
    """How names are looked up."""

    nameservers: tuple[Annotated[Name, AfterValidator(_address)], ...] = Field(
        default=(), description="IP addresses of name servers, tried in order. Empty: those of the system."
    )
    nameserver_port: Port = Field(default=53, description="Their port, where `nameservers` are given.")
    search_domains: tuple[DomainName, ...] | None = Field(
        default=None,
        description="Appended to a name that does not end in a dot, in order, before the name alone is tried. Unset: "
        "as the system's resolv.conf says, none if `nameservers` are given.",
    )
    families: Literal["v4_first", "v6_first", "v4_only", "v6_only"] = Field(
        default="v4_first",
        description="Which addresses of a host are used. The second family is asked for only where the first has "
        "none: a host with both is one replica.",
    )
    lookup_timeout_s: Seconds = Field(
        default=5.0, gt=0, le=300, description="For one question, over all name servers and retries."
    )
    min_refresh_s: Seconds = Field(
        default=1.0,
        gt=0,
        le=86_400,
        description="Names are looked up when their TTL has passed, up to 5 % later by chance, not sooner than this.",
    )
    max_refresh_s: Seconds = Field(
        default=300.0,
        gt=0,
        le=86_400,
        description="Not later than this, whatever the TTL. After an empty answer it is 5 s.",
    )


class SrvConfig(ResolverConfig):
    """SRV records: host, port, weight and priority of each replica."""

    kind: Literal["srv"] = Field(default="srv", description="DNS SRV; needs the extra `dns`.")
    name: DomainName = Field(description="Such as `_llm._tcp.example.com`.")

    @classmethod
    def from_url(cls, url: TargetURL) -> dict[str, Any]:
        """``srv[+https]://_service._proto.name[?key=value]``."""
        _no_path(url)
        keys = {"kind": "srv", "name": url.authority, **url.tls_key}
        return cls.from_query(url, keys, model="models")


class DnsConfig(ResolverConfig):
    """Every address of one name is a replica, as of a headless service."""

    kind: Literal["dns"] = Field(default="dns", description="DNS A and AAAA; needs the extra `dns`.")
    name: DomainName = Field(description="Such as `llm.example.com`.")
    port: Port = Field(description="The replicas' port.")

    @classmethod
    def from_url(cls, url: TargetURL) -> dict[str, Any]:
        """``dns[+https]://name:port[?key=value]``; without a port 80, with TLS 443."""
        _no_path(url)
        parsed = replica_url(f"{'https' if url.tls else 'http'}://{url.authority}")
        keys = {"kind": "dns", "name": parsed.host, **url.tls_key}
        if ":" in url.authority:
            keys["port"] = parsed.port
        return {"port": parsed.port, **cls.from_query(url, keys, model="models")}


def _no_path(url: TargetURL) -> None:
    if url.path.strip("/"):
        raise ConfigError(f"target {url.text}: this kind of discovery has no path")
