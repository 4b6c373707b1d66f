"""Which replicas have no memory left: what is sent there waits, or drives out others that then start anew.

Only where no queue is told: a queue shows what memory does not let in, and to bar a replica besides placed worse. The
share of the KV cache that running requests hold comes first; without it the GPU's memory, which engines fill to 90 %
or so at their start by design: only what is beyond that tells anything.
"""

from __future__ import annotations

from .load_report import LoadReport
from .standing import tells

_KV_FULL = 0.95
_GPU_FULL = 0.98


def is_full(report: LoadReport) -> bool:
    """Whether its memory is near its limit, and nothing else tells that it takes in no more."""
    if tells(report) > 1:
        return False
    if report.kv_used is not None:
        return report.kv_used >= _KV_FULL
    return report.gpu_memory is not None and report.gpu_memory >= _GPU_FULL


class Fullness:
    """Of all replicas. A report holds for ``expiry_s``."""

    __slots__ = ("_expiry_s", "_full_at")

    def __init__(self, expiry_s: float) -> None:
        self._expiry_s = expiry_s
        self._full_at: dict[int, float] = {}

    def hear(self, place: int, report: LoadReport) -> None:
        """A replica has told how it is; what says nothing of memory changes nothing."""
        if report.at < self._full_at.get(place, report.at):
            return
        if is_full(report):
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
