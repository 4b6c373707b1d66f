"""When a failed call is sent again, and how long one may take."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator
from tenacity.stop import stop_base
from tenacity.wait import wait_base

from .base import Section, within
from .describe import Unit


class RetriesConfig(Section):
    """When a failed call is sent again, before anything of an answer was seen."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    max_attempts: int = Field(
        default=2,
        ge=1,
        le=5,
        description="How often a call may be sent at most, each time to another replica. 2: one replica's "
        "failure is hidden, an overload is not multiplied. What was never sent does not "
        "count, nor do hedges, nor what goes to its replica again since an idle connection was closed.",
    )
    budget_ratio: Annotated[float, Unit("share")] = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Retries may be this share of calls; see `reserve_calls`. 0.1 as Google's SRE book has it.",
    )
    reserve_calls: Annotated[int, Unit("calls")] = Field(
        default=20,
        ge=0,
        description="And so many besides, filled up again by traffic only: what a replica had in hand when it died is "
        "sent again at once. It is the most that can be saved up: at 0 nothing is retried.",
    )
    first_wait_s: Annotated[float, Unit("s")] = Field(
        default=0.0,
        ge=0,
        le=600,
        description="Before the second attempt; doubled before each one after it, with jitter. 0: at once, for another "
        "replica knows nothing of the first one's trouble.",
    )
    max_wait_s: Annotated[float, Unit("s")] = Field(
        default=1.0,
        ge=0,
        le=600,
        description="The longest such wait. Also how long a fleet that pushes back as a whole is waited for: if the "
        "`Retry-After` of the last replica is longer, its answer is delivered at once.",
    )
    stop: stop_base | None = Field(
        default=None,
        exclude=True,
        description="In code only: a stop strategy of tenacity's, instead of `max_attempts`.",
    )
    wait: wait_base | None = Field(
        default=None,
        exclude=True,
        description="In code only: a wait strategy of tenacity's, instead of `first_wait_s` and `max_wait_s`; jitter "
        "is added.",
    )

    @model_validator(mode="after")
    def _do_not_contradict(self) -> RetriesConfig:
        within("first_wait_s", self.first_wait_s, "max_wait_s", self.max_wait_s)
        if self.stop is not None and "max_attempts" in self.model_fields_set:
            raise ValueError("max_attempts and stop both say how often a call may be sent: give one of them")
        return self
