"""KServe and other servers of the open inference protocol, version 2: readiness, of the server and of single models."""

from __future__ import annotations

from collections.abc import Collection

from mlbalance_client.core.load.report import LoadReport, State

from . import probes
from .base import Fetch, ReportError
from .figures import mapping, parsed
from .pages import ModelStates, Pages, ready

READY, LIVE = "/v2/health/ready", "/v2/health/live"


class KServe:
    """``models``: those whose readiness is asked for, up to four a read; the protocol cannot list them by GET."""

    kind = "kserve"
    cheap = True

    def __init__(self, models: Collection[str] = ()) -> None:
        self._pages = Pages()
        self._models = ModelStates(models)

    async def recognises(self, fetch: Fetch) -> bool:
        """By the server's metadata, or by a liveness page in the protocol's words."""
        metadata = await probes.fields(fetch, "/v2")
        if isinstance(metadata.get("name"), str) and "version" in metadata:
            return True
        page = await fetch(LIVE)
        if page.status != 200:
            return False
        try:
            return not page.body or isinstance(mapping(parsed(page.body, LIVE)).get("live"), bool)
        except ReportError:
            return False

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Two to six empty pages."""
        health = await self._pages.get_any(fetch, READY)
        state = ready(health)
        if state is None:
            live = await self._pages.maybe(fetch, LIVE)
            state = State.STARTING if live is None or ready(live) else State.DRAINING
        return LoadReport(source=self.kind, at=at, state=state, models=await self._models.read(fetch))
