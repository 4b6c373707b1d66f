"""What EndpointSlices of one service say: each pod once, its state by its conditions, its zone by its hints.

A slice holds endpoints of one address family; a service may have many slices, and while Kubernetes moves an
endpoint it may be in two of them (API reference, EndpointSlice discovery.k8s.io/v1).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from mlbalance_client.config import K8sConfig
from mlbalance_client.core.model import Replica, ReplicaState
from mlbalance_client.errors import ConfigError, DiscoveryError

from .base import address_url, make_replica

_ZONE = "topology.kubernetes.io/zone"
_FAMILIES = {"IPv4": 0, "IPv6": 1, "FQDN": 2}


class _Metadata(BaseModel):
    name: str
    resourceVersion: str = ""


class _Conditions(BaseModel):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class _ForZone(BaseModel):
    name: str


class _Hints(BaseModel):
    forZones: list[_ForZone] | None = None


class _Target(BaseModel):
    kind: str = ""
    name: str = ""


class _Endpoint(BaseModel):
    addresses: list[str] = Field(min_length=1)
    conditions: _Conditions | None = None
    hostname: str | None = None
    targetRef: _Target | None = None
    zone: str | None = None
    nodeName: str | None = None
    hints: _Hints | None = None


class _Port(BaseModel):
    name: str | None = None
    port: int | None = None


class Slice(BaseModel):
    """One EndpointSlice, as far as it matters here."""

    metadata: _Metadata
    addressType: str = "IPv4"
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


def slice_of(item: Any) -> Slice:
    """The slice that an object of the API is. Raises DiscoveryError if it is none."""
    try:
        return Slice.model_validate(item)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise DiscoveryError(f"an EndpointSlice cannot be read: {where or 'it is no table'}") from error


def replicas_of(slices: Iterable[Slice], config: K8sConfig) -> tuple[tuple[Replica, ...], tuple[str, ...]]:
    """The replicas, and what was left out and why."""
    found: dict[str, Replica] = {}
    remarks: list[str] = []
    for each in sorted(slices, key=lambda s: (_FAMILIES.get(s.addressType, 3), s.metadata.name)):
        port = _port(each.ports or [], config.port)
        if port is None:
            if each.endpoints:
                known = ", ".join(f"{p.name or ''}:{p.port}" for p in each.ports or []) or "none"
                remarks.append(
                    f"slice {each.metadata.name} is left out: it has not the port asked for; ports: {known}"
                )
            continue
        for endpoint in each.endpoints or []:
            try:
                replica = _replica(endpoint, port, config)
            except ConfigError as error:
                remarks.append(f"slice {each.metadata.name}: an endpoint is left out: {error}")
                continue
            twin = found.get(replica.id)
            if twin is None or (replica.usable and not twin.usable):
                found[replica.id] = replica
    return tuple(found[id_] for id_ in sorted(found)), tuple(remarks)


def _replica(endpoint: _Endpoint, port: int, config: K8sConfig) -> Replica:
    address = endpoint.addresses[0]  # the others are the same endpoint's
    target = endpoint.targetRef
    state, because = _state(endpoint.conditions or _Conditions())
    hinted = [zone.name for zone in (endpoint.hints.forZones or [])] if endpoint.hints else []
    labels = {_ZONE: endpoint.zone} if endpoint.zone else {}
    if endpoint.nodeName:
        labels["kubernetes.io/hostname"] = endpoint.nodeName
    return make_replica(
        address_url(address, port, tls=config.tls),
        id=(target.name if target else "") or endpoint.hostname or None,
        zone=hinted[0] if hinted else endpoint.zone,
        labels=labels,
        models=config.models,
        state=state,
        because=because,
        tls_name=config.tls_server_name if config.tls else None,
    )


def _state(conditions: _Conditions) -> tuple[ReplicaState, str]:
    """Unset: ready means yes, serving as ready, terminating means no."""
    ready = conditions.ready is not False
    serving = ready if conditions.serving is None else conditions.serving
    if conditions.terminating:
        if serving:
            return ReplicaState.DRAINING, "terminating"
        return ReplicaState.OUT, "terminating, no longer serving"
    return (ReplicaState.HEALTHY, "") if ready else (ReplicaState.OUT, "not ready")


def _port(ports: list[_Port], wanted: str | None) -> int | None:
    """By name or number; with none asked for, the only one."""
    if wanted is None:
        return ports[0].port if len(ports) == 1 else None
    return next((p.port for p in ports if wanted in (p.name, str(p.port))), None)
