"""Kinds of discovery and of load reports by name: built-in ones, and those that installed packages bring."""

from __future__ import annotations

from typing import Any

from .discovery import DiscoveryConfig, StaticConfig
from .load_reports import BUILT_IN_REPORTS, LoadReportsConfig
from .plugins import Kinds

GROUP = "mlbalance_client.discovery"
_BUILT_IN: dict[str, type[DiscoveryConfig]] = {"static": StaticConfig}


_DISCOVERY = Kinds(GROUP, "discovery", DiscoveryConfig, _BUILT_IN)
report_kinds = Kinds(
    "mlbalance_client.load_reports",
    "load report",
    LoadReportsConfig,
    dict.fromkeys(BUILT_IN_REPORTS, LoadReportsConfig),
)


def discovery_kinds() -> list[str]:
    """The kinds that can be used here and now."""
    return _DISCOVERY.names()


def config_type(kind: str) -> type[DiscoveryConfig]:
    """The configuration of a kind. Raises ConfigError if it is not installed or broken."""
    return _DISCOVERY.config_type(kind)


def load(kind: str) -> Any:
    """The class behind an entry point. Raises ConfigError if there is none or its import fails."""
    return _DISCOVERY.load(kind)
