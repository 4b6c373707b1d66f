"""What replicas speak: OpenAI, Anthropic, KServe and Triton, anything else by bytes, and plugins."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points

from mlbalance_client.errors import ConfigError

from . import anthropic, kserve, openai, responses
from .base import AnswerWatch, ChecksModels, Dialect, Ending, InBandError, Lacks, ModelCheck, Reading, Sign
from .plain import BytesDialect, FunctionDialect

__all__ = [
    "AnswerWatch",
    "BytesDialect",
    "ChecksModels",
    "Dialect",
    "Ending",
    "FunctionDialect",
    "InBandError",
    "Lacks",
    "ModelCheck",
    "Reading",
    "Sign",
    "find",
]

GROUP = "mlbalance_client.dialects"
_BUILT_IN: tuple[Dialect, ...] = (*openai.DIALECTS, responses.DIALECT, anthropic.DIALECT, *kserve.DIALECTS)
_IDEMPOTENT_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})
_BYTES, _IDEMPOTENT_BYTES = BytesDialect(), BytesDialect(idempotent=True)


@lru_cache(maxsize=1)
def _plugins() -> tuple[Dialect, ...]:
    return tuple(_load(point.name, point.load) for point in entry_points(group=GROUP))


def _load(name: str, load: Callable[[], Callable[[], Dialect]]) -> Dialect:
    try:
        return load()()
    except Exception as error:
        raise ConfigError(
            f"the dialect {name!r} (entry point of {GROUP}) cannot be loaded: {error!r}; "
            "it must name a callable that takes nothing and returns a Dialect"
        ) from error


@lru_cache(maxsize=1024)
def find(method: str, path: str) -> Dialect:
    """The dialect of a request: our own, then plugins (entry points of ``mlbalance_client.dialects``), then bytes.

    Plugins are loaded at the first request that none of our own matches. Raises ConfigError if one cannot be.
    """
    for dialect in _BUILT_IN:
        if dialect.matches(method, path):
            return dialect
    for dialect in _plugins():
        if dialect.matches(method, path):
            return dialect
    return _IDEMPOTENT_BYTES if method in _IDEMPOTENT_METHODS else _BYTES
