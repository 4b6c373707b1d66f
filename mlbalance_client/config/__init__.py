"""Settings with unit, default, bounds and source; where they come from; errors that name the way out."""

from __future__ import annotations

from .admission import AdmissionConfig
from .balancer import (
    BalancerConfig,
)
from .base import InvalidConfig, Problem, Section
from .consul import ConsulConfig
from .discovery import DiscoveryConfig, ReplicaConfig, StaticConfig
from .dns import DnsConfig, ResolverConfig, SrvConfig
from .file import FileConfig, ReplicaFile
from .health_checks import HealthChecksConfig
from .hedging import HedgingConfig
from .http import HttpConfig
from .k8s import K8sConfig
from .kinds import discovery_kinds
from .load_reports import LoadReportsConfig
from .outlier_detection import OutlierDetectionConfig, SlowStartConfig
from .picking import PickingConfig
from .registry import AddressedConfig, RegistryConfig
from .retries import RetriesConfig
from .urls import ReplicaURL, TargetURL, replica_url

__all__ = [
    "AddressedConfig",
    "AdmissionConfig",
    "BalancerConfig",
    "ConsulConfig",
    "DiscoveryConfig",
    "DnsConfig",
    "FileConfig",
    "HealthChecksConfig",
    "HedgingConfig",
    "HttpConfig",
    "InvalidConfig",
    "K8sConfig",
    "LoadReportsConfig",
    "OutlierDetectionConfig",
    "PickingConfig",
    "Problem",
    "RegistryConfig",
    "ReplicaConfig",
    "ReplicaFile",
    "ReplicaURL",
    "ResolverConfig",
    "RetriesConfig",
    "Section",
    "SlowStartConfig",
    "SrvConfig",
    "StaticConfig",
    "TargetURL",
    "discovery_kinds",
    "replica_url",
]
