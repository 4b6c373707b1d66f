"""What can be set of a reporter: by argument, or by environment variables, as ``--middleware`` takes no arguments."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, field_validator

from ..config.base import BearerToken, InvalidConfig, Problem, Section
from ..config.describe import Unit
from ..errors import ConfigError

PREFIX = "MLBALANCE_REPORTER_"
Seconds = Annotated[float, Unit("s")]
_LISTS = frozenset({"paths"})


class ReporterSettings(Section):
    """Settings of a LoadReporter or LoadBoard; the variable of each is ``MLBALANCE_REPORTER_<NAME>``."""

    replica: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="The replica's identity, as clients hash it. Without it they take the registry's id or host:port.",
    )
    token: BearerToken | None = Field(
        default=None, description="If set, /mlbalance/v1/load demands it as a bearer token."
    )
    secret: SecretStr | None = Field(
        default=None,
        description="Keys the hashes of prefixes, so that outsiders cannot test for a prompt; at most 64 bytes, the "
        "same at all clients.",
    )
    kv_tokens: int | None = Field(
        default=None,
        gt=0,
        le=10**9,
        description="Tokens that the KV cache holds. Under vLLM it is read from the engine; else 500,000 is assumed "
        "for the prefixes, and nothing reported.",
    )
    batch_limit: int | None = Field(
        default=None,
        gt=0,
        le=10**6,
        description="Requests that the engine runs at once (vLLM: --max-num-seqs).",
    )
    step_tokens: int = Field(
        default=2048,
        gt=0,
        le=10**6,
        description="Prompt tokens that one step of the engine takes (vLLM: --max-num-batched-tokens). The oldest "
        "prompts within it count as running, those behind as waiting.",
    )
    wait_target_s: Seconds = Field(
        default=0.5,
        gt=0,
        le=600,
        description="How much prefill may stand: room is granted until then.",
    )
    overloaded_s: Seconds = Field(
        default=2.0,
        gt=0,
        le=600,
        description="After an answer of 429 or 503 the state is overloaded for this long, or until a success.",
    )
    paths: tuple[str, ...] = Field(
        default=(),
        description="Ends of further paths whose POSTs are calls (/predict, say), besides those that dialects know. "
        "As a variable: separated by commas.",
    )
    kv_events: str | None = Field(
        default=None,
        description="Where the engine publishes its KV cache events (vLLM, SGLang; extra kv-events), as seen from "
        "here: tcp://127.0.0.1:5557 is connected to, tcp://*:5557 is bound.",
    )
    kv_events_replay: str | None = Field(
        default=None, description="The engine's replay endpoint, for what was missed."
    )
    kv_events_topic: str = Field(default="", description="Only events of topics that begin so.")
    max_subscribers: int = Field(
        default=4096, gt=0, le=10**6, description="Streams at once; more are refused with 503."
    )
    max_body_bytes: int = Field(
        default=8 * 1024 * 1024,
        gt=0,
        le=2**30,
        description="Of a larger request body only the size is taken.",
    )
    gpu: bool = Field(default=True, description="Report GPU figures where NVML is there (extra gpu).")
    signals: bool = Field(
        default=True,
        description="Hear SIGTERM and SIGINT, besides those who do already, so that streams end and do not hold up "
        "the server's graceful end.",
    )
    partial: bool | None = Field(
        default=None,
        description="Whether several server processes share the port. Without it they find one another by lock "
        "files in the directory for temporary files.",
    )

    @field_validator("secret")
    @classmethod
    def _key_fits(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None and not 0 < len(secret.get_secret_value().encode()) <= 64:
            raise ValueError("a secret has 1 to 64 bytes")
        return secret

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ, **given: Any) -> Self:
        """Settings from the environment; what is ``given`` goes first. Raises ConfigError that names the variable."""
        found: dict[str, Any] = {}
        for name, value in env.items():
            if not name.startswith(PREFIX) or not value:
                continue
            key = name.removeprefix(PREFIX).lower()
            if key not in cls.model_fields:
                raise ConfigError(
                    f"{name}: there is no such setting; there are {', '.join(cls.model_fields)}"
                )
            found[key] = [p.strip() for p in value.split(",") if p.strip()] if key in _LISTS else value
        try:
            return cls.model_validate(found | given)
        except InvalidConfig as error:
            problems = [
                Problem((PREFIX + str(p.path[0]).upper(), *p.path[1:]), p.message)
                if p.path and p.path[0] in found.keys() - given.keys()
                else p
                for p in error.problems
            ]
            raise InvalidConfig(problems, "reporter") from None

    @property
    def key(self) -> bytes | None:
        """The secret's bytes."""
        return None if self.secret is None else self.secret.get_secret_value().encode()
