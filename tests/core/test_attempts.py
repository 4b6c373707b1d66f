"""The attempts machine: rules by example, limits for any sequence of events."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.backoff import RetryStrategies
from mlbalance_client.config import RetriesConfig
from mlbalance_client.core.attempts import Attempts, Deliver, GiveUp, Hints, Others, Pause, Start, Wait
from mlbalance_client.core.budget import Budget
from mlbalance_client.core.model import ReplicaId
from mlbalance_client.errors import FailureKind

A, B, C = map(ReplicaId, "abc")


def attempts(*, replayable: bool = True, budget: Budget | None = None, **knobs: object) -> Attempts:
    hedges = knobs.pop("max_hedges", 1)
    deadline_at = knobs.pop("deadline_at", float("inf"))
    strategies = RetryStrategies(RetriesConfig(**knobs), Random(1))
    plan = Attempts(
        replayable,
        strategies,
        budget or Budget(0.1, 10),
        0.0,
        deadline_at,
        hedges,  # type: ignore[arg-type]
    )
    plan.begin()
    return plan


def test_what_was_never_sent_goes_elsewhere_even_if_it_may_not_be_sent_twice() -> None:
    plan = attempts(replayable=False, max_attempts=1)
    plan.started(A)

    assert plan.failed(1, FailureKind.CONNECT, 0.0) == Start(frozenset({A}))


def test_what_was_sent_goes_elsewhere_only_if_replayable_and_within_the_limit() -> None:
    for replayable, limit, expected in (
        (True, 2, Start(frozenset({A}))),
        (False, 2, GiveUp()),
        (True, 1, GiveUp()),
    ):
        plan = attempts(replayable=replayable, max_attempts=limit)
        plan.started(A)

        assert plan.failed(1, FailureKind.READ, 0.0) == expected


@pytest.mark.parametrize(
    ("knobs", "others", "why"),
    [
        ({"replayable": False}, Others.WILLING, "sent twice"),
        ({"max_attempts": 1}, Others.WILLING, "retries.max_attempts"),
        ({"budget": Budget(0.0, 0)}, Others.WILLING, "retries.budget_ratio"),
        ({"first_wait_s": 1.0, "deadline_at": 0.5}, Others.WILLING, "deadline"),
        ({}, Others.NOBODY, "no other replica"),
    ],
)
def test_it_says_why_a_failure_is_not_tried_again(knobs: dict[str, Any], others: Others, why: str) -> None:
    plan = attempts(**knobs)
    plan.started(A)
    assert plan.refused(1, 500, 0.0, others=others) == Deliver(1, exhausted=True)
    assert why in plan.why_ended


def test_a_second_sending_to_the_same_replica_is_once_a_call_and_no_attempt_of_its_own() -> None:
    """Two connections of a replica may have been closed, and another has not been asked yet."""
    plan = attempts()
    plan.started(A)
    assert plan.begin_resend()
    plan.end_resend(sent=True)

    assert not plan.may_send_again
    assert plan.failed(1, FailureKind.READ, 0.0) == Start(frozenset({A}))
    plan.started(B)
    assert not plan.may_send_again
    assert not plan.begin_resend()
    assert plan.failed(2, FailureKind.READ, 0.0) == GiveUp()
    assert not attempts(max_attempts=1).may_send_again
    assert not attempts(replayable=False).may_send_again
    assert not attempts(budget=Budget(0.0, 0)).may_send_again


def test_what_goes_to_its_replica_once_more_is_paid_before_it_goes() -> None:
    budget = Budget(0.0, 2)
    plans = [attempts(budget=budget) for _ in range(20)]
    for plan in plans:
        plan.started(A)
    going = [plan for plan in plans if plan.begin_resend()]
    assert len(going) == 2

    for plan in going:
        plan.end_resend(sent=False)  # which gives it back
    assert sum(plan.begin_resend() for plan in plans) == 2


def test_the_callers_own_timeout_ends_the_call() -> None:
    plan = attempts()
    plan.started(A)

    assert plan.failed(1, FailureKind.READ_TIMEOUT, 0.0) == GiveUp()


def test_an_answer_in_hand_is_delivered_when_the_next_attempt_gets_none() -> None:
    plan = attempts()
    plan.started(A)
    assert plan.refused(1, 503, 0.0) == Start(frozenset({A}))
    plan.started(B)

    assert plan.failed(2, FailureKind.READ, 0.0) == Deliver(1, exhausted=True)


def test_answers_that_no_other_replica_would_give_differently_are_delivered() -> None:
    for status in (400, 401, 403, 404, 413, 422):
        plan = attempts()
        plan.started(A)

        assert plan.refused(1, status, 0.0) == Deliver(1, exhausted=False)


class TestWithoutTheModel:
    """A replica that lacks a call's model says nothing against another, unless all lack it."""

    @staticmethod
    def answered(others: Others, budget: Budget | None = None) -> object:
        plan = attempts(budget=budget)
        plan.started(A)
        return plan.refused(1, 404, 0.0, others=others, lacks_model=True)

    def test_it_goes_to_one_that_takes_calls_within_the_budget(self) -> None:
        assert self.answered(Others.WILLING) == Start(frozenset({A}))
        assert self.answered(Others.WILLING, Budget(0.0, 0)) == Deliver(1, exhausted=True)

    @pytest.mark.parametrize("others", [Others.NOBODY, Others.RESTING])
    def test_else_it_is_the_calls_own_fault(self, others: Others) -> None:
        assert self.answered(others) == Deliver(1)

    def test_it_is_no_failure_that_makes_retries_dearer(self) -> None:
        budget = Budget(0.0, 10)
        plan = attempts(budget=budget, max_attempts=3)
        for number, replica in enumerate((A, B), start=1):
            plan.started(replica)
            plan.refused(number, 404, 0.0, lacks_model=True)

        assert sum(budget.spend() for _ in range(20)) == 8

    def test_what_another_has_answered_says_more(self) -> None:
        plan = attempts()
        plan.started(A)
        plan.refused(1, 503, 0.0)
        plan.started(B)

        assert plan.refused(2, 404, 0.0, others=Others.NOBODY, lacks_model=True) == Deliver(1, exhausted=True)

    def test_it_does_not_end_another_attempt_under_way(self) -> None:
        plan = TestTwoAtOnce.hedged()

        assert plan.refused(2, 404, 0.0, others=Others.NOBODY, lacks_model=True) == Wait()
        assert plan.content(1) == Deliver(1)


def test_without_another_replica_the_failing_answer_is_delivered() -> None:
    plan = attempts()
    plan.started(A)
    plan.refused(1, 503, 0.0)

    assert plan.nobody_left() == Deliver(1, exhausted=True)


@pytest.mark.parametrize(
    ("said", "expected"), [(False, Deliver(1, exhausted=True)), (True, Start(frozenset({A})))]
)
@pytest.mark.parametrize("status", [409, 503])
def test_what_a_replica_says_of_retrying_comes_before_its_status(
    status: int, said: bool, expected: object
) -> None:
    plan = attempts()
    plan.started(A)
    answer = plan.refused(1, status, 0.0, hints=Hints(retry=said))

    assert answer == (Deliver(1) if status == 409 and not said else expected)


@pytest.mark.parametrize("status", [429, 503, 529])
def test_when_the_whole_fleet_pushes_back_its_answer_is_delivered_at_once(status: int) -> None:
    plan = attempts()
    plan.started(A)

    assert plan.refused(1, status, 0.0, others=Others.RESTING) == Deliver(1, exhausted=True)


@pytest.mark.parametrize("status", [500, 502, 504])
def test_what_is_no_sign_of_load_goes_even_to_one_that_rests(status: int) -> None:
    plan = attempts()
    plan.started(A)

    assert plan.refused(1, status, 0.0, others=Others.RESTING) == Start(frozenset({A}))


@pytest.mark.parametrize(
    ("hint_s", "deadline_at", "waits"),
    [(0.5, 100.0, True), (1.0, 100.0, True), (1.5, 100.0, False), (0.5, 10.4, False), (1e99, 1e300, False)],
)
def test_a_fleet_that_pushes_back_is_waited_for_if_that_is_short(
    hint_s: float, deadline_at: float, waits: bool
) -> None:
    plan = attempts(deadline_at=deadline_at)
    plan.started(A)
    command = plan.refused(1, 429, 10.0, hints=Hints(hint_s), others=Others.NOBODY)

    if not waits:
        assert command == Deliver(1, exhausted=True)
        return
    assert isinstance(command, Pause)
    assert 10.0 + hint_s <= command.until <= 10.0 + 1.25 * hint_s
    assert plan.resumed() == Start(frozenset())
    plan.started(A)
    assert plan.refused(2, 429, 11.0, hints=Hints(hint_s), others=Others.NOBODY) == Deliver(2, exhausted=True)


def test_an_empty_budget_forbids_retries_but_not_what_was_never_sent() -> None:
    budget = Budget(0.0, 1)
    first, second, third = (attempts(budget=budget) for _ in range(3))
    for plan in (first, second, third):
        plan.started(A)

    assert first.refused(1, 503, 0.0) == Start(frozenset({A}))
    assert second.refused(1, 503, 0.0) == Deliver(1, exhausted=True)
    assert third.failed(1, FailureKind.CONNECT, 0.0) == Start(frozenset({A}))


def test_what_fails_where_nobody_else_is_left_costs_no_budget() -> None:
    budget = Budget(0.0, 1)
    for _ in range(10):
        plan = attempts(budget=budget)
        plan.started(A)
        assert plan.failed(1, FailureKind.READ, 0.0, others=Others.NOBODY) == GiveUp()

    assert budget.covers()


def test_calls_that_wait_for_the_same_time_do_not_all_come_at_once() -> None:
    strategies = RetryStrategies(RetriesConfig(), Random(1))
    waits_s = [strategies.heeds_s(0.5) for _ in range(100)]

    assert all(wait_s is not None and 0.5 <= wait_s <= 0.625 for wait_s in waits_s)
    known_s = [wait_s for wait_s in waits_s if wait_s is not None]
    assert max(known_s) - min(known_s) > 0.1


def test_waits_between_attempts_are_tenacitys() -> None:
    from tenacity import stop_after_delay, wait_fixed

    plan = attempts(wait=wait_fixed(2.0), stop=stop_after_delay(5.0))
    plan.started(A)
    command = plan.refused(1, 500, 1.0)
    assert isinstance(command, Pause)
    assert 3.0 <= command.until <= 3.5
    assert plan.resumed() == Start(frozenset({A}))
    plan.started(B)

    assert plan.refused(2, 500, 5.0) == Deliver(2, exhausted=True)


class TestTwoAtOnce:
    """A second attempt beside the first."""

    @staticmethod
    def hedged(**knobs: object) -> Attempts:
        plan = attempts(**knobs)
        plan.started(A)
        assert plan.may_hedge
        assert plan.started(B, hedge=True) == 2
        return plan

    def test_one_at_a_time_and_only_what_may_be_sent_twice(self) -> None:
        assert not self.hedged().may_hedge
        plan = attempts(replayable=False)
        plan.started(A)
        assert not plan.may_hedge

    @pytest.mark.parametrize("kind", [FailureKind.READ, FailureKind.CONNECT, FailureKind.PROTOCOL])
    def test_one_that_failed_is_replaced_once(self, kind: FailureKind) -> None:
        plan = self.hedged()
        plan.failed(2, kind, 1.0)
        assert plan.may_hedge

        plan.started(C, hedge=True)
        plan.failed(3, kind, 1.0)
        assert not plan.may_hedge

    @pytest.mark.parametrize("first", [1, 2])
    def test_the_first_content_is_delivered_whoever_comes_later(self, first: int) -> None:
        plan = self.hedged()

        assert plan.content(first) == Deliver(first)
        assert plan.content(3 - first) == Deliver(first)
        assert plan.winner == first

    @pytest.mark.parametrize("loser", [1, 2])
    @pytest.mark.parametrize("kind", [FailureKind.READ, FailureKind.CONNECT, FailureKind.READ_TIMEOUT])
    def test_one_that_fails_leaves_the_other_running(self, loser: int, kind: FailureKind) -> None:
        plan = self.hedged()

        assert plan.failed(loser, kind, 1.0) == Wait()
        assert plan.content(3 - loser) == Deliver(3 - loser)

    @pytest.mark.parametrize("loser", [1, 2])
    def test_one_that_is_refused_waits_for_the_other_and_is_held(self, loser: int) -> None:
        plan = self.hedged(max_attempts=1)

        assert plan.refused(loser, 503, 1.0) == Wait()
        assert plan.failed(3 - loser, FailureKind.READ, 2.0) == Deliver(loser, exhausted=True)

    @pytest.mark.parametrize("first", [1, 2])
    @pytest.mark.parametrize("other", [FailureKind.CONNECT, FailureKind.READ, 503])
    def test_the_first_that_was_never_sent_goes_elsewhere_free_whatever_became_of_the_second(
        self, first: int, other: FailureKind | int
    ) -> None:
        plan = self.hedged(budget=Budget(0.0, 0), max_attempts=1)
        ends = {
            1: lambda: plan.failed(1, FailureKind.CONNECT, 1.0),
            2: lambda: plan.refused(2, other, 1.0) if other == 503 else plan.failed(2, other, 1.0),
        }
        assert ends[first]() == Wait()
        assert ends[3 - first]() == Start(frozenset({A, B}))

        plan.started(C)
        answer = plan.failed(3, FailureKind.READ, 2.0)
        assert answer == (Deliver(2, exhausted=True) if other == 503 else GiveUp()), "but once only"

    @pytest.mark.parametrize("first", [1, 2])
    def test_what_says_not_to_retry_stops_even_what_was_never_sent(self, first: int) -> None:
        plan = self.hedged()
        ends = {
            1: lambda: plan.failed(1, FailureKind.CONNECT, 1.0),
            2: lambda: plan.refused(2, 503, 1.0, hints=Hints(retry=False)),
        }
        assert ends[first]() == Wait()
        assert ends[3 - first]() == Deliver(2, exhausted=True)

    @pytest.mark.parametrize("first", [1, 2])
    def test_the_first_that_was_sent_is_paid_for_whatever_became_of_the_second(self, first: int) -> None:
        plan = self.hedged(budget=Budget(0.0, 0))
        kinds = {1: FailureKind.READ, 2: FailureKind.CONNECT}
        assert plan.failed(first, kinds[first], 1.0) == Wait()
        assert plan.failed(3 - first, kinds[3 - first], 1.0) == GiveUp()

    @pytest.mark.parametrize("first", [1, 2])
    def test_what_is_the_same_everywhere_ends_both(self, first: int) -> None:
        assert self.hedged().refused(first, 400, 1.0) == Deliver(first)

    def test_when_both_have_failed_the_call_goes_on(self) -> None:
        plan = self.hedged()
        plan.failed(1, FailureKind.READ, 1.0)

        assert plan.refused(2, 500, 2.0) == Start(frozenset({A, B}))

    def test_what_says_not_to_retry_lets_the_other_run_but_starts_no_more(self) -> None:
        plan = self.hedged()
        assert plan.refused(1, 503, 1.0, hints=Hints(retry=False)) == Wait()
        assert not plan.may_hedge
        assert not plan.may_move(1.0)

        assert plan.failed(2, FailureKind.READ, 2.0) == Deliver(1, exhausted=True)


class Call:
    """One call driven by chance, and what it did."""

    def __init__(self, plan: Attempts) -> None:
        self.plan = plan
        self.command: object = plan.begin()
        self.running: dict[int, ReplicaId] = {}
        self.main: int | None = None
        self.sent = self.hedges = 0
        self.unsent: list[ReplicaId] = []


step = st.tuples(
    st.sampled_from(["refused", "content", "hedge", "late", *FailureKind]),
    st.sampled_from([200, 400, 404, 429, 500, 503]),
    st.booleans(),
    st.sampled_from([None, 0.1, 5.0, 1e99]),
    st.sampled_from([None, None, True, False]),
    st.integers(0, 3),
)


@given(
    st.lists(st.lists(step, max_size=14), max_size=12),
    st.booleans(),
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.1, 0.5]),
    st.integers(0, 3),
)
def test_limits_hold_for_any_outcomes(
    calls: list, replayable: bool, limit: int, replicas: int, hedges: int, ratio: float, reserve: int
) -> None:
    budget = Budget(ratio, reserve)
    strategies = RetryStrategies(RetriesConfig(max_attempts=limit), Random(1))
    everybody = [ReplicaId(str(i)) for i in range(replicas)]
    retries = [0]
    for steps in calls:
        call = Call(Attempts(replayable, strategies, budget, 0.0, 1e12, hedges))
        now = 0.0
        for what, status, held, hint_s, said, which in steps:
            now += 0.5
            call.command = perform(call, everybody)
            if isinstance(call.command, Deliver | GiveUp):
                break
            numbers = sorted(call.running)
            number = numbers[which % len(numbers)]
            if what == "hedge":
                left = [r for r in everybody if r not in call.plan.tried]
                if call.plan.may_hedge and left:
                    call.running[call.plan.started(left[0], hedge=True)] = left[0]
                    call.hedges += 1
                continue
            replica = call.running.pop(number)
            if what == "late":
                answer = call.plan.out_of_time()
                assert isinstance(answer, Deliver | GiveUp)
            elif what == "content":
                answer = call.plan.content(number)
                assert answer == Deliver(number)
            elif what == "refused":
                answer = call.plan.refused(
                    number, status, now, held=held, hints=Hints(hint_s, said), lacks_model=status == 404
                )
            else:
                answer = call.plan.failed(number, what, now)
                if what.never_sent and not call.plan.is_hedge(number):
                    call.sent -= 1
                    call.unsent.append(replica)
            call.command = answer if not (isinstance(answer, Wait) and call.running) else Wait()
            if not call.running:
                assert not isinstance(answer, Wait)
            if isinstance(answer, Deliver | GiveUp):
                assert call.plan.content(99) == answer, "after the commit point nothing changes"
                assert not call.plan.may_hedge
                assert not call.plan.may_send_again
                break
        assert call.sent <= (limit if replayable else 1)
        assert call.hedges <= (2 * hedges if replayable else 0)
        assert len(call.unsent) == len(set(call.unsent)), "unsent failovers: once per replica"
        retries.append(retries[-1] + max(0, call.sent - 1))
    for start in range(len(retries)):
        for end in range(start, len(retries)):
            assert retries[end] - retries[start] <= ratio * (end - start) + reserve + 1e-9


def perform(call: Call, everybody: list[ReplicaId]) -> object:
    """Do what the machine says until it waits for an attempt, or is through."""
    command = call.command
    while True:
        match command:
            case Pause():
                command = call.plan.resumed()
            case Start(avoid):
                left = [r for r in everybody if r not in avoid]
                if left:
                    call.running[call.plan.started(left[0])] = left[0]
                    call.sent += 1
                    return Wait()
                command = call.plan.nobody_left()
            case _:
                return command


@pytest.mark.parametrize("calls", [50, 200, 1000])
def test_an_outage_soon_ends_retries(calls: int) -> None:
    budget, sent = Budget(0.1, 20), 0
    for _ in range(calls):
        plan = attempts(budget=budget)
        command: object = Start(frozenset())
        while isinstance(command, Start):
            sent += 1
            command = plan.refused(plan.started(A), 500, 0.0)

    assert calls < sent <= 1.2 * calls


def test_many_calls_of_one_replica_that_dies_can_all_go_elsewhere() -> None:
    budget = Budget(0.1, 20)
    for _ in range(20):
        plan = attempts(budget=budget)
        plan.started(A)
        assert plan.failed(1, FailureKind.READ, 0.0) == Start(frozenset({A}))
        assert plan.content(plan.started(B)) == Deliver(2)


def test_no_more_calls_are_moved_than_the_budget_pays_for_and_none_of_them_fails_for_it() -> None:
    budget = Budget(0.0, 3)
    plans = [attempts(budget=budget) for _ in range(10)]
    for plan in plans:
        plan.started(A)
    going = []
    for plan in plans:  # all decide before the first of them goes
        if plan.may_move(1.0):
            plan.begin_move()
            going.append(plan)

    assert len(going) == 3
    assert [plan.moved(1) for plan in going] == [Start(frozenset({A}))] * 3
