"""When replicas are kept out. Fulfils what the core's outlier detection and slow start ask of their settings."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from .base import Section, within
from .describe import Unit


class OutlierDetectionConfig(Section):
    """Keeping away from replicas that fail, or are much slower than the others."""

    rest_base_s: Annotated[float, Unit("s")] = Field(
        default=1.0,
        ge=0,
        le=600,
        description="How long a replica that has failed a call is not picked while others can be; doubled with "
        "each failure in a row. A `Retry-After` of its own comes before. 0: never.",
    )
    rest_max_s: Annotated[float, Unit("s")] = Field(
        default=30.0,
        gt=0,
        le=3_600,
        description="The longest such rest. Of the order of a replica's restart.",
    )
    consecutive_failures: int = Field(
        default=5,
        ge=0,
        le=1_000,
        description="So many failed calls in a row eject a replica, unless most others fail too; three in five of them "
        "if its connections break or are refused. 429, and 503 with a `Retry-After`, do not count. 0: never. 5 as "
        "in Envoy.",
    )
    failure_share: Annotated[float, Unit("share")] = Field(
        default=0.15,
        gt=0,
        le=1,
        description="A replica that surely fails a larger share of its calls than this, and than twice the others' "
        "share, is ejected. 1: never.",
    )
    slow_factor: Annotated[float, Unit("factor")] = Field(
        default=4.0,
        ge=1.5,
        le=1_000_000,
        description="A replica whose calls take so many times what the others' take, each measured by its own work, is "
        "ejected. What is somewhat slower is weighed by its learned rate instead: unlike GPUs differ by 2 to 3.",
    )
    ejection_base_s: Annotated[float, Unit("s")] = Field(
        default=30.0,
        gt=0,
        le=3_600,
        description="How long the first ejection lasts; the second in a row twice as long, and so on. 30 as in Envoy. "
        "One that refuses connections is out until a check reaches it, at first 60 s at most; without checks 5 s.",
    )
    ejection_max_s: Annotated[float, Unit("s")] = Field(
        default=300.0, gt=0, le=86_400, description="The longest ejection. 300 as in Envoy."
    )
    max_ejected_share: Annotated[float, Unit("share")] = Field(
        default=0.5,
        ge=0,
        le=1,
        description="At most this share of the replicas that can be reached is ejected at once; never the last one, "
        "but one of two or three. 0: ejects nobody that can be reached.",
    )
    panic_below_share: Annotated[float, Unit("share")] = Field(
        default=0.5,
        ge=0,
        le=1,
        description="With a smaller share of all replicas left, ejections are ignored, but for those that refuse "
        "connections: better to ask everyone than to drown the rest. 0.5 as in Envoy.",
    )

    @model_validator(mode="after")
    def _grow_from_less(self) -> OutlierDetectionConfig:
        within("rest_base_s", self.rest_base_s, "rest_max_s", self.rest_max_s)
        within("ejection_base_s", self.ejection_base_s, "ejection_max_s", self.ejection_max_s)
        return self


class SlowStartConfig(Section):
    """Leading replicas that are new, or back, up to full load."""

    window_s: Annotated[float, Unit("s")] = Field(
        default=30.0,
        ge=0,
        le=3_600,
        description="How long after its first success a replica counts as less than itself. Until then it gets one "
        "call at a time. 0: takes newcomers as they are.",
    )
    min_share: Annotated[float, Unit("share")] = Field(
        default=0.1,
        gt=0,
        le=1,
        description="As what share of itself it counts at first. 0.1 as in Envoy.",
    )
