"""Settings with unit, default, bounds and source; where they come from; errors that name the way out."""

from __future__ import annotations

from .balancer import (
    AdmissionConfig,
    BalancerConfig,
    HealthChecksConfig,
    HedgingConfig,
    OutlierDetectionConfig,
    RetriesConfig,
    SlowStartConfig,
)
from .base import InvalidConfig, Problem, Section
from .discovery import DiscoveryConfig, ReplicaConfig, StaticConfig
from .http import HttpConfig
from .kinds import discovery_kinds
from .load_reports import LoadReportsConfig
from .picking import PickingConfig
from .urls import ReplicaURL, TargetURL, replica_url

__all__ = [
    "AdmissionConfig",
    "BalancerConfig",
    "DiscoveryConfig",
    "HealthChecksConfig",
    "HedgingConfig",
    "HttpConfig",
    "InvalidConfig",
    "LoadReportsConfig",
    "OutlierDetectionConfig",
    "PickingConfig",
    "Problem",
    "ReplicaConfig",
    "ReplicaURL",
    "RetriesConfig",
    "Section",
    "SlowStartConfig",
    "StaticConfig",
    "TargetURL",
    "discovery_kinds",
    "replica_url",
]
