"""Seconds of work from the figures of a load report: which figure rules, and how it is turned into time.

======================== ==================================================================================
the report tells         work that stands there
======================== ==================================================================================
``expected_wait_s``      as told
``prefill_tokens``       tokens x learned work a token / learned rate
``waiting_tokens``       the same, of the waiting ones; what has left the queue is under way until its time passes
``waiting`` alone        own waiting calls by their known size, the others x the mean call's work
``utilization``          u / (1 - u) mean calls (Pollaczek-Khinchine)
``running``, else        of an idle one: what own calls have found at such; of another: as if it told nothing
``gpu_utilization``
======================== ==================================================================================

A GPU's utilization is used only where it is all there is: an engine under any load sits at 100 %, so that only an idle
GPU tells anything. To count u / (1 - u) or u mean calls for it places worse than to know nothing. So does counting
for each running call what own calls have found beside one: most are past their prefill.
"""

from __future__ import annotations

from enum import StrEnum

from .report import LoadReport

_STEP = 0.02
_MOST_IN_USE = 0.95
_IDLE = 0.1
MOST_UNDER_WAY_S = 60.0


class Basis(StrEnum):
    """What a report lets us know of the work standing at a replica."""

    NOTHING = "nothing"
    WORK = "work"
    ADMITTED = "queue and what is under way"
    QUEUED_WORK = "queued work"
    EMPTY_QUEUE = "empty queue"
    QUEUE = "queue"
    SHARE = "share in use"
    IDLE = "idle"


# Those by which the replica itself tells what stands there.
TELLING = frozenset({Basis.WORK, Basis.QUEUED_WORK, Basis.QUEUE, Basis.ADMITTED})


def basis(report: LoadReport) -> Basis:
    """Which of its figures rule."""
    if report.expected_wait_s is not None or report.prefill_tokens is not None:
        return Basis.WORK
    if report.waiting_tokens is not None:
        return Basis.QUEUED_WORK if report.waiting_tokens else Basis.EMPTY_QUEUE
    if report.waiting is not None:
        return Basis.QUEUE if report.waiting else Basis.EMPTY_QUEUE
    if report.utilization is not None:
        return Basis.SHARE
    return Basis.IDLE if _idle(report) else Basis.NOTHING


def _idle(report: LoadReport) -> bool:
    if report.running is not None:
        return not report.running
    return report.gpu_utilization is not None and report.gpu_utilization < _IDLE


def has_others_work(report: LoadReport, own: int) -> bool | None:
    """Whether any work is there, but for ``own`` calls if the report counts calls at all; None: it does not tell."""
    if own and report.running is not None:
        return report.running + (report.waiting or 0) > own
    figures = (
        report.expected_wait_s,
        report.prefill_tokens,
        report.running,
        report.waiting,
        report.waiting_tokens,
        report.utilization,
        None if report.gpu_utilization is None else report.gpu_utilization >= _IDLE,
    )
    known = [figure for figure in figures if figure is not None]
    return any(known) if known else None


def tells(report: LoadReport) -> int:
    """How much a report tells of the work that stands there; one that tells less does not stand in for one of more."""
    if report.expected_wait_s is not None or report.prefill_tokens is not None:
        return 4
    if report.waiting_tokens is not None:
        return 3
    if report.waiting is not None:
        return 2
    known = (report.utilization, report.running, report.gpu_utilization)
    return int(any(figure is not None for figure in known))


class Work:
    """The mean call's prefill in work units, and work units an uncached token; learned from own calls."""

    __slots__ = ("_calls", "_tokens", "_units")

    def __init__(self, tokens: float = 2_000.0) -> None:
        self._calls = 1.0
        self._tokens = self._units = tokens

    def learn(self, units: float, tokens: int) -> None:
        """A call of ``tokens`` uncached prompt tokens took ``units`` of work."""
        keep = 1.0 - _STEP
        self._calls = self._calls * keep + 1.0
        self._units = self._units * keep + units
        self._tokens = self._tokens * keep + tokens

    @property
    def units_per_call(self) -> float:
        """Work units of the mean call."""
        return self._units / self._calls

    @property
    def units_per_token(self) -> float:
        """Work units of an uncached prompt token."""
        return self._units / self._tokens if self._tokens > 0 else 1.0


def under_way_s(before: LoadReport, left_s: float, report: LoadReport, work: Work, rate: float) -> float:
    """Seconds of prefill under way at ``report``, of which a queue in tokens does not tell: what has left the queue
    since ``before`` and the ``left_s`` that were under way then, less the time that has passed. 0 for other reports.

    A queue in requests would show the same of mean calls; what is under way is the odd long one, and it placed worse.
    """
    if not report.running or before.waiting_tokens is None or report.waiting_tokens is None:
        return 0.0
    admitted_s = max(0, before.waiting_tokens - report.waiting_tokens) * work.units_per_token / rate
    left_s = min(MOST_UNDER_WAY_S, max(0.0, left_s + admitted_s - (report.at - before.at)))
    # Whoever waits, waits for somebody.
    return max(left_s, work.units_per_call / rate / 2) if report.waiting_tokens else left_s


def reported_s(report: LoadReport, work: Work, rate: float, known: int, known_s: float) -> float:
    """Seconds that stood at the replica when it reported.

    All of it where the report tells of all work; else what it tells of others' work: ``known`` own calls of ``known_s``
    seconds are in its queue. ``rate``: work units a second.
    """
    if report.expected_wait_s is not None:
        return report.expected_wait_s
    if report.prefill_tokens is not None:
        return report.prefill_tokens * work.units_per_token / rate
    if report.waiting_tokens is not None:
        return max(0.0, report.waiting_tokens * work.units_per_token / rate - known_s)
    if report.waiting is not None:
        return max(0, report.waiting - known) * work.units_per_call / rate
    if report.utilization is not None:
        in_use = min(_MOST_IN_USE, report.utilization)
        return in_use / (1.0 - in_use) * work.units_per_call / rate
    return 0.0
