"""What is worth telling a subscriber before its time: what it could not have foreseen.

A subscriber drains the tokens that it was told of at the rates that it was told, as the design has it. So a steady
drain is no change; what departs from it by more than a tenth is.
"""

from __future__ import annotations

from ..core.load_report import LoadReport

_SHARE = 0.1
_LEAST_TOKENS = 64


def changed(told: LoadReport, fresh: LoadReport) -> bool:
    """Whether ``fresh`` is more than 10 % off what ``told`` lets one expect."""
    if fresh.state is not told.state or fresh.models != told.models:
        return True
    passed_s = fresh.at - told.at
    return (
        _differs(told.running, fresh.running, 0)
        or _differs(told.waiting, fresh.waiting, 0)
        or _differs(_drained(told.prefill_tokens, told.prefill_tokens_per_s, passed_s), fresh.prefill_tokens)
        or _differs(_drained(told.decode_tokens, told.decode_tokens_per_s, passed_s), fresh.decode_tokens)
    )


def _drained(tokens: int | None, rate: float | None, passed_s: float) -> float | None:
    return tokens if not tokens or not rate else max(0.0, tokens - rate * passed_s)


def _differs(told: float | None, fresh: float | None, least: int = _LEAST_TOKENS) -> bool:
    if told is None or fresh is None:
        return told is not fresh
    return abs(fresh - told) > max(_SHARE * told, least)
