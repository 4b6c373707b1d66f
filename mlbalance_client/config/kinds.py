"""Kinds of discovery by name: the built-in ones, and those that installed packages bring as entry points.

An entry point in the group ``mlbalance_client.discovery`` has the kind as its name and loads to a class with
an attribute ``config_type`` (a DiscoveryConfig); the class is called with such a configuration.
"""

from __future__ import annotations

from typing import Any

from .consul import ConsulConfig
from .discovery import DiscoveryConfig, StaticConfig
from .dns import DnsConfig, SrvConfig
from .file import FileConfig
from .k8s import K8sConfig
from .plugins import Kinds

GROUP = "mlbalance_client.discovery"
BUILT_IN: dict[str, type[DiscoveryConfig]] = {
    "static": StaticConfig,
    "file": FileConfig,
    "srv": SrvConfig,
    "dns": DnsConfig,
    "consul": ConsulConfig,
    "k8s": K8sConfig,
}
DISCOVERY = Kinds(GROUP, "discovery", DiscoveryConfig, BUILT_IN)


def discovery_kinds() -> list[str]:
    """The kinds that can be used here and now."""
    return DISCOVERY.names()


def config_type(kind: str) -> type[DiscoveryConfig]:
    """The configuration of a kind. Raises ConfigError if it is not installed or broken."""
    return DISCOVERY.config_type(kind)


def load(kind: str) -> Any:
    """The class behind an entry point. Raises ConfigError if there is none or its import fails."""
    return DISCOVERY.load(kind)
