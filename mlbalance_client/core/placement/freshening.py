"""Whom to ask how it is before a call is placed, in the manner of Prequal: its likeliest replicas, if that is worth it.

Asking for a call takes at most a twentieth of the time that its own prefill takes. So it takes at most a twentieth of
the fleet's time however many clients there are, which no polling can promise.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter

from .picker import Decision

FRESH_S = 0.05
"""A younger report is as good as a new one, in seconds."""

_MOST = 8
_COST_PARTS = 20.0
_score = attrgetter("score_s")


def whom_to_ask(
    decision: Decision, prompt_tokens: int, least_tokens: int, cost_s: Callable[[int], float]
) -> list[int]:
    """Places to ask before the call is placed as ``decision`` would have it; none for a call of few uncached tokens.

    ``cost_s``: what asking at a place takes, in seconds; 0 where nothing need be asked, inf where it cannot be.
    """
    best = sorted(decision.candidates, key=_score)[:_MOST]
    if prompt_tokens - best[0].hit_tokens < least_tokens:
        return []
    left_s = best[0].own_s / _COST_PARTS
    asked = []
    for candidate in best:
        if 0.0 < (takes_s := cost_s(candidate.place)) <= left_s:
            asked.append(candidate.place)
            left_s -= takes_s
    return asked
