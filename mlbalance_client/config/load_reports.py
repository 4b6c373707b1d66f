"""What replicas tell of their load, and how often they are asked."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from .base import BearerToken, Section, given, nearest
from .describe import Unit
from .plugins import Kinds

BUILT_IN_REPORTS = (
    "auto",
    "vllm",
    "sglang",
    "tgi",
    "triton",
    "tensorrt_llm",
    "llama_cpp",
    "ollama",
    "kserve",
    "torchserve",
    "nim",
    "ray_serve",
    "orca",
    "stream",
    "none",
)


class LoadReportsConfig(Section):
    """What replicas tell of their load."""

    kind: str = Field(
        default="auto",
        description="Where reports come from: "
        + ", ".join(f"`{kind}`" for kind in BUILT_IN_REPORTS)
        + ", or a "
        "plugin's. `auto` finds out which engine each replica is. `orca`: from the headers of answers alone; "
        "`stream`: the replicas publish (docs/load-reports.md). `none`: the client goes by its own record of what "
        "it sent.",
    )
    interval_s: Annotated[float, Unit("s")] = Field(
        default=1.0,
        ge=0.05,
        le=3_600,
        description="How often a replica is asked, each client in a phase of its own. A scrape of vLLM's metrics "
        "costs its server some milliseconds: with hundreds of clients take 5 or the stream.",
    )
    timeout_s: Annotated[float, Unit("s")] = Field(
        default=1.0,
        ge=0.01,
        le=60,
        description="How long a replica may take over one page. A late report is of little use; a server that is "
        "late with it is busy.",
    )
    expiry_s: Annotated[float, Unit("s")] = Field(
        default=5.0,
        gt=0,
        le=3_600,
        description="A report counts for less as it ages, and for nothing at this age. At least `interval_s`, "
        "or most of the time none would count.",
    )
    metrics_port: Annotated[int, Field(ge=1, le=65_535)] | None = Field(
        default=None,
        description="Port of the metrics where it is not the replica's own. Unset: 8002 for Triton, 8082 for "
        "TorchServe; Ray Serve has no usual one, and without it tells its readiness only.",
    )
    token: BearerToken | None = Field(
        default=None, description="Bearer token that the replicas' load stream demands."
    )
    orca: bool | None = Field(
        default=None,
        description="Whether each call asks for load metrics in its answer's headers (ORCA). Unset: only if "
        "`kind` is `orca`, for a vLLM that is asked walks its whole registry and logs a line for every call. "
        "Headers that come unasked are always read.",
    )
    on_demand_tokens: Annotated[int, Unit("tokens")] = Field(
        default=2_048,
        ge=0,
        le=1_000_000_000,
        description="A call with at least so many uncached prompt tokens asks up to eight candidates afresh before it "
        "is placed, where the format may be read on demand and asking takes at most a twentieth of the call's own "
        "prefill. 2,048 tokens take 0.2 s at 10,000 tokens/s, asking a few milliseconds. 0: never.",
    )

    @property
    def asks_orca(self) -> bool:
        """Whether calls carry the header that asks for load metrics."""
        return self.kind == "orca" if self.orca is None else self.orca

    @field_validator("kind")
    @classmethod
    def _known(cls, kind: str) -> str:
        if cls is LoadReportsConfig and kind not in BUILT_IN_REPORTS:
            raise ValueError(f"given {given(kind)}; {nearest(kind, BUILT_IN_REPORTS)}")
        return kind

    @model_validator(mode="after")
    def _lives_until_the_next(self) -> LoadReportsConfig:
        if self.expiry_s < self.interval_s:
            raise ValueError(
                f"expiry_s {self.expiry_s:g} is less than interval_s {self.interval_s:g}: reports would not last "
                "until the next"
            )
        return self

    @model_validator(mode="after")
    def _hears_what_it_asks_for(self) -> LoadReportsConfig:
        if self.kind == "none" and self.orca:
            raise ValueError(
                "orca asks for reports, and kind 'none' hears none; kind 'orca' hears those alone"
            )
        return self


report_kinds = Kinds(
    "mlbalance_client.load_reports",
    "load report",
    LoadReportsConfig,
    dict.fromkeys(BUILT_IN_REPORTS, LoadReportsConfig),
)
