"""Whom a report takes out of the pick, for which model and for how long."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from mlbalance_client.core.health.absences import Absences
from mlbalance_client.core.health.fitness import Fitness
from mlbalance_client.core.health.pushback import Pushback
from mlbalance_client.core.health.readiness import Readiness
from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.core.model import Replica, ReplicaId

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


def test_a_report_by_which_a_model_opens_says_so() -> None:
    readiness = Readiness(EXPIRY_S)

    heard = [
        readiness.hear(0, said(float(at), State.READY, a=state))
        for at, state in enumerate(("starting", "starting", "ready", "ready"))
    ]
    assert heard == [False, False, True, False]


class TestAbsences:
    """Who has answered that it lacks a model."""

    def absences(self) -> Absences:
        return Absences(Pushback(1.0, 30.0).alike)

    def test_it_rests_for_that_model_alone_and_longer_each_time(self) -> None:
        absences = self.absences()
        absences.said(1, "a", 0.0)

        assert [absences.lacking(model, 0.9) for model in ("a", "b", None)] == [0b10, 0, 0]
        assert absences.lacking("a", 1.0) == 0
        absences.said(1, "a", 1.0)
        assert absences.lacking("a", 2.9) == 0b10

    def test_a_call_that_it_serves_ends_that(self) -> None:
        absences = self.absences()
        absences.said(1, "a", 0.0)
        absences.served(1, "b", 0.1)
        assert absences.lacking("a", 0.2) == 0b10

        absences.served(1, "a", 0.1)
        assert absences.lacking("a", 0.2) == 0

    def test_one_that_is_gone_leaves_its_place_open(self) -> None:
        absences = self.absences()
        absences.said(1, "a", 0.0)
        absences.drop(1)

        assert absences.lacking("a", 0.0) == 0

    def test_no_more_models_are_remembered_than_a_fleet_has(self) -> None:
        absences = self.absences()
        for number in range(10_000):
            absences.said(0, str(number), 0.0)

        assert sum(absences.lacking(str(number), 0.0) for number in range(10_000)) == 256


@pytest.mark.parametrize("news", ["model", "restart"])
def test_a_report_that_tells_of_a_change_lets_calls_try_again(news: str) -> None:
    replica = Replica(ReplicaId("a"), "http://a")
    fitness = Fitness({0: replica}, {replica.id: 0}, Random(1), EXPIRY_S)
    model = {"m": "starting"} if news == "model" else {}
    fitness.hear(0, replace(said(0.0, State.READY, **model), epoch="1"))
    fitness.absences.said(0, "m", 0.5)
    assert fitness.unwilling("m", 0.6, replayable=True) == 1

    fitness.hear(0, replace(said(0.6, State.READY, m="ready"), epoch="1" if news == "model" else "2"))
    assert fitness.unwilling("m", 0.6, replayable=True) == 0
