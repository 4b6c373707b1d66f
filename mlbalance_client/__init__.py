"""A client-side load balancer for model replicas: sticky by prefix, weighed in tokens, no proxy.

    async with mlb.AsyncClient("static://10.0.0.1:8000,10.0.0.2:8000") as client:
        r = await client.post("/v1/chat/completions", json={...})

Names are loaded when first used, so that parts which need no HTTP client do not import one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .balancer import Balancer, Lease
    from .calls import Call, CallOptions
    from .client import AsyncBalancerTransport, AsyncClient, BalancerTransport, Client
    from .config import BalancerConfig
    from .core.model import Replica, Usage
    from .core.report import CallReport, Explanation, FleetSnapshot
    from .errors import (
        AttemptReport,
        AttemptsExhausted,
        BalancerError,
        ClientClosed,
        ConfigError,
        DeadlineExceeded,
        FailureKind,
        NoCapacity,
        NoReplicas,
        QueueTimeout,
        StreamInterrupted,
    )

__version__ = "0.1.0"

__all__ = [
    "AsyncBalancerTransport",
    "AsyncClient",
    "AttemptReport",
    "AttemptsExhausted",
    "Balancer",
    "BalancerConfig",
    "BalancerError",
    "BalancerTransport",
    "Call",
    "CallOptions",
    "CallReport",
    "Client",
    "ClientClosed",
    "ConfigError",
    "DeadlineExceeded",
    "Explanation",
    "FailureKind",
    "FleetSnapshot",
    "Lease",
    "NoCapacity",
    "NoReplicas",
    "QueueTimeout",
    "Replica",
    "StreamInterrupted",
    "Usage",
]

_HOMES = {
    "balancer": ("Balancer", "Lease"),
    "calls": ("Call", "CallOptions"),
    "client": ("AsyncBalancerTransport", "AsyncClient", "BalancerTransport", "Client"),
    "config": ("BalancerConfig",),
    "core.model": ("Replica", "Usage"),
    "core.report": ("CallReport", "Explanation", "FleetSnapshot"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF.get(name, 'errors')}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
