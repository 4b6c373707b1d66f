"""Ollama: ``/api/ps`` names what is loaded. Of calls and queues it says nothing.

With nothing loaded it takes calls, and the first one pays for loading: WARMING.
"""

from __future__ import annotations

from types import MappingProxyType

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch
from .figures import objects, parsed_fields, states, total, whole
from .pages import Pages

PATH = "/api/ps"


def from_ps(body: bytes, at: float) -> LoadReport:
    """Models that are in memory, and the GPU's memory that they take. Raises ReportError."""
    fields = parsed_fields(body, PATH)
    if not isinstance(fields.get("models"), list):
        return LoadReport(source="ollama", at=at, doubts=(f"{PATH}: no list of models",))
    loaded = objects(fields["models"])
    names = (model.get("name") or model.get("model") for model in loaded)
    return LoadReport(
        source="ollama",
        at=at,
        state=State.READY if loaded else State.WARMING,
        gpu_memory_used_bytes=whole(total(model.get("size_vram") for model in loaded)) if loaded else 0,
        models=states(names, State.READY) if loaded else MappingProxyType({}),
    )


class Ollama:
    """One small page."""

    kind = "ollama"
    cheap = True

    def __init__(self) -> None:
        self._pages = Pages()

    async def recognises(self, fetch: Fetch) -> bool:
        """By ``/api/ps`` itself."""
        return isinstance((await probes.fields(fetch, PATH)).get("models"), list)

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Raises ReportError."""
        return from_ps((await self._pages.get(fetch, PATH)).body, at)
