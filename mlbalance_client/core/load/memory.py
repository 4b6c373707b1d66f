"""Which replicas are short of memory: what is sent there waits, or drives out others that then start anew.

=============================== =======================================================================================
the report tells                it is short of memory when
=============================== =======================================================================================
KV capacity and the share held  what is held, and what was sent since, exceed it by an eighth: see ``windows``
the share alone, and no queue   it is 95 % or more
GPU memory alone, and no queue  it is 98 % or more: engines fill 90 % or so at their start by design
=============================== =======================================================================================

The first counts tokens, so a call waits for them. The others are guesses: such a replica gets no more while others have
room. Where a queue is told, it shows what memory does not let in: to bar by a guess besides placed worse.
"""

from __future__ import annotations

from .report import LoadReport
from .standing import tells

_BEYOND = 1 / 8  # an engine's own queue keeps it busy between two of its reports
_KV_FULL = 0.95
_GPU_FULL = 0.98


def left_tokens(report: LoadReport) -> float | None:
    """Tokens that may still be sent there, by its word; None: it is not known."""
    if not report.kv_capacity_tokens or report.kv_used is None:
        return None
    return report.kv_capacity_tokens * (1.0 + _BEYOND - report.kv_used)


def seems_full(report: LoadReport) -> bool:
    """Whether its memory is near its limit, where its tokens cannot be counted and nothing else tells."""
    if tells(report) > 1 or left_tokens(report) is not None:
        return False
    if report.kv_used is not None:
        return report.kv_used >= _KV_FULL
    return report.gpu_memory is not None and report.gpu_memory >= _GPU_FULL


class Fullness:
    """Which of all replicas seem full. A report holds for ``expiry_s``."""

    __slots__ = ("_expiry_s", "_full_at")

    def __init__(self, expiry_s: float) -> None:
        self._expiry_s = expiry_s
        self._full_at: dict[int, float] = {}

    def hear(self, place: int, report: LoadReport) -> None:
        """A replica has told how it is; what says nothing of memory changes nothing."""
        if report.at < self._full_at.get(place, report.at):
            return
        if seems_full(report):
            self._full_at[place] = report.at
        elif report.kv_used is not None or report.gpu_memory is not None:
            self._full_at.pop(place, None)

    def full(self, now: float) -> int:
        """Bits of the places that are full."""
        if not self._full_at:
            return 0
        return sum(1 << place for place, at in self._full_at.items() if now - at < self._expiry_s)

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._full_at.pop(place, None)
