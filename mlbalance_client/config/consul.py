"""Replicas by Consul's health API."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from mlbalance_client.errors import ConfigError

from .base import Token
from .discovery import Name
from .registry import AddressedConfig, Seconds
from .urls import ReplicaURL, TargetURL, replica_url

_PORT = re.compile(r":\d*$")


def _agent(text: str) -> str:
    return str(replica_url(text if "://" in text else f"http://{text}"))


def _listed(value: Any) -> Any:
    return value.split(",") if isinstance(value, str) else value


Agents = Annotated[tuple[Annotated[str, AfterValidator(_agent)], ...], BeforeValidator(_listed)]


class ConsulConfig(AddressedConfig):
    """A service in Consul, followed by blocking queries."""

    kind: Literal["consul"] = Field(default="consul", description="A service in Consul.")
    service: Name = Field(description="The service's name.")
    address: Agents = Field(
        default=("http://127.0.0.1:8500",),
        min_length=1,
        description="Agents, asked in turn when one fails: `host:port` or `https://host:port`, several as a list "
        "or with commas. `https` is verified by this host.",
    )
    token: Token | None = Field(
        default=None,
        description="ACL token, sent in a header. Unset: `token_file`, else the variable `CONSUL_HTTP_TOKEN`.",
    )
    token_file: str | None = Field(
        default=None,
        description="File that holds the token, read before every query, so that it can be replaced.",
    )
    ca_file: str | None = Field(
        default=None, description="Authorities for the agents' certificates, PEM. Unset: those of the system."
    )
    cert_file: str | None = Field(default=None, description="Client certificate for the agents, PEM.")
    key_file: str | None = Field(default=None, description="Its key, if not in `cert_file`.")
    tags: tuple[Name, ...] = Field(
        default=(), description="Tags that an instance must have, all of them. URL: `tag=`."
    )
    dc: Name | None = Field(default=None, description="Datacenter. Unset: the agent's.")
    near: Name | None = Field(
        default=None, description="Node to sort by distance from, `_agent` for the agent's; passed on."
    )
    consistency: Literal["default", "stale", "consistent"] = Field(
        default="default", description="`stale` lets any server answer: cheaper, and without a leader too."
    )
    namespace: Name | None = Field(default=None, description="Of Consul Enterprise; passed on.")
    partition: Name | None = Field(default=None, description="Of Consul Enterprise; passed on.")
    address_of: Literal["service", "node"] = Field(
        default="service",
        description="Whose address a replica has. An instance registered without one has its node's in any case.",
    )
    wait_s: Seconds = Field(
        default=300.0,
        ge=1,
        le=600,
        description="How long one query stays open at the agent, which adds up to a sixteenth. Consul allows 600.",
    )

    @property
    def agents(self) -> tuple[ReplicaURL, ...]:
        """The agents' URLs, parsed."""
        return tuple(map(replica_url, self.address))

    @classmethod
    def from_url(cls, url: TargetURL) -> dict[str, Any]:
        """``consul[+https]://agent:port[,agent:port]/service[?dc=..&tag=..]``; no agent: 127.0.0.1:8500."""
        service = url.path.strip("/")
        if not service or "/" in service:
            raise ConfigError(f"target {url.text}: write consul://agent:8500/service")
        keys: dict[str, Any] = {"kind": "consul", "service": service, **url.tls_key}
        if url.authority:
            keys["address"] = [
                agent if _PORT.search(agent) else f"{agent}:8500" for agent in url.authority.split(",")
            ]
        return cls.from_query(url, keys, tag="tags", model="models")
