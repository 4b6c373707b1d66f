"""Where the replicas are. Each kind of discovery has a section of its own, told apart by ``kind``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from mlbalance_client.errors import ConfigError

from .base import Section, nearest
from .urls import TargetURL, replica_url

_Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]


class DiscoveryConfig(Section):
    """Base of every kind's section; plugins derive theirs and pin ``kind`` with a Literal."""

    kind: str = Field(description="How replicas are found.")

    @classmethod
    def from_url(cls, url: TargetURL) -> dict[str, Any]:
        """The keys that a discovery URL of this kind stands for. Raises ConfigError."""
        raise ConfigError(f"target {url.text}: this kind has no URL form; use a [discovery] table")


class ReplicaConfig(Section):
    """One replica: a URL, or a table when there is more to say."""

    url: str = Field(
        description="`http(s)://host[:port][/prefix]`; the prefix goes before every request's path. No "
        "credentials, query or fragment."
    )
    id: _Name | None = Field(
        default=None,
        description="Stable name, hashed for the homes of prefixes: keep it when the address changes. "
        "Unset: host:port and the prefix.",
    )
    weight: float = Field(
        default=1.0,
        gt=0,
        le=1_000_000,
        description="Share of the keys and first guess of speed, relative to the others.",
    )
    zone: _Name | None = Field(default=None, description="Where it stands; compared with `picking.zone`.")
    labels: dict[str, str] = Field(
        default_factory=dict,
        description="Free. `model` or `models` (comma separated): what it serves; without them, any model.",
    )

    @field_validator("url")
    @classmethod
    def _normalised(cls, url: str) -> str:
        return str(replica_url(url))

    @property
    def identity(self) -> str:
        """The id, given or derived from the URL."""
        return self.id or replica_url(self.url).id


def _tables(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [{"url": item} if isinstance(item, str) else item for item in value]
    return value


class StaticConfig(DiscoveryConfig):
    """A fixed list of replicas."""

    kind: Literal["static"] = Field(default="static", description="A fixed list.")
    replicas: Annotated[tuple[ReplicaConfig, ...], BeforeValidator(_tables)] = Field(
        min_length=1, description="The replicas, each a URL or a table with the keys of a replica."
    )

    @field_validator("replicas")
    @classmethod
    def _distinct(cls, replicas: tuple[ReplicaConfig, ...]) -> tuple[ReplicaConfig, ...]:
        first: dict[str, int] = {}
        for index, replica in enumerate(replicas):
            if (twin := first.setdefault(replica.identity, index)) != index:
                raise ValueError(
                    f"[{twin}] {replicas[twin].url} and [{index}] {replica.url} have the same id "
                    f"{replica.identity!r}; give them different ids"
                )
        return replicas

    @classmethod
    def from_url(cls, url: TargetURL) -> dict[str, Any]:
        """``static[+https]://host:port,host:port[/prefix][?model=a,b]``; prefix and models hold for all."""
        for key in url.query:
            if key != "model":
                raise ConfigError(
                    f"target {url.text}: unknown parameter {key[:40]!r}; {nearest(key, ['model'])}"
                )
        labels = {"models": ",".join(url.query["model"])} if url.query else {}
        scheme = "https" if url.tls else "http"
        return {
            "kind": "static",
            "replicas": [
                {"url": f"{scheme}://{host.strip()}{url.path}", "labels": labels}
                for host in url.authority.split(",")
            ],
        }
