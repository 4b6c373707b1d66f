"""What is worth telling a subscriber before its time: what it could not have foreseen.

A subscriber drains the tokens that it was told of at the rates that it was told, as the design has it. So a steady
drain is no change; what departs from it by more than a tenth is. Such a change is *large* if it moves picks: more than
200 ms of prefill, or of the replica's state; and of requests or of output to come only where room is *scarce*, near the
limits of batch or memory. There the first place that comes free is large too, and then a tenth of all, for clients wait
for them; and that the last one is taken. That is told as soon as the format allows. Small ones, such as a short call on
an idle replica, come in great number, and wait a little longer.
"""

from __future__ import annotations

from math import inf

from ..core.load.report import LoadReport

_SHARE = 0.1
_LARGE_S = 0.2
_LARGE_REQUESTS = 4
_SCARCE = 0.75
_UNKNOWN_RATE = 10_000.0
# How much of a change it is. No enum: its members are slow to name (Python 3.11), and this is asked for each event.
NONE, SMALL, LARGE = range(3)


class Expectation:
    """What a report lets one expect; made once a report, and asked many times, mostly of the same newer one.

    ``large_tokens``: more than so many of prefill make a change large. ``limited``: so may more than ``large_requests``
    that come or go, near a limit that is known.
    """

    __slots__ = (
        "_at",
        "_compared",
        "_decode",
        "_decode_rate",
        "_found",
        "_freed",
        "_left",
        "_models",
        "_prefill",
        "_prefill_rate",
        "_running",
        "_scarce",
        "_state",
        "_waiting",
        "large_requests",
        "large_tokens",
        "limited",
    )  # fmt: skip

    def __init__(self, told: LoadReport) -> None:
        self._at = told.at
        self._state = told.state
        self._models = told.models
        self._running = told.running or 0
        self._waiting = told.waiting or 0
        self._prefill = told.prefill_tokens or 0
        self._decode = told.decode_tokens or 0
        self._prefill_rate = told.prefill_tokens_per_s or 0.0
        self._decode_rate = told.decode_tokens_per_s or 0.0
        self.large_tokens = _LARGE_S * (self._prefill_rate or _UNKNOWN_RATE)
        self.limited = told.batch_limit is not None or told.kv_used is not None
        self._scarce = _scarce(told)
        self._left = left = _left(told)
        self._freed = inf
        if self._scarce:
            self._freed = max(1.0, _SHARE * (told.batch_limit or inf)) if left > 0 else 1.0 - left
        # Half of either: who was told before this report may have missed as much until it was made.
        places = min(self._freed, left) if left > 0 else self._freed
        self.large_requests = min(_LARGE_REQUESTS, (places - 1.0) / 2)
        self._compared, self._found = told, NONE

    def change(self, fresh: LoadReport) -> int:
        """How far ``fresh`` is off."""
        if fresh is not self._compared:
            self._compared, self._found = fresh, self._compare(fresh)
        return self._found

    def _compare(self, fresh: LoadReport) -> int:
        if fresh.state is not self._state or fresh.models is not self._models:
            return LARGE
        left = _left(fresh)
        if left - self._left >= self._freed or left <= 0 < self._left:
            return LARGE
        passed_s = fresh.at - self._at
        prefill = max(0.0, self._prefill - self._prefill_rate * passed_s)
        off_prefill = abs((fresh.prefill_tokens or 0) - prefill)
        if off_prefill > _SHARE * prefill and off_prefill > self.large_tokens:
            return LARGE
        waiting, running = self._waiting, self._running
        decode = max(0.0, self._decode - self._decode_rate * passed_s)
        off_waiting, off_running = abs((fresh.waiting or 0) - waiting), abs((fresh.running or 0) - running)
        off_decode = abs((fresh.decode_tokens or 0) - decode)
        much_decode, much_waiting = off_decode > _SHARE * decode, off_waiting > _SHARE * waiting
        much_running = off_running > _SHARE * running
        if (self._scarce or _scarce(fresh)) and (
            (much_decode and off_decode > _LARGE_S * (self._decode_rate or _UNKNOWN_RATE))
            or (much_waiting and off_waiting > _LARGE_REQUESTS)
            or (much_running and off_running > _LARGE_REQUESTS)
        ):
            return LARGE
        if off_prefill > _SHARE * prefill or much_decode or much_waiting or much_running:
            return SMALL
        return NONE


def _left(report: LoadReport) -> float:
    """How many places of the batch are free; less than none where requests wait for one."""
    limit = inf if report.batch_limit is None else report.batch_limit
    return limit - (report.running or 0) - (report.waiting or 0)


def _scarce(report: LoadReport) -> bool:
    requests = (report.running or 0) + (report.waiting or 0)
    return (report.batch_limit is not None and requests > _SCARCE * report.batch_limit) or (
        report.kv_used is not None and report.kv_used > _SCARCE
    )
