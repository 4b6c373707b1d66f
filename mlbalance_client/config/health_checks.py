"""Asking replicas how they are, where calls do not tell. Fulfils what the core's vigil asks of its settings."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from .base import Section, Token, given
from .describe import Unit

_PATH = re.compile(r"/[!-~]*")
_OURS = frozenset({"host", "content-length", "transfer-encoding", "connection", "accept-encoding"})


class HealthChecksConfig(Section):
    """Asking replicas how they are, where calls do not tell."""

    enabled: bool = Field(
        default=True,
        description="Off, a replica is known by calls and load reports alone: an ejected one returns when its time is "
        "over, and a call finds out whether it is well.",
    )
    interval_s: Annotated[float, Unit("s")] = Field(
        default=10.0,
        ge=0.05,
        le=3_600,
        description="How often a replica is checked while its calls tell nothing: it is ejected, on trial, or none has "
        "ended for so long. Jittered; up to eight times as long for a client without calls, and as many seconds as "
        "the replica has clients, where it tells that. 10 as in Kubernetes.",
    )
    timeout_s: Annotated[float, Unit("s")] = Field(
        default=5.0,
        gt=0,
        le=600,
        description="How long a replica's server may take. SGLang's endpoint takes a second or more.",
    )
    model: Literal["ejected", "silent", "never"] = Field(
        default="ejected",
        description="Of whom the model is checked too, by a call of one token like those that callers make: of "
        "replicas that are ejected or on trial, of those too that had no calls for an interval (`silent`), of nobody.",
    )
    model_timeout_s: Annotated[float, Unit("s")] = Field(
        default=30.0,
        gt=0,
        le=3_600,
        description="How long a model may take over its one token: it may stand in a queue.",
    )
    max_tokens_per_min: Annotated[int, Unit("tokens a minute")] = Field(
        default=600,
        ge=0,
        le=1_000_000_000,
        description="What checks of models may cost altogether, prompts included, of this client: about 20 checks of "
        "chat models. 0: none.",
    )
    path: Annotated[str, Field(max_length=1_000)] | None = Field(
        default=None,
        description="The server's health endpoint. Unset: its engine's, as load reports found it, else `/health` and "
        "other usual ones.",
    )
    headers: dict[str, Token] = Field(
        default_factory=dict,
        description="Headers that checks bear, such as `Authorization`, where replicas demand it. Checks never bear "
        "those of callers.",
    )

    @field_validator("path")
    @classmethod
    def _is_a_path(cls, path: str | None) -> str | None:
        if path is not None and _PATH.fullmatch(path) is None:
            raise ValueError(
                f"given {given(path)}; must begin with a slash and be printable ASCII, as '/health'"
            )
        return path

    @field_validator("headers")
    @classmethod
    def _can_be_named(cls, headers: dict[str, Token]) -> dict[str, Token]:
        for name in headers:
            if (
                not name
                or not all(char.isalnum() or char in "!#$%&'*+-.^_`|~" for char in name)
                or not name.isascii()
            ):
                raise ValueError(f"{name!r} is no name of a header")
            if name.lower() in _OURS:
                raise ValueError(f"{name!r} is set by the client itself")
        return headers
