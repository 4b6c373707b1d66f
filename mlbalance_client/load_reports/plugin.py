"""Formats of other packages, held to their Protocol: what one does wrong is named as its plugin's fault."""

from __future__ import annotations

from dataclasses import replace

import anyio

from mlbalance_client.config import LoadReportsConfig
from mlbalance_client.config.load_reports import report_kinds
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.errors import ConfigError

from .base import MOST_PAGES, Fetch, Format


class PluginFormat:
    """A plugin's format for one replica. Raises ConfigError if there is none, or it cannot be made.

    A reading may take as long as the pages of one may take together, and is of no later moment than it was asked for.
    """

    def __init__(self, config: LoadReportsConfig) -> None:
        make = report_kinds.load(config.kind)
        self.kind = config.kind
        try:
            self._format: Format = make(config)
            self.cheap = bool(self._format.cheap)
        except Exception as error:
            raise ConfigError(
                f"load_reports.kind {config.kind!r}: its plugin cannot be made: {error!r}"
            ) from error
        self._within_s = MOST_PAGES * config.timeout_s

    async def recognises(self, fetch: Fetch) -> bool:
        """As the plugin says."""
        return await self._format.recognises(fetch)

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """As the plugin says. Raises ReportError as it does, TimeoutError, and TypeError for what is no report."""
        with anyio.move_on_after(self._within_s) as within:
            report = await self._format.read(fetch, at)
        if within.cancelled_caught:
            raise TimeoutError(f"plugin {self.kind!r}: read has not returned within {self._within_s:g} s")
        if not isinstance(report, LoadReport):
            given = "None" if report is None else f"a {type(report).__name__}"
            raise TypeError(f"plugin {self.kind!r}: read returned {given}, not a LoadReport")
        return report if report.at <= at else replace(report, at=at)
