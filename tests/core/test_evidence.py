"""Of whom calls tell nothing, and what a health check proves of them."""

from __future__ import annotations

from random import Random
from typing import NamedTuple

import pytest

from mlbalance_client.config import OutlierDetectionConfig, PickingConfig, SlowStartConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.health.fitness import News
from mlbalance_client.core.health.outlier import Failure, Outliers, Proof
from mlbalance_client.core.health.slow_start import SlowStart
from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.core.model import Demand, Replica, ReplicaId, ReplicaState, Verdict
from mlbalance_client.events import ReplicaEjected, ReplicaReturned

A, B, C = (ReplicaId(name) for name in "abc")
REPLICAS = [Replica(id_, f"http://{id_}:1") for id_ in (A, B, C)]


class World(NamedTuple):
    fleet: Fleet
    news: list[News]

    def unproven(self, now: float) -> dict[ReplicaId, Proof]:
        return {each.replica.id: each.needs for each in self.fleet.fitness.without_evidence(now, 10.0)}

    def call(self, to: ReplicaId, now: float, failure: Failure | None = None) -> None:
        others = [id_ for id_ in (A, B, C) if id_ != to]
        pick = self.fleet.pick(Demand(fingerprint(b"x"), 10, 10), now, others)
        if failure is not None:
            pick.failed(now, kind=failure)
        pick.settle(Verdict.OK if failure is None else Verdict.FAILED, now)

    def out(self) -> list[int]:
        return [ejection.place for ejection in self.fleet.fitness.outliers.out]


@pytest.fixture
def world() -> World:
    news: list[News] = []
    rng = Random(1)
    settings = OutlierDetectionConfig(consecutive_failures=2, rest_base_s=0)
    fleet = Fleet(
        PickingConfig(policy="round_robin"),
        rng,
        expiry_s=60.0,
        outliers=Outliers(settings, rng),
        slow_start=SlowStart(SlowStartConfig()),
        tell=news.append,
    )
    fleet.update(REPLICAS, 0.0)
    return World(fleet, news)


def test_a_stream_that_goes_on_tells_of_its_replica(world: World) -> None:
    pick = world.fleet.pick(Demand(fingerprint(b"x"), 10, 10), 0.0, [B, C])
    pick.first_content(1.0)
    pick.piece(1.0, 9.0)

    assert set(world.unproven(12.0)) == {B, C}
    assert set(world.unproven(19.0)) == {A, B, C}


def test_a_replica_is_silent_when_nobody_has_told_of_it_for_long(world: World) -> None:
    assert world.unproven(9.0) == {}
    world.call(A, 5.0)
    assert world.unproven(12.0) == {B: Proof.SYSTEM, C: Proof.SYSTEM}
    world.fleet.fitness.checked(B, 12.0, Proof.SYSTEM)
    assert world.unproven(13.0) == {C: Proof.SYSTEM}
    world.fleet.fitness.check_failed(C, 13.0, 13.0, Failure.SILENT)
    assert world.unproven(14.0) == {}


def eject(world: World, failure: Failure) -> None:
    world.call(B, 1.0)
    world.call(C, 1.0)
    world.call(A, 1.0, failure)
    world.call(A, 1.0, failure)
    assert len(world.out()) == 1
    assert isinstance(world.news[-1], ReplicaEjected)


@pytest.mark.parametrize(
    ("failure", "needs"), [(Failure.ERROR, Proof.MODEL), (Failure.UNREACHABLE, Proof.SYSTEM)]
)
def test_an_ejection_ends_by_what_proves_its_evidence_wrong(
    world: World, failure: Failure, needs: Proof
) -> None:
    eject(world, failure)
    assert world.unproven(2.0) == {A: needs}
    if needs is Proof.MODEL:
        world.fleet.fitness.checked(A, 2.0, Proof.SYSTEM)
        assert world.unproven(2.0) == {A: needs}

    world.fleet.fitness.checked(A, 3.0, needs)
    assert world.out() == []
    assert isinstance(world.news[-1], ReplicaReturned)
    # A server that answers is yet to show that its model does; a model that answered has shown it.
    assert world.unproven(3.0) == ({A: Proof.MODEL} if needs is Proof.SYSTEM else {})


def test_a_failed_check_of_one_on_trial_sends_it_out_again_for_longer(world: World) -> None:
    eject(world, Failure.UNREACHABLE)
    world.fleet.fitness.checked(A, 3.0, Proof.SYSTEM)
    world.fleet.fitness.check_failed(A, 4.0, 4.0, Failure.UNREACHABLE)
    assert len(world.out()) == 1
    again = world.news[-1]
    assert isinstance(again, ReplicaEjected)
    assert again.count == 2


def test_a_failed_check_of_an_ejected_one_changes_nothing(world: World) -> None:
    eject(world, Failure.ERROR)
    told = list(world.news)
    world.fleet.fitness.check_failed(A, 2.0, 2.0, Failure.ERROR)
    assert world.news == told


def test_a_check_from_before_its_return_says_nothing_of_a_replica(world: World) -> None:
    eject(world, Failure.SILENT)
    (ejection,) = world.fleet.fitness.outliers.out
    world.call(B, ejection.until + 0.1)
    told = list(world.news)
    assert isinstance(told[-1], ReplicaReturned)

    assert not world.fleet.fitness.check_failed(A, ejection.until - 5.0, ejection.until + 2.0, Failure.SILENT)
    assert world.news == told

    assert world.fleet.fitness.check_failed(A, ejection.until + 1.0, ejection.until + 3.0, Failure.SILENT)
    assert len(world.out()) == 1


def test_no_check_speaks_against_slowness(world: World) -> None:
    world.fleet.fitness.eject(world.fleet.fitness.outliers.lags(0, 10.0, 1.0), 1.0)
    assert len(world.out()) == 1
    assert world.unproven(1.0) == {}
    world.fleet.fitness.checked(A, 2.0, Proof.MODEL)
    assert len(world.out()) == 1


def test_who_takes_no_calls_by_its_own_word_or_the_registrys_is_left_in_peace(world: World) -> None:
    for id_, state in ((A, State.ASLEEP), (B, State.DRAINING)):
        world.fleet.hear(id_, LoadReport(source="x", at=1.0, state=state))
    world.fleet.update([*REPLICAS[:2], Replica(C, "http://c:1", state=ReplicaState.DRAINING)], 1.0)
    assert world.unproven(30.0) == {}


@pytest.mark.parametrize(
    ("state", "trial"),
    [(State.STARTING, True), (State.ASLEEP, True), (State.OVERLOADED, False), (State.DRAINING, False)],
)
def test_only_who_was_cold_starts_slowly(world: World, state: State, trial: bool) -> None:
    """An overloaded fleet that was led up anew would be overloaded elsewhere at once."""
    world.fleet.hear(A, LoadReport(source="stream", at=1.0, epoch="e", seq=1, state=state))
    world.fleet.hear(A, LoadReport(source="stream", at=2.0, epoch="e", seq=2, state=State.READY))

    assert world.fleet.fitness.slow_start.on_trial(0) is trial


def test_of_who_is_gone_nothing_is_heard(world: World) -> None:
    world.fleet.update(REPLICAS[:2], 1.0)
    world.fleet.fitness.checked(C, 2.0, Proof.MODEL)
    world.fleet.fitness.check_failed(C, 2.0, 2.0, Failure.ERROR)
    assert world.unproven(20.0) == {A: Proof.SYSTEM, B: Proof.SYSTEM}


def test_one_that_fails_on_trial_after_slowness_is_not_let_back_by_a_check(world: World) -> None:
    world.fleet.fitness.eject(world.fleet.fitness.outliers.lags(0, 10.0, 1.0), 1.0)
    (ejection,) = world.fleet.fitness.outliers.out
    world.call(B, ejection.until + 0.1)
    assert world.out() == []
    world.fleet.fitness.check_failed(A, ejection.until + 0.2, ejection.until + 0.2, Failure.ERROR)
    assert len(world.out()) == 1
    assert A not in world.unproven(ejection.until + 0.3)


def test_where_checks_run_no_call_goes_to_one_that_refuses_connections_until_a_check_reaches_it(
    world: World,
) -> None:
    world.fleet.fitness.outliers.awaits_checks = True
    for _ in range(2):
        world.call(A, 1.0, Failure.UNREACHABLE)
    assert world.out() == [0]
    for now in range(10, 400, 10):
        world.fleet.fitness.check_failed(A, float(now), float(now), Failure.UNREACHABLE)
        assert world.fleet.pick(Demand(fingerprint(b"x"), 10, 10), float(now)).replica.id != A

    world.fleet.fitness.reached(A, 401.0)

    assert world.out() == []


def test_who_refuses_one_connection_gets_no_call_before_a_check_has_reached_it(world: World) -> None:
    """It is not ejected: one refusal may be its client's, and then all rest, and are asked nevertheless."""
    world.fleet.fitness.outliers.awaits_checks = True
    world.call(A, 1.0, Failure.UNREACHABLE)
    demand = Demand(fingerprint(b"x"), 10, 10)
    for now in range(2, 9):
        assert world.fleet.pick(demand, float(now)).replica.id != A
        assert world.unproven(float(now)) == {A: Proof.SYSTEM}
    assert world.out() == []

    world.fleet.fitness.reached(A, 9.0)

    assert world.unproven(9.5) == {}
    assert A in {world.fleet.pick(demand, 9.5).replica.id for _ in range(3)}


def test_who_refuses_connections_is_called_again_if_no_check_comes(world: World) -> None:
    world.fleet.fitness.outliers.awaits_checks = True
    world.call(A, 1.0, Failure.UNREACHABLE)

    assert A in {world.fleet.pick(Demand(fingerprint(b"x"), 10, 10), 31.5).replica.id for _ in range(3)}


def test_without_news_of_checks_it_is_tried_after_all(world: World) -> None:
    world.fleet.fitness.outliers.awaits_checks = True
    for _ in range(2):
        world.call(A, 1.0, Failure.UNREACHABLE)

    world.call(B, 70.0)

    assert world.out() == []


def test_one_whose_connections_broke_stays_out_while_checks_find_it_refusing_them(world: World) -> None:
    world.fleet.fitness.outliers.awaits_checks = True
    for _ in range(2):
        world.call(A, 1.0, Failure.BROKEN)
    for now in range(10, 100, 10):
        world.fleet.fitness.check_failed(A, float(now), float(now), Failure.UNREACHABLE)
        world.call(B, float(now))

    assert [ejection.unreachable for ejection in world.fleet.fitness.outliers.out] == [True]


@pytest.mark.parametrize("checks_run", [True, False])
@pytest.mark.parametrize("answer", ["content", "served", "busy", "no such model"])
def test_who_answers_a_call_does_not_refuse_connections_any_more(
    world: World, checks_run: bool, answer: str
) -> None:
    """All were killed, one is back: the call that found it there proves more than a check."""
    fleet = world.fleet
    fleet.fitness.outliers.awaits_checks = checks_run
    for id_ in (A, B, C):
        for _ in range(2):
            world.call(id_, 1.0, Failure.UNREACHABLE)
    assert sorted(world.out()) == [0, 1, 2]

    pick = fleet.pick(Demand(fingerprint(b"x"), 10, 10), 2.0, [B, C])
    if answer == "content":
        pick.first_content(2.5)
    elif answer == "served":
        pick.settle(Verdict.OK, 2.5)
    elif answer == "busy":
        pick.failed(2.5, 0.1, Failure.PUSHBACK)
    else:
        pick.lacks_model(2.5)

    assert sorted(world.out()) == [1, 2]
    assert isinstance(world.news[-1], ReplicaReturned)
    assert fleet.fitness.slow_start.on_trial(0)
    demand = Demand(fingerprint(b"x"), 10, 10, model="another", replayable=False)
    assert {fleet.pick(demand, 2.7).replica.id for _ in range(4)} == {A}


def test_who_refused_one_connection_and_answers_the_next_call_rests_no_more(world: World) -> None:
    world.fleet.fitness.outliers.awaits_checks = True
    world.call(A, 1.0, Failure.UNREACHABLE)
    assert A not in {world.fleet.pick(Demand(fingerprint(b"x"), 10, 10), 2.0).replica.id for _ in range(3)}

    world.call(A, 2.0)

    assert A in {world.fleet.pick(Demand(fingerprint(b"x"), 10, 10), 2.0).replica.id for _ in range(3)}
    assert world.unproven(2.0) == {}


def test_an_answer_to_a_call_from_before_proves_nothing_of_new_connections(world: World) -> None:
    world.fleet.fitness.outliers.awaits_checks = True
    stream = world.fleet.pick(Demand(fingerprint(b"x"), 10, 10), 0.5, [B, C])
    for _ in range(2):
        world.call(A, 1.0, Failure.UNREACHABLE)

    stream.first_content(2.0)
    stream.settle(Verdict.OK, 3.0)

    assert world.out() == [0]
    assert world.unproven(3.0) == {A: Proof.SYSTEM}


def test_one_that_can_be_reached_again_is_asked_before_those_that_cannot_though_it_stays_out(
    world: World,
) -> None:
    fleet = world.fleet
    fleet.fitness.outliers.awaits_checks = True
    for _ in range(2):
        world.call(A, 1.0, Failure.BROKEN)
    for id_ in (A, B, C):
        for _ in range(2):
            world.call(id_, 1.0, Failure.UNREACHABLE)

    fleet.fitness.reached(A, 2.0)

    assert sorted(world.out()) == [0, 1, 2]
    assert {fleet.pick(Demand(fingerprint(b"x"), 10, 10), 2.5).replica.id for _ in range(4)} == {A}


@pytest.mark.parametrize(
    ("failing", "passed", "words"),
    [
        ([Proof.SYSTEM, Proof.SYSTEM], Proof.SYSTEM, "it failed 2 checks in a row"),
        ([Proof.SYSTEM, Proof.MODEL], Proof.MODEL, "it failed 2 checks in a row"),
        ([Proof.CALLS, Proof.SYSTEM], Proof.MODEL, "it failed 1 call and 1 check in a row"),
        ([Proof.CALLS, Proof.CALLS], Proof.MODEL, "it failed 2 calls in a row"),
    ],
)
def test_who_failed_checks_is_said_to_have_failed_checks_and_returns_by_passing_such(
    world: World, failing: list[Proof], passed: Proof, words: str
) -> None:
    for by in failing:
        if by is Proof.CALLS:
            world.call(A, 1.0, Failure.ERROR)
        else:
            world.fleet.fitness.check_failed(A, 1.0, 1.0, Failure.ERROR, by)

    ejected = world.news[-1]
    assert isinstance(ejected, ReplicaEjected)
    assert ejected.why == f"{words}, the last time it answered with an error"
    assert world.unproven(2.0) == {A: passed}
    world.fleet.fitness.checked(A, 2.0, passed)
    assert world.out() == []


def test_checks_are_none_of_the_calls_of_which_a_share_failed() -> None:
    rng = Random(1)
    news: list[News] = []
    fleet = Fleet(
        PickingConfig(), rng, outliers=Outliers(OutlierDetectionConfig(rest_base_s=0), rng), tell=news.append
    )
    fleet.update(REPLICAS, 0.0)
    world = World(fleet, news)
    for now in range(1, 41):
        world.call(A, float(now))
        fleet.fitness.check_failed(A, now + 0.5, now + 0.5, Failure.ERROR, Proof.SYSTEM)

    assert world.news == []


def test_checks_of_the_system_that_fail_now_and_then_are_not_in_a_row(world: World) -> None:
    for now in range(1, 9):
        world.fleet.fitness.check_failed(A, float(now), float(now), Failure.UNREACHABLE, Proof.SYSTEM)
        world.fleet.fitness.checked(A, now + 0.5, Proof.SYSTEM)

    assert world.news == []


def test_one_on_trial_that_fails_a_check_of_its_system_is_back_when_it_passes_one(world: World) -> None:
    eject(world, Failure.UNREACHABLE)
    world.fleet.fitness.checked(A, 3.0, Proof.SYSTEM)
    world.fleet.fitness.check_failed(A, 4.0, 4.0, Failure.ERROR, Proof.SYSTEM)
    ejected = world.news[-1]
    assert isinstance(ejected, ReplicaEjected)
    assert ejected.why == "it answered with an error on trial, when it was checked"

    world.fleet.fitness.checked(A, 5.0, Proof.SYSTEM)

    assert world.out() == []


@pytest.mark.parametrize(("checks_run", "at_first_s"), [(True, 60.0), (False, 5.0)])
def test_one_that_refuses_connections_is_out_as_long_as_is_documented(
    world: World, checks_run: bool, at_first_s: float
) -> None:
    world.fleet.fitness.outliers.awaits_checks = checks_run
    for number in (1, 2):
        for _ in range(2):
            world.call(A, 1.0, Failure.UNREACHABLE)
        ejected = world.news[-1]
        assert isinstance(ejected, ReplicaEjected)
        assert (ejected.count, ejected.for_s) == (number, pytest.approx(at_first_s * number, rel=0.1))
        world.fleet.fitness.checked(A, 1.0, Proof.SYSTEM)
