"""How long calls may wait for room, and in which order they go."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Section
from .describe import Unit


class AdmissionConfig(Section):
    """Waiting for room: calls wait in the client, in order, when all replicas have enough to do."""

    engine_queue_s: Annotated[float, Unit("s")] = Field(
        default=3.0,
        gt=0,
        le=3_600,
        description="A replica has room until so much prefill stands there, where it grants none. "
        "What stands there is served as it came, so that little of it lets priorities rule; too little "
        "would leave a replica idle between reports. For a minute after a call with a priority above 0, ordinary "
        "calls leave four fifths of it.",
    )
    queue_max_calls: int = Field(
        default=4_096,
        ge=0,
        le=1_000_000,
        description="How many calls of this client may wait. When it is full the call that is last in order gets "
        "NoCapacity. 0: none waits.",
    )
    queue_timeout_s: Annotated[float, Unit("s")] = Field(
        default=60.0,
        gt=0,
        le=86_400,
        description="How long a call may wait, then QueueTimeout; one that would have to wait longer by the pace of "
        "those before it gets NoCapacity at once. 60 serves batches; where people wait, take what they "
        "wait for, such as 5.",
    )
    ageing_s: Annotated[float, Unit("s")] = Field(
        default=20.0,
        gt=0,
        le=86_400,
        description="A waiting call gains one step of priority in so many seconds: priorities further apart than "
        "`queue_timeout_s` / `ageing_s` are never overtaken. Into room that is kept for priorities above 0 none ages.",
    )
    tenant_weights: dict[str, Annotated[float, Field(gt=0, le=1_000_000)]] = Field(
        default={},
        description="Tenants who wait share the room by these weights, in tokens, within a priority; who is not "
        "named here weighs 1, and so do all calls without a tenant together.",
    )
