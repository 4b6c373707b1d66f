"""1,000 random schedules of faults and calls in virtual time, over which no invariant may break."""

from __future__ import annotations

import time
from collections import Counter

from hypothesis import HealthCheck, given, settings

from ..scenes.schedules import Schedule, holds, schedules

EXAMPLES = 1000


def main() -> None:
    """Raises what hypothesis raises, with the smallest schedule that breaks one."""
    played: Counter[str] = Counter()

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(schedules)
    def play(schedule: Schedule) -> None:
        played["schedules"] += 1
        played["calls"] += len(schedule.calls)
        played.update(holds(schedule))

    start = time.monotonic()
    play()
    print(f"random schedules in virtual time: no invariant broke, {time.monotonic() - start:.0f} s")
    print("  " + ", ".join(f"{count} {what}" for what, count in played.items()))
