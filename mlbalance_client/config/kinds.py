"""Kinds of discovery by name: the built-in ones, and those that installed packages bring as entry points.

An entry point in the group ``mlbalance_client.discovery`` has the kind as its name and loads to a class with
an attribute ``config_type`` (a DiscoveryConfig); the class is called with such a configuration.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from mlbalance_client.errors import ConfigError

from .base import nearest
from .consul import ConsulConfig
from .discovery import DiscoveryConfig, StaticConfig
from .dns import DnsConfig, SrvConfig
from .file import FileConfig
from .k8s import K8sConfig

GROUP = "mlbalance_client.discovery"
BUILT_IN: dict[str, type[DiscoveryConfig]] = {
    "static": StaticConfig,
    "file": FileConfig,
    "srv": SrvConfig,
    "dns": DnsConfig,
    "consul": ConsulConfig,
    "k8s": K8sConfig,
}


def discovery_kinds() -> list[str]:
    """The kinds that can be used here and now."""
    return sorted({*BUILT_IN, *(point.name for point in entry_points(group=GROUP))})


def config_type(kind: str) -> type[DiscoveryConfig]:
    """The configuration of a kind. Raises ConfigError if it is not installed or broken."""
    if built_in := BUILT_IN.get(kind):
        return built_in
    found = getattr(load(kind), "config_type", None)
    if not (isinstance(found, type) and issubclass(found, DiscoveryConfig)):
        raise ConfigError(f"discovery kind {kind!r}: its plugin has no config_type that is a DiscoveryConfig")
    return found


def load(kind: str) -> Any:
    """The class behind an entry point. Raises ConfigError if there is none or its import fails."""
    point = _entry_point(kind)
    try:
        return point.load()
    except Exception as error:
        raise ConfigError(
            f"discovery kind {kind!r}: its plugin {point.value!r} cannot be loaded: {error}"
        ) from error


def _entry_point(kind: str) -> EntryPoint:
    for point in entry_points(group=GROUP):
        if point.name == kind:
            return point
    raise ConfigError(f"discovery kind {kind[:40]!r} is not installed; {nearest(kind, discovery_kinds())}")
