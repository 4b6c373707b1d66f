"""The invariants of the design over random faults in virtual time. A thousand of them: bench ``schedules``."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from .schedules import Schedule, holds, schedules


@pytest.mark.slow
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(schedules)
def test_no_invariant_breaks_whatever_happens(schedule: Schedule) -> None:
    holds(schedule)
