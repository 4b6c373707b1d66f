"""Whom a report takes out of the pick, for which model and for how long."""

from __future__ import annotations

import pytest

from mlbalance_client.core.load_report import LoadReport, State
from mlbalance_client.core.readiness import Readiness

EXPIRY_S = 5.0


def said(at: float = 0.0, state: State | None = None, **models: str) -> LoadReport:
    return LoadReport(source="test", at=at, state=state, models=models, waiting=0)


@pytest.mark.parametrize("state", [State.STARTING, State.ASLEEP, State.DRAINING, State.OVERLOADED])
def test_one_that_says_it_takes_no_calls_gets_none_until_its_report_expires(state: State) -> None:
    readiness = Readiness(EXPIRY_S)
    readiness.hear(3, said(1.0, state))

    assert readiness.closed("m", 5.9) == 0b1000
    assert readiness.closed(None, 5.9) == 0b1000
    assert readiness.closed("m", 6.0) == 0


@pytest.mark.parametrize("state", [State.READY, State.WARMING])
def test_one_that_is_ready_or_warms_up_gets_calls_again(state: State) -> None:
    readiness = Readiness(EXPIRY_S)
    readiness.hear(0, said(0.0, State.DRAINING))
    readiness.hear(0, said(1.0, state))

    assert readiness.closed("m", 1.0) == 0


def test_a_model_that_is_not_ready_closes_the_replica_for_that_model_only() -> None:
    readiness = Readiness(EXPIRY_S)
    readiness.hear(0, said(0.0, State.READY, a="starting", b="ready", c="nonsense"))

    assert [readiness.closed(model, 1.0) for model in ("a", "b", "c", None)] == [1, 0, 0, 0]


def test_a_report_without_a_word_of_it_changes_nothing() -> None:
    readiness = Readiness(EXPIRY_S)
    readiness.hear(0, said(0.0, State.DRAINING))
    readiness.hear(0, said(1.0))

    assert readiness.closed("m", 2.0) == 1


def test_an_older_report_that_comes_late_changes_nothing() -> None:
    readiness = Readiness(EXPIRY_S)
    readiness.hear(0, said(2.0, State.READY))
    readiness.hear(0, said(1.0, State.STARTING))

    assert readiness.closed("m", 2.0) == 0


def test_one_that_is_gone_leaves_its_place_open() -> None:
    readiness = Readiness(EXPIRY_S)
    readiness.hear(0, said(0.0, State.DRAINING))
    readiness.drop(0)

    assert readiness.closed("m", 0.0) == 0
