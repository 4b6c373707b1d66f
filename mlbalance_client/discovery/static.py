"""A fixed list of replicas."""

from __future__ import annotations

from collections.abc import Callable

from mlbalance_client.config import StaticConfig

from .base import Membership, make_replica


class StaticDiscovery:
    """Knows its replicas at once and never learns of others."""

    config_type = StaticConfig

    def __init__(self, config: StaticConfig) -> None:
        self._membership = Membership(
            tuple(
                make_replica(
                    replica.url,
                    id=replica.id,
                    weight=replica.weight,
                    zone=replica.zone,
                    labels=replica.labels,
                )
                for replica in config.replicas
            ),
            "static",
        )

    def initial(self) -> Membership:
        """The list."""
        return self._membership

    async def run(self, publish: Callable[[Membership], None]) -> None:
        """Publish the list, once."""
        publish(self._membership)
