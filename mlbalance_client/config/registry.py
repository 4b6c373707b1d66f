"""What all sources that change have in common: how far they are trusted, and how their replicas are reached."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Annotated

from pydantic import Field

from .describe import Unit
from .discovery import DiscoveryConfig, Name, Replicas

Seconds = Annotated[float, Unit("s")]


class RegistryConfig(DiscoveryConfig):
    """A source whose word may change, fail or be wrong. ``GuardSettings`` of the core reads these keys."""

    start_timeout_s: Seconds = Field(
        default=10.0,
        gt=0,
        le=3_600,
        description="How long the first calls wait for the first usable list. After that they go to `fallback`, "
        "or raise `NoReplicas` with what was found.",
    )
    fallback: Replicas = Field(
        default=(),
        description="Replicas to use while no list with a usable one is in force: at the start after "
        "`start_timeout_s`, later when the last good list is given up; URLs or tables.",
    )
    max_stale_s: Seconds | None = Field(
        default=None,
        gt=0,
        description="How long the last good list is used while the source fails. Unset: for ever, as in gRPC; "
        "replicas that have really gone fail by themselves.",
    )
    empty_hold_s: Seconds = Field(
        default=300.0,
        ge=0,
        le=86_400,
        description="How long the last good list is used while the source names no usable replica. An empty answer "
        "is more often a revoked token or a restarting registry than an empty fleet.",
    )
    shrink_share: Annotated[float, Unit("share")] = Field(
        default=0.5,
        ge=0,
        le=1,
        description="If a smaller share than this of the usable replicas is left at once, those that vanished are "
        "kept for `shrink_hold_s`. 0: believed at once.",
    )
    shrink_hold_s: Seconds = Field(
        default=30.0,
        ge=0,
        le=86_400,
        description="How long replicas are kept that vanished in a sudden shrinkage. Those that the answer names, "
        "as draining too, follow it at once.",
    )
    flap_departures: int = Field(
        default=3,
        ge=1,
        le=100,
        description="A replica that left (or failed its registry's checks) so often within `flap_window_s` flaps.",
    )
    flap_window_s: Seconds = Field(default=60.0, gt=0, le=86_400, description="See `flap_departures`.")
    flap_hold_s: Seconds = Field(
        default=10.0,
        ge=0,
        le=86_400,
        description="How long a flapping replica must stay before it gets calls again; unless too many flap.",
    )
    allowed_networks: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(),
        description="Replicas elsewhere are left out and reported, and those given by name, which may lead anywhere. "
        "Of `fallback` that would be a mistake. Empty: all are allowed.",
    )
    retry_max_s: Seconds = Field(
        default=10.0,
        gt=0,
        le=3_600,
        description="The longest wait between attempts to reach the source; waits double from 0.1 s, with jitter.",
    )


class AddressedConfig(RegistryConfig):
    """A source that knows addresses and not URLs."""

    tls: bool = Field(default=False, description="Whether the replicas speak TLS; in a URL: `+https`.")
    tls_server_name: Name | None = Field(
        default=None,
        description="The name that the replicas' certificates must be for. Unset: what is asked for (`dns`, and `srv` "
        "without the labels that begin with an underscore), else the address.",
    )
    models: tuple[Name, ...] = Field(
        default=(),
        description="What replicas serve of which the source does not say it by a label `model` or `models`. Empty: "
        "any model. In a URL: `model=`.",
    )
