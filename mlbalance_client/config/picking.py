"""Which replica gets a call. ``PickingConfig`` fulfils what the core's fleet asks of its settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, SecretStr, field_validator

from .base import Section
from .describe import Unit

# What blake2b takes as a key.
_MOST_SECRET_BYTES = 64
_Depth = Annotated[int, Field(ge=1, le=1_000_000)]


class PickingConfig(Section):
    """How replicas are compared, and what is assumed until answers teach better."""

    policy: Literal["prefix_tokens", "round_robin", "random", "least_requests", "least_tokens"] = Field(
        default="prefix_tokens",
        description="`prefix_tokens`: least estimated seconds, counting what is cached where. The others "
        "know nothing of prefixes; they are there for contrast and for stateless models.",
    )
    miss_weight: Annotated[float, Unit("factor")] = Field(
        default=2.0,
        ge=1,
        le=100,
        description="What a second of uncached prefill weighs against a second of waiting. Above 1, since "
        "a miss delays all who queue behind it; on recorded conversations 1.5 to 3 differ little.",
    )
    decode_weight: Annotated[float, Unit("factor")] = Field(
        default=1.0,
        ge=0,
        le=100,
        description="What a second of outstanding decode weighs against a second of waiting.",
    )
    anchor_depths: Annotated[tuple[_Depth, ...], Unit("blocks of 1,024 bytes")] = Field(
        default=(2, 8, 32, 128),
        min_length=1,
        max_length=16,
        description="Depths at which a prompt has a home that all clients compute alike. Increasing; "
        "geometric, so that shared system prompts and single conversations both have one.",
    )
    prior_confidence: Annotated[float, Unit("share")] = Field(
        default=0.8,
        ge=0,
        le=1,
        description="Which part of a prefix that others may have sent there its home is believed to hold, where "
        "others are at work; a tenth of that where none seem to be.",
    )
    fingerprint_secret: Annotated[SecretStr, Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Makes fingerprints unguessable (keyed blake2b instead of xxh3); all clients and replicas of a "
        "fleet must share it. At most 64 bytes.",
    )
    cache_tokens: Annotated[int, Unit("tokens")] = Field(
        default=1_000_000,
        ge=1,
        description="What a replica's prefix cache is believed to hold at most, shrunk where answers show "
        "misses. An 8B Llama takes 128 KiB a token: an 80 GB GPU holds about 430,000, in FP8 twice "
        "that.",
    )
    bound_factor: Annotated[float, Unit("factor")] = Field(
        default=1.5,
        gt=1,
        le=100,
        description="A home with more than this times the mean outstanding tokens spills to the next in "
        "its ranking (consistent hashing with bounded loads, Mirrokni et al., 2018, where "
        "1.25 to 2 is usual).",
    )
    bound_floor_tokens: Annotated[int, Unit("tokens")] = Field(
        default=65_536,
        ge=0,
        description="A home with fewer outstanding tokens than this never spills: a few long prompts are "
        "no overload.",
    )
    sampled_candidates: Annotated[int, Unit("replicas")] = Field(
        default=8,
        ge=1,
        le=1_000,
        description="How many others are compared besides homes and holders. Fleets of at most this size "
        "are scanned whole; above it the cost of a pick stays the same.",
    )
    prefill_tokens_per_s: Annotated[float, Unit("tokens/s")] = Field(
        default=10_000.0,
        gt=0,
        description="First guess of a replica's prefill rate, until eight answers have shown it. 10,000 "
        "is the order of an 8B model on one data-centre GPU.",
    )
    knee_tokens: Annotated[float, Unit("tokens")] = Field(
        default=30_000.0,
        gt=0,
        description="Context at which attention costs a token as much as all else does. From the "
        "operation counts, 2 * parameters / (4 * width * layers): 30,000 for an 8B Llama, "
        "54,000 for a 70B.",
    )
    decode_s_per_token: Annotated[float, Unit("s/token")] = Field(
        default=0.0001,
        ge=0,
        description="By how much one outstanding output token delays a new call. An engine that decodes "
        "some thousands of tokens a second in its batch gives part of each step to prefill.",
    )
    bytes_per_token: Annotated[float, Unit("bytes/token")] = Field(
        default=4.0,
        ge=0.5,
        le=16,
        description="First guess of text bytes per token, until usage figures have shown it. About 4 for "
        "English with today's BPE vocabularies.",
    )
    expected_output_tokens: Annotated[int, Unit("tokens")] = Field(
        default=256,
        ge=1,
        description="First guess of an answer's length where the call sets no limit, until learned.",
    )
    residual_s: Annotated[float, Unit("s")] = Field(
        default=2.0,
        ge=0,
        le=600,
        description="How long a cancelled call stays charged: an engine notices a closed connection only "
        "between steps.",
    )
    others_memory_s: Annotated[float, Unit("s")] = Field(
        default=2.0,
        gt=0,
        le=3_600,
        description="Time constant with which fades what own streams have shown of other clients' load at a "
        "replica. Of the order of a long prompt's prefill: what was queued then is done by now.",
    )
    zone: Annotated[str, Field(min_length=1, max_length=255)] | None = Field(
        default=None, description="This client's own zone; unset: zones are ignored."
    )
    cross_zone_penalty_s: Annotated[float, Unit("s")] = Field(
        default=0.1,
        ge=0,
        le=3_600,
        description="How much sooner a replica of another zone must be to be picked.",
    )
    degraded_penalty_s: Annotated[float, Unit("s")] = Field(
        default=1.0,
        ge=0,
        le=3_600,
        description="How much sooner a replica that its registry calls degraded (in Consul: warning) must be "
        "to be picked.",
    )
    spill_below_share: Annotated[float, Unit("share")] = Field(
        default=0.7,
        gt=0,
        le=1,
        description="Replicas of the next priority join in, for the missing part of the keys, when a smaller "
        "share than this of a priority's replicas is healthy. 0.7 is Envoy's overprovisioning factor "
        "of 1.4.",
    )

    @field_validator("fingerprint_secret")
    @classmethod
    def _short(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and len(secret.get_secret_value().encode()) > _MOST_SECRET_BYTES:
            raise ValueError(f"must be at most {_MOST_SECRET_BYTES} bytes in UTF-8")
        return secret

    @field_validator("anchor_depths")
    @classmethod
    def _increasing(cls, depths: tuple[int, ...]) -> tuple[int, ...]:
        if list(depths) != sorted(set(depths)):
            raise ValueError("the depths must increase, such as 2, 8, 32, 128")
        return depths
