"""What replicas speak: OpenAI, Anthropic, KServe and Triton, anything else by bytes, and plugins."""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points

from .anthropic import AnthropicDialect
from .base import AnswerWatch, Dialect, Ending, InBandError, Reading, Sign
from .kserve import KServeDialect
from .openai import DIALECTS as _OPENAI
from .plain import BytesDialect, FunctionDialect

__all__ = [
    "AnswerWatch",
    "BytesDialect",
    "Dialect",
    "Ending",
    "FunctionDialect",
    "InBandError",
    "Reading",
    "Sign",
    "find",
]

GROUP = "mlbalance_client.dialects"


@lru_cache(maxsize=1)
def _known() -> tuple[Dialect, ...]:
    plugins: list[Dialect] = [point.load()() for point in entry_points(group=GROUP)]
    return (*plugins, *_OPENAI, AnthropicDialect(), KServeDialect(), BytesDialect())


@lru_cache(maxsize=1024)
def find(method: str, path: str) -> Dialect:
    """The dialect of a request: plugins (entry-point group ``mlbalance_client.dialects``) first, bytes last."""
    return next(dialect for dialect in _known() if dialect.matches(method, path))
