"""The attempts machine: rules by example, limits for any sequence of events."""

from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.attempts import Attempts, Deliver, GiveUp, Start
from mlbalance_client.core.model import ReplicaId
from mlbalance_client.errors import FailureKind

A, B, C = map(ReplicaId, "abc")


def test_what_was_never_sent_goes_elsewhere_even_if_it_may_not_be_sent_twice() -> None:
    plan = Attempts(replayable=False, max_sent=1)
    plan.begin()
    plan.started(A)

    assert plan.failed(FailureKind.CONNECT) == Start(frozenset({A}))


def test_what_was_sent_goes_elsewhere_only_if_replayable_and_within_the_limit() -> None:
    for replayable, limit, expected in (
        (True, 2, Start(frozenset({A}))),
        (False, 2, GiveUp()),
        (True, 1, GiveUp()),
    ):
        plan = Attempts(replayable=replayable, max_sent=limit)
        plan.begin()
        plan.started(A)

        assert plan.failed(FailureKind.READ) == expected


def test_the_callers_own_timeout_ends_the_call() -> None:
    plan = Attempts(replayable=True, max_sent=2)
    plan.begin()
    plan.started(A)

    assert plan.failed(FailureKind.READ_TIMEOUT) == GiveUp()


def test_an_answer_in_hand_is_delivered_when_the_next_attempt_gets_none() -> None:
    plan = Attempts(replayable=True, max_sent=2)
    plan.begin()
    plan.started(A)
    assert plan.refused(1, 503) == Start(frozenset({A}))
    plan.started(B)

    assert plan.failed(FailureKind.READ) == Deliver(1, exhausted=True)


def test_answers_that_no_other_replica_would_give_differently_are_delivered() -> None:
    for status in (400, 401, 403, 404, 413, 422):
        plan = Attempts(replayable=True, max_sent=2)
        plan.begin()
        plan.started(A)

        assert plan.refused(1, status) == Deliver(1, exhausted=False)


def test_without_another_replica_the_failing_answer_is_delivered() -> None:
    plan = Attempts(replayable=True, max_sent=2)
    plan.begin()
    plan.started(A)
    plan.refused(1, 503)

    assert plan.nobody_left() == Deliver(1, exhausted=True)


outcomes = st.lists(st.sampled_from(["refused", "content", *FailureKind]), max_size=30)


@given(outcomes, st.booleans(), st.integers(1, 5), st.integers(1, 6))
def test_limits_hold_for_any_outcomes(outcomes: list, replayable: bool, limit: int, replicas: int) -> None:
    plan = Attempts(replayable=replayable, max_sent=limit)
    command = plan.begin()
    tried: list[ReplicaId] = []
    sent = 0
    for outcome in outcomes:
        if not isinstance(command, Start):
            break
        left = [r for r in map(ReplicaId, map(str, range(replicas))) if r not in command.avoid]
        if not left:
            command = plan.nobody_left()
            continue
        assert left[0] not in tried
        tried.append(left[0])
        plan.started(left[0])
        if outcome == "content":
            command = plan.content(len(tried))
        elif outcome == "refused":
            sent += 1
            command = plan.refused(len(tried), 503)
        else:
            sent += not outcome.never_sent
            command = plan.failed(outcome)
        if outcome == "content":
            assert command == Deliver(len(tried))

    assert sent <= (limit if replayable else 1)
    assert len(tried) <= replicas
