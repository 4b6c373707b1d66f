"""Replicas by Kubernetes' EndpointSlices."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from mlbalance_client.errors import ConfigError

from .base import BearerToken
from .discovery import Name
from .registry import AddressedConfig, Seconds
from .urls import TargetURL, replica_url

_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_Dns = Annotated[Name, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$")]


def _server(text: str) -> str:
    return str(replica_url(text))


class K8sConfig(AddressedConfig):
    """A service's EndpointSlices, by list and watch."""

    kind: Literal["k8s"] = Field(default="k8s", description="EndpointSlices of a service in Kubernetes.")
    namespace: _Dns = Field(description="The service's namespace.")
    service: _Dns = Field(description="The service's name.")
    port: Name | None = Field(
        default=None,
        description="Name or number of the port as the slices have it (the pods' port). Unset: the only one.",
    )
    address: Annotated[str, AfterValidator(_server)] | None = Field(
        default=None,
        description="The API server, `https://host:port`. Unset: the one that the pod's environment names.",
    )
    token: BearerToken | None = Field(default=None, description="Bearer token. Unset: `token_file`.")
    token_file: str = Field(
        default=f"{_ACCOUNT}/token",
        description="Read before every request, for Kubernetes renews it. Empty: no token, as through `kubectl proxy`.",
    )
    ca_file: str = Field(
        default=f"{_ACCOUNT}/ca.crt", description="Authority for the API server's certificate, PEM."
    )
    watch_s: Seconds = Field(
        default=300.0,
        ge=1,
        le=3_600,
        description="After so long the API server ends a watch and it is taken up anew.",
    )

    @classmethod
    def from_url(cls, url: TargetURL) -> dict[str, Any]:
        """``k8s[+https]://namespace/service[:port][?key=value]``."""
        service, _, port = url.path.strip("/").partition(":")
        if not url.authority or not service or "/" in service:
            raise ConfigError(f"target {url.text}: write k8s://namespace/service:port")
        keys: dict[str, Any] = {"kind": "k8s", "namespace": url.authority, "service": service, **url.tls_key}
        return cls.from_query(url, keys | ({"port": port} if port else {}), model="models")
