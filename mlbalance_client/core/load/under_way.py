"""How much prefill is under way at a replica, by what it counts.

Engines in vLLM's manner count a prompt's tokens twice: when it is admitted, as they look it up in the prefix cache
(queries, of which hits), and at its first token (prefilled). What lies between the two is under way. How much of it
is done already is not told; it began between two reports, or before both.
"""

from __future__ import annotations

from .report import LoadReport
from .standing import MOST_UNDER_WAY_S, Work

# Cancelled prompts are never counted as prefilled: the least seen in so long is what nothing under way looks like.
_WINDOW_S = 30.0


class UnderWay:
    """Of one replica."""

    __slots__ = ("_before", "_left_s", "_lows", "_turned_at")

    def __init__(self) -> None:
        self._before: LoadReport | None = None
        self._left_s = 0.0
        self._lows: tuple[int, int] | None = None
        self._turned_at = 0.0

    def hear(self, report: LoadReport, work: Work, rate: float) -> float | None:
        """Seconds of prefill under way at ``report``; None where it does not count. ``rate``: work units a second."""
        queries, hits, prefilled = report.prefix_queries, report.prefix_hits, report.prefilled_tokens
        if queries is None or hits is None or prefilled is None:
            self._before = None
            return None
        open_tokens = queries - prefilled
        under_way = open_tokens - self._least(open_tokens, report)
        before, self._before = self._before, report
        whole_s = under_way * work.units_per_token / rate
        if before is None or queries < (before.prefix_queries or 0) or hits < (before.prefix_hits or 0):
            self._lows = None
            self._least(open_tokens, report)
            self._left_s = 0.0
            return None
        passed_s = max(0.0, report.at - before.at)
        missed = max(0, queries - (before.prefix_queries or 0) - hits + (before.prefix_hits or 0))
        new_s = missed * work.units_per_token / rate
        # Prompts are prefilled in turn. Those that came since may have begun at any moment since.
        at_most_s = min(whole_s, self._left_s + new_s)
        left_s = max(at_most_s - passed_s / 2, at_most_s / 2) if missed else at_most_s - passed_s
        self._left_s = min(MOST_UNDER_WAY_S, max(0.0, left_s))
        return self._left_s

    def _least(self, open_tokens: int, report: LoadReport) -> int:
        if self._lows is None or not report.running:
            self._lows = open_tokens, open_tokens
            self._turned_at = report.at
        elif report.at - self._turned_at > _WINDOW_S:
            self._lows = open_tokens, self._lows[0]
            self._turned_at = report.at
        else:
            self._lows = min(open_tokens, self._lows[0]), self._lows[1]
        return min(self._lows)
