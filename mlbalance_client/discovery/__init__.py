"""Who is there: sources of replicas, each an adapter of one Protocol."""

from __future__ import annotations

from importlib import import_module
from random import Random
from typing import cast

from mlbalance_client.config import DiscoveryConfig, StaticConfig, kinds
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.errors import ConfigError

from .base import Discovery, Publish, make_replica, replica_of
from .static import StaticDiscovery

__all__ = ["Discovery", "Membership", "Publish", "create", "make_replica", "replica_of"]

# Imported when first used: each needs libraries that the others do not.
_SOURCES = {
    "file": "file:FileDiscovery",
    "srv": "dns:SrvDiscovery",
    "dns": "dns:DnsDiscovery",
    "consul": "consul:ConsulDiscovery",
    "k8s": "k8s:K8sDiscovery",
}


def create(config: DiscoveryConfig, rng: Random) -> Discovery:
    """The source that a configuration describes; ``rng`` spreads its refreshes. Raises ConfigError.

    It does so if the kind, or a library that the kind needs, is not installed.
    """
    if isinstance(config, StaticConfig):
        return StaticDiscovery(config)
    if config.kind not in _SOURCES:
        return cast(Discovery, kinds.load(config.kind)(config))
    module, _, name = _SOURCES[config.kind].partition(":")
    try:
        source = getattr(import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"discovery kind {config.kind!r} needs dnspython: install mlbalance-client with the extra [dns]"
        ) from error
    return cast(Discovery, source(config, rng))
