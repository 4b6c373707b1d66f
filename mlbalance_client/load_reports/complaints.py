"""Telling people once what of a replica's pages is not understood."""

from __future__ import annotations

from mlbalance_client.core.load.report import LoadReport

_LONGEST = 300


class Complaints:
    """Remembers, for one replica, that it has complained: a page that is odd once is odd every second."""

    def __init__(self) -> None:
        self._told = False

    def about(self, report: LoadReport) -> str | None:
        """A line for the log at the first report with doubts, None ever after."""
        if self._told or not report.doubts:
            return None
        self._told = True
        return f"load report ({report.source}) is understood in part only: {'; '.join(report.doubts)}"[
            :_LONGEST
        ]
