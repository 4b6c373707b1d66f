"""When a slow call is sent to a second replica as well. Fulfils what the core's hedging asks of its settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .base import Section
from .describe import Unit


class HedgingConfig(Section):
    """Asking a second replica when the first is slow."""

    enabled: bool = Field(
        default=True,
        description="Off, only calls that ask for it (`hedge=True`) are hedged.",
    )
    quantile: Annotated[float, Unit("share")] = Field(
        default=0.95,
        ge=0.5,
        le=0.999,
        description="Of the recent times to the first content, each as a multiple of what was predicted for the call; "
        "a call is slow beyond `margin` times this quantile. 0.95 as in The Tail at Scale: what delays fewer than 1 "
        "call in 20 does not move it.",
    )
    margin: Annotated[float, Unit("factor")] = Field(
        default=1.5,
        ge=1,
        le=100,
        description="At the bare quantile 1 call in 20 would be hedged on a healthy fleet; at 1.5 times it none to "
        "3 in 100 would, on recorded conversations.",
    )
    first_guess: Annotated[float, Unit("factor")] = Field(
        default=4.0,
        ge=1,
        le=1_000,
        description="Stands for `margin` times the quantile until 20 calls have shown it.",
    )
    floor_s: Annotated[float, Unit("s")] = Field(
        default=0.05,
        gt=0,
        le=600,
        description="Added to each prediction (the network, a step of the engine); nothing is hedged sooner.",
    )
    max_hedges: Annotated[int, Unit("attempts")] = Field(
        default=1,
        ge=1,
        le=3,
        description="Second attempts a call. What two replicas are slow with is slow at a third.",
    )
    max_prefill_tokens: Annotated[int, Unit("tokens")] = Field(
        default=16_384,
        ge=0,
        description="Calls that would cost the second replica more uncached prompt than this are not hedged: all who "
        "queue there would wait for it. Some seconds of an 8B model on one GPU.",
    )
    budget_ratio: Annotated[float, Unit("share")] = Field(
        default=0.05,
        ge=0,
        le=1,
        description="Hedges may send this share of the tokens that callers' own calls send; see `reserve_tokens`.",
    )
    reserve_tokens: Annotated[int, Unit("tokens")] = Field(
        default=32_768,
        ge=0,
        description="And so many besides, filled up again by traffic only, so that a client with little of it can "
        "hedge too. It is the most that can be saved up: no call of more tokens is hedged, and at 0 none is. The "
        "reserves of all clients of a fleet add up: 100 of them may send 3.3 million tokens at once.",
    )
    saturated_at: Annotated[float, Unit("mean calls")] = Field(
        default=3.0,
        gt=0,
        le=1_000,
        description="Nothing is hedged while the median of the replicas that were weighed for the second attempt has "
        "more work standing than so many mean calls bring: a fleet that is merely busy gets no faster by more calls. "
        "A call that has stood four times as long as that work takes is hedged nevertheless.",
    )
