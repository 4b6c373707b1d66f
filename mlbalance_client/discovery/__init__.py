"""Who is there: sources of replicas, each an adapter of one Protocol."""

from __future__ import annotations

from typing import cast

from mlbalance_client.config import DiscoveryConfig, StaticConfig, kinds

from .base import Discovery, Membership, make_replica
from .static import StaticDiscovery

__all__ = ["Discovery", "Membership", "create", "make_replica"]


def create(config: DiscoveryConfig) -> Discovery:
    """The source that a configuration describes. Raises ConfigError if its kind is not installed."""
    if isinstance(config, StaticConfig):
        return StaticDiscovery(config)
    return cast(Discovery, kinds.load(config.kind)(config))
