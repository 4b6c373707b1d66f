"""Telling people what of a replica's reports is wrong, and that it is over."""

from __future__ import annotations

from mlbalance_client.core.load.report import LoadReport

_LONGEST = 300
_BETWEEN_S = 60.0
_ENOUGH_ANSWERS = 16
_NO_HEADER = (
    f"none of its first {_ENOUGH_ANSWERS} answers bears an endpoint-load-metrics header: nothing is known of its load; "
    "vLLM sends none with answers that stream"
)


class Complaints:
    """Remembers what it has told of one replica: a page that is odd once is odd every second, or every other second.

    One line for each spell of a trouble, which its text tells from others, and one when it is over; but one a minute at
    most, so that nothing is told of what has passed by then. ``understood``: whether there ever was no trouble.
    """

    def __init__(self) -> None:
        self._told = ""
        self._not_before = float("-inf")
        self.understood = False

    def hear(self, trouble: str, now: float) -> str | None:
        """The line for the log that is due, now that this is wrong; an empty text: nothing is."""
        trouble = trouble[:_LONGEST]
        self.understood = self.understood or not trouble
        if trouble == self._told or now < self._not_before:
            return None
        self._told, self._not_before = trouble, now + _BETWEEN_S
        return trouble or "understood again"


class HeaderComplaints(Complaints):
    """The same of ORCA headers, which not every answer bears, and some servers' never."""

    def __init__(self) -> None:
        super().__init__()
        self._patience = _ENOUGH_ANSWERS

    def trouble(self, report: LoadReport | None) -> str | None:
        """What is to be heard after an answer with this report in its head, None after one that shows nothing."""
        if report is not None:
            self._patience = 0
            return f"{'; '.join(report.doubts)}: such headers are not read" if report.doubts else ""
        if not self._patience:
            return None
        self._patience -= 1
        return None if self._patience else _NO_HEADER


def doubtful(report: LoadReport) -> str:
    """What is wrong with it, in a line; an empty text if all was understood."""
    return f"understood in part only ({report.source}): {'; '.join(report.doubts)}" if report.doubts else ""
