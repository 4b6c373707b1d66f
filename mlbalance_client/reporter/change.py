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


def change(told: LoadReport, fresh: LoadReport) -> Change:
    """How far ``fresh`` is off what ``told`` lets one expect."""
    if fresh.state is not told.state or fresh.models != told.models:
        return Change.LARGE
    passed_s = fresh.at - told.at
    found = _level(told.waiting or 0, fresh.waiting or 0, _LARGE_REQUESTS)
    if found is not Change.LARGE:
        found = max(found, _level(told.running or 0, fresh.running or 0, _LARGE_REQUESTS))
    for before, rate, now in (
        (told.prefill_tokens or 0, told.prefill_tokens_per_s, fresh.prefill_tokens or 0),
        (told.decode_tokens or 0, told.decode_tokens_per_s, fresh.decode_tokens or 0),
    ):
        if found is Change.LARGE:
            break
        expected = max(0.0, before - rate * passed_s) if rate else before
        found = max(found, _level(expected, now, (rate or _UNKNOWN_RATE) * _LARGE_S))
    return found


def _level(expected: float, now: float, large: float) -> Change:
    off = abs(now - expected)
    if off <= _SHARE * expected:
        return Change.NONE
    return Change.LARGE if off > large else Change.SMALL
