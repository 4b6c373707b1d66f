"""What replicas say of their load: one adapter an engine, all giving ``LoadReport``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from mlbalance_client.config import LoadReportsConfig
from mlbalance_client.core.load.report import LoadReport, State

from . import orca
from .auto import Auto
from .base import MOST_BYTES, Fetch, Forbidden, Format, NoAnswer, NotThere, Page, ReportError
from .complaints import Complaints
from .kserve import KServe
from .llama_cpp import LlamaCpp
from .looks import Looks
from .nim import Nim
from .ollama import Ollama
from .plugin import PluginFormat
from .ray_serve import RayServe
from .sglang import SGLang
from .tensorrt_llm import TensorRTLLM
from .tgi import Tgi
from .torchserve import TorchServe
from .triton import Triton
from .vllm import Vllm

__all__ = [
    "MOST_BYTES",
    "Auto",
    "Complaints",
    "Fetch",
    "Forbidden",
    "Format",
    "LoadReport",
    "Looks",
    "NoAnswer",
    "NotThere",
    "Page",
    "ReportError",
    "State",
    "create",
    "orca",
    "shared_looks",
]

_NOT_POLLED = frozenset({"orca", "stream", "none"})


def create(
    config: LoadReportsConfig, models: Collection[str] = (), looks: Looks | None = None
) -> Format | None:
    """The reader of one replica, which remembers what it has seen of it; None if the kind is not read by asking.

    ``models``: those that the replica is known to serve; ``looks``: what readers of a client's replicas share. Raises
    ConfigError if the kind is not installed, or its plugin cannot be made.
    """
    if config.kind in _NOT_POLLED:
        return None
    makers = _makers(config.metrics_port, models)
    if config.kind == "auto":
        return Auto(makers, looks)
    if (maker := makers.get(config.kind)) is not None:
        return maker()
    return PluginFormat(config)


def shared_looks() -> Looks:
    """For all replicas of one client."""
    return Looks(tuple(_makers(None, ())))


def _makers(port: int | None, models: Collection[str]) -> dict[str, Callable[[], Format]]:
    """Formats by kind, in the order in which ``auto`` asks: from the most telling pages to the vaguest.

    NIM and Ray Serve come before the engines that they carry, Triton before the protocol that it shares.
    """
    return {
        "nim": partial(Nim, port),
        "ray_serve": partial(RayServe, port),
        "llama_cpp": partial(LlamaCpp, port),
        "tensorrt_llm": TensorRTLLM,
        "vllm": partial(Vllm, port),
        "sglang": partial(SGLang, port),
        "tgi": partial(Tgi, port),
        "ollama": Ollama,
        "triton": partial(Triton, port, models),
        "kserve": partial(KServe, models),
        "torchserve": partial(TorchServe, port),
    }
