"""A fixed list of replicas."""

from __future__ import annotations

from mlbalance_client.config import StaticConfig
from mlbalance_client.core.members.membership import Membership

from .base import Publish, replica_of


class StaticDiscovery:
    """Knows its replicas at once and never learns of others."""

    config_type = StaticConfig

    def __init__(self, config: StaticConfig) -> None:
        self._membership = Membership(tuple(map(replica_of, config.replicas)), "static")

    def initial(self) -> Membership:
        """The list."""
        return self._membership

    async def run(self, publish: Publish) -> None:
        """Publish the list, once."""
        publish(self._membership)
