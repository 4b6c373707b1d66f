"""What is worth telling a subscriber before its time: what it could not have foreseen.

A subscriber drains the tokens that it was told of at the rates that it was told, as the design has it. So a steady
drain is no change; what departs from it by more than a tenth is. Such a change is *large* if it is also more than
200 ms of the replica's work, or of its state: that is told as soon as the format allows. Small ones, such as
a short call on an idle replica, move no pick, come in great number, and wait a little longer.
"""

from __future__ import annotations

from enum import IntEnum

from ..core.load_report import LoadReport

_SHARE = 0.1
_LARGE_S = 0.2
_LARGE_REQUESTS = 4
_UNKNOWN_RATE = 10_000.0


class Change(IntEnum):
    """How much of a change it is."""

    NONE = 0
    SMALL = 1
    LARGE = 2


class Expectation:
    """What a report lets one expect; made once a report, and asked many times."""

    __slots__ = (
        "_at",
        "_decode",
        "_decode_rate",
        "_models",
        "_prefill",
        "_prefill_rate",
        "_running",
        "_state",
        "_waiting",
    )

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

    def change(self, fresh: LoadReport) -> Change:
        """How far ``fresh`` is off."""
        if fresh.state is not self._state or fresh.models is not self._models:
            return Change.LARGE
        passed_s = fresh.at - self._at
        waiting, running = self._waiting, self._running
        prefill = max(0.0, self._prefill - self._prefill_rate * passed_s)
        decode = max(0.0, self._decode - self._decode_rate * passed_s)
        off_waiting, off_running = abs((fresh.waiting or 0) - waiting), abs((fresh.running or 0) - running)
        off_prefill, off_decode = (
            abs((fresh.prefill_tokens or 0) - prefill),
            abs((fresh.decode_tokens or 0) - decode),
        )
        if (
            (
                off_prefill > _SHARE * prefill
                and off_prefill > _LARGE_S * (self._prefill_rate or _UNKNOWN_RATE)
            )
            or (off_decode > _SHARE * decode and off_decode > _LARGE_S * (self._decode_rate or _UNKNOWN_RATE))
            or (off_waiting > _LARGE_REQUESTS and off_waiting > _SHARE * waiting)
            or (off_running > _LARGE_REQUESTS and off_running > _SHARE * running)
        ):
            return Change.LARGE
        if (
            off_prefill > _SHARE * prefill
            or off_decode > _SHARE * decode
            or off_waiting > _SHARE * waiting
            or off_running > _SHARE * running
        ):
            return Change.SMALL
        return Change.NONE
