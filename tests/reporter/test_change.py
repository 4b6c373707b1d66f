"""What is worth telling a subscriber before its time."""

from __future__ import annotations

from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.reporter.change import LARGE, Expectation


def report(running: int, waiting: int, at: float = 0.0) -> LoadReport:
    return LoadReport(
        source="test", at=at, state=State.READY, running=running, waiting=waiting, batch_limit=8
    )


def test_a_place_that_those_who_wait_there_will_take_is_not_free() -> None:
    told = Expectation(report(8, 5))

    assert told.change(report(7, 3, 0.1)) != LARGE
    assert told.change(report(7, 0, 0.1)) == LARGE
