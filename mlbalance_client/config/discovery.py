"""Where the replicas are: what all kinds of discovery share, and the fixed list."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from mlbalance_client.errors import ConfigError

from .base import Section, given, nearest
from .describe import is_secret, is_structured
from .urls import TargetURL, replica_url

Name = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]


class DiscoveryConfig(Section):
    """Base of every kind's section; plugins derive theirs and pin ``kind`` with a Literal."""

    kind: str = Field(description="How replicas are found.")

    @classmethod
    def from_url(cls, url: TargetURL) -> dict[str, Any]:
        """The keys that a discovery URL of this kind stands for. Raises ConfigError."""
        raise ConfigError(f"target {url.text}: this kind has no URL form; use a [discovery] table")

    @classmethod
    def from_query(
        cls, url: TargetURL, said: Mapping[str, Any] | None = None, /, **aliases: str
    ) -> dict[str, Any]:
        """The keys that the query of a discovery URL sets: any but secrets; lists by repeating the parameter.

        ``said``: the keys that the rest of the URL has set already, which are returned too; ``aliases``: other names of
        keys. Raises ConfigError for parameters that are none or given twice.
        """
        found: dict[str, Any] = dict(said or {})
        for parameter, values in url.query.items():
            key = aliases.get(parameter, parameter)
            field = cls.model_fields.get(key)
            if field is None or key == "kind":
                known = {*cls.model_fields, *aliases} - {"kind"}
                raise ConfigError(
                    f"target {url.text}: unknown parameter {parameter[:40]!r}; {nearest(parameter, known)}"
                )
            if is_secret(field):
                raise ConfigError(
                    f"target {url.text}: {key} is a secret and not for URLs; set MLBALANCE_DISCOVERY__{key.upper()}"
                )
            if not is_structured(field) and len(values) > 1:
                raise ConfigError(f"target {url.text}: {parameter} is given {len(values)} times")
            if key in found:
                raise ConfigError(f"target {url.text}: {parameter} is said twice, before the query too")
            found[key] = values if is_structured(field) else values[0]
        return found


class ReplicaConfig(Section):
    """One replica: a URL, or a table when there is more to say."""

    url: str = Field(
        description="`http(s)://host[:port][/prefix]`; the prefix goes before every request's path, those of load "
        "reports and checks too: the `/v1` of an API is none, for requests bring it. No credentials, query or fragment."
    )
    id: Name | None = Field(
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
    zone: Name | None = Field(default=None, description="Where it stands; compared with `picking.zone`.")
    priority: int = Field(
        default=0, ge=0, le=65_535, description="Lower first; see `picking.spill_below_share` for the others."
    )
    state: Literal["healthy", "degraded", "out", "draining"] = Field(
        default="healthy", description="Only `healthy` and `degraded` ones get new calls."
    )
    tls_server_name: Name | None = Field(
        default=None,
        description="The name that an https replica's certificate must be for. Unset: the URL's host.",
    )
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


def _table(value: Any) -> Any:
    if isinstance(value, str):
        return {"url": value}
    if not isinstance(value, dict | ReplicaConfig):
        raise ValueError(  # noqa: TRY004 - pydantic tells of no TypeError
            f"given {given(value)}; a replica is a URL, such as 'http://10.0.0.1:8000', or a table with its keys"
        )
    return value


Replicas = tuple[Annotated[ReplicaConfig, BeforeValidator(_table)], ...]


class StaticConfig(DiscoveryConfig):
    """A fixed list of replicas."""

    kind: Literal["static"] = Field(default="static", description="A fixed list.")
    replicas: Replicas = Field(
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
        if url.authority.lower() in ("http:", "https:"):
            raise ConfigError(f"target {url.text}: name hosts without a scheme, static://host:port,host:port")
        labels = {"models": ",".join(url.query["model"])} if url.query else {}
        scheme = "https" if url.tls else "http"
        return {
            "kind": "static",
            "replicas": [
                {"url": f"{scheme}://{host.strip()}{url.path}", "labels": labels}
                for host in url.authority.split(",")
            ],
        }
