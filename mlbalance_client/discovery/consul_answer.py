"""What an answer of Consul's health API says: instances, their state by their checks, their weights and labels."""

from __future__ import annotations

from collections import Counter
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from mlbalance_client.config import ConsulConfig
from mlbalance_client.core.model import Replica, ReplicaState
from mlbalance_client.errors import ConfigError, DiscoveryError

from .base import address_url, make_replica

_NODE_MAINTENANCE = "_node_maintenance"
_SERVICE_MAINTENANCE = "_service_maintenance"
_MOST_WEIGHT = 1_000_000
_STATES = {
    "passing": ReplicaState.HEALTHY,
    "warning": ReplicaState.DEGRADED,
    "critical": ReplicaState.OUT,
}
_WORST_FIRST = (ReplicaState.DRAINING, ReplicaState.OUT, ReplicaState.DEGRADED)


class _Node(BaseModel):
    Node: str = ""
    Address: str = ""
    Meta: dict[str, str] | None = None


class _Weights(BaseModel):
    Passing: int = Field(default=1, le=_MOST_WEIGHT)
    Warning: int = Field(default=1, le=_MOST_WEIGHT)


class _Service(BaseModel):
    ID: str
    Service: str = ""
    Address: str = ""
    Port: int = 0
    Tags: list[str] | None = None
    Meta: dict[str, str] | None = None
    Weights: _Weights | None = None


class _Check(BaseModel):
    CheckID: str = ""
    Name: str = ""
    Status: str = "critical"
    Notes: str = ""


class _Entry(BaseModel):
    Node: _Node = Field(default_factory=_Node)
    Service: _Service
    Checks: list[_Check] | None = None

    @property
    def identity(self) -> str:
        """The instance's id; of those that nobody named, where Consul takes the service's name, with their node."""
        service = self.Service
        return self.qualified if service.Service == service.ID else service.ID

    @property
    def qualified(self) -> str:
        """Ids are unique within a node only."""
        return f"{self.Node.Node}/{self.Service.ID}"


def instances(payload: Any, config: ConsulConfig) -> tuple[tuple[Replica, ...], list[str]]:
    """The replicas, and what was left out and why. Raises DiscoveryError if it is no list."""
    if not isinstance(payload, list):
        raise DiscoveryError("the answer is not a list of instances")
    entries: list[_Entry] = []
    remarks: list[str] = []
    for number, item in enumerate(payload):
        try:
            entries.append(_Entry.model_validate(item))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            remarks.append(f"instance {number} cannot be read: {where or 'it is no table'}")
    times = Counter(entry.identity for entry in entries)
    replicas = []
    for entry in entries:
        id_ = entry.identity if times[entry.identity] == 1 else entry.qualified
        try:
            replicas.append(_replica(entry, id_, config))
        except ConfigError as error:
            remarks.append(f"instance {id_} is left out: {error}")
    return tuple(sorted(replicas, key=lambda replica: replica.id)), remarks


def _replica(entry: _Entry, id_: str, config: ConsulConfig) -> Replica:
    node, service = entry.Node, entry.Service
    state, because = _state(entry.Checks or [])
    weights = service.Weights or _Weights()
    weight = weights.Warning if state is ReplicaState.DEGRADED else weights.Passing
    if weight <= 0 and state in (ReplicaState.HEALTHY, ReplicaState.DEGRADED):
        state, because = ReplicaState.OUT, f"its weight is {weight}" + (f" ({because})" if because else "")
    address = service.Address if service.Address and config.address_of == "service" else node.Address
    service_meta, node_meta = service.Meta or {}, node.Meta or {}
    return make_replica(
        address_url(address, service.Port, tls=config.tls),
        id=id_,
        weight=max(1.0, float(weight)),
        zone=service_meta.get("zone") or node_meta.get("zone"),
        labels={**_labels(service.Tags or []), **service_meta},
        models=config.models,
        state=state,
        because=because,
        tls_name=config.tls_server_name if config.tls else None,
    )


def _state(checks: list[_Check]) -> tuple[ReplicaState, str]:
    """The worst of the instance's and its node's checks; maintenance is one that Consul adds."""
    found: dict[ReplicaState, list[str]] = {}
    for check in checks:
        if check.CheckID == _NODE_MAINTENANCE or check.CheckID.startswith(f"{_SERVICE_MAINTENANCE}:"):
            found.setdefault(ReplicaState.DRAINING, []).append(f"maintenance: {check.Notes}".rstrip(": "))
        else:
            state = _STATES.get(check.Status, ReplicaState.OUT)
            found.setdefault(state, []).append(f"{check.Name or check.CheckID}: {check.Status}")
    for state in _WORST_FIRST:
        if state in found:
            return state, ", ".join(sorted(found[state])[:3])
    return ReplicaState.HEALTHY, ""


def _labels(tags: list[str]) -> dict[str, str]:
    """``key=value`` is a label, any other tag one without a value."""
    return {key: value for key, _, value in (tag.partition("=") for tag in tags) if key}
