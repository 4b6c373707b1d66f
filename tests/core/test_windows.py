"""How much a replica may be sent: by its grant, its limits, the work that stands there, else an adaptive limit."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from mlbalance_client.config import AdmissionConfig, PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet, Pick
from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.core.model import Demand, Replica, ReplicaId, Usage, Verdict

A, B = ReplicaId("a"), ReplicaId("b")


def fleet_of(*ids: ReplicaId, engine_queue_s: float = 3.0) -> Fleet:
    fleet = Fleet(
        PickingConfig(), Random(1), expiry_s=5.0, windows=AdmissionConfig(engine_queue_s=engine_queue_s)
    )
    fleet.update(Replica(id_, f"http://{id_}") for id_ in ids)
    return fleet


def demand(fleet: Fleet, tokens: int = 100) -> Demand:
    return fleet.demand(fingerprint(b"x"), text_bytes=10, prompt_tokens=tokens)


def report(at: float, **figures: object) -> LoadReport:
    return LoadReport(source="stream", at=at, **figures)  # type: ignore[arg-type]


def sent(fleet: Fleet, now: float, number: int = 0, tokens: int = 100) -> Pick | None:
    return fleet.try_pick(demand(fleet, tokens), now, number=number)


def test_a_grant_is_used_up_by_what_is_sent_after_it_and_only_once() -> None:
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, epoch="e", seq=1, free_requests=2, prefill_tokens=0))
    assert sent(fleet, 0.1, 1)
    assert sent(fleet, 0.1, 2)
    assert sent(fleet, 0.1, 3) is None

    # It counts the first one by now, and grants one more beyond it; the second is still on its way.
    fleet.hear(A, report(0.2, epoch="e", seq=2, free_requests=2, prefill_tokens=100, acked=1))

    assert sent(fleet, 0.3, 3)
    assert sent(fleet, 0.3, 4) is None


def test_the_place_of_a_grant_is_free_again_when_its_call_has_ended() -> None:
    """Else who calls once at a time would wait for the next report, which is due only when something is new."""
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, free_requests=1, free_tokens=100))
    for now in (0.1, 0.3, 0.5):
        pick = sent(fleet, now)
        assert pick
        assert sent(fleet, now) is None
        assert not fleet.pulls(0, now, overload=True)
        pick.first_content(now + 0.1)
        pick.settle(Verdict.OK, now + 0.1, Usage())
        assert fleet.pulls(0, now + 0.1, overload=True)


@pytest.mark.parametrize(("subscribers", "goes"), [(1, True), (2, False), (None, False)])
@pytest.mark.parametrize("limit", [1, None])
def test_who_gets_the_place_of_a_call_that_it_counts_the_replica_says(
    subscribers: int | None, goes: bool, limit: int | None
) -> None:
    """But for one client alone."""
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, free_requests=1))
    pick = sent(fleet, 0.1)
    assert pick
    full = report(0.2, running=1, waiting=0, batch_limit=limit, free_requests=0, subscribers=subscribers)
    fleet.hear(A, full)
    pick.first_content(0.3)
    pick.settle(Verdict.OK, 0.4, Usage())

    assert (sent(fleet, 0.5) is not None) is goes


def test_the_places_of_calls_that_it_counts_as_waiting_come_back_too() -> None:
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, free_requests=2, batch_limit=2, subscribers=1))
    picks = [sent(fleet, 0.1), sent(fleet, 0.1)]
    fleet.hear(A, report(0.2, running=1, waiting=1, batch_limit=2, free_requests=0, subscribers=1))
    for pick in picks:
        assert pick
        pick.first_content(0.3)
        pick.settle(Verdict.OK, 0.4, Usage())

    assert [sent(fleet, 0.5) is not None for _ in range(3)] == [True, True, False]


def test_a_place_that_the_report_has_free_already_does_not_come_back_once_more() -> None:
    """A report may be quicker than the end of the call that it counts no more."""
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, batch_limit=2, free_requests=2, subscribers=1))
    ends, _stays = sent(fleet, 0.1), sent(fleet, 0.1)
    assert ends
    fleet.hear(A, report(0.2, running=1, waiting=0, batch_limit=2, free_requests=1, subscribers=1))
    ends.first_content(0.3)
    ends.settle(Verdict.OK, 0.3, Usage())

    assert sent(fleet, 0.4)
    assert sent(fleet, 0.4) is None


@pytest.mark.parametrize(
    ("state", "running", "partial", "goes"),
    [
        (State.READY, 7, False, True),
        (State.READY, 8, False, False),
        (State.OVERLOADED, 7, False, False),
        (State.READY, 7, True, False),
    ],
)
def test_who_is_granted_none_of_the_places_that_are_free_may_send_one_call(
    state: State, running: int, partial: bool, goes: bool
) -> None:
    """A room of eight has a place for each of sixteen clients only by turns, which come with what is new."""
    fleet = fleet_of(A)
    told = report(
        0.0, batch_limit=8, running=running, free_requests=0, free_tokens=9_000, state=state, partial=partial
    )
    fleet.hear(A, told)

    assert not fleet.pulls(0, 0.2, overload=False), "others wait too, and it is their turn"
    assert fleet.pulls(0, 0.4, overload=False) is goes, "nobody has taken it"
    assert (sent(fleet, 0.1) is not None) is goes
    assert sent(fleet, 0.2) is None
    assert not fleet.pulls(0, 0.4, overload=False)


def test_a_call_that_never_arrived_uses_the_grant_until_the_next_report_only() -> None:
    """Its number is never acknowledged: it was cancelled or refused before it was sent, or lost its header."""
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, epoch="e", seq=1, free_requests=1, prefill_tokens=0, acked=0))
    pick = sent(fleet, 0.1, 1)
    assert pick
    fleet.hear(A, report(0.2, epoch="e", seq=2, free_requests=1, prefill_tokens=0, acked=0))
    assert sent(fleet, 0.3, 2) is None, "it may be on its way"

    pick.settle(Verdict.FAILED, 0.4)
    fleet.hear(A, report(0.5, epoch="e", seq=3, free_requests=1, prefill_tokens=0, acked=0))

    assert sent(fleet, 0.6, 3)


def test_calls_that_a_report_counts_leave_their_places_when_they_end() -> None:
    """Else a client whose reports come with its answers alone would wait for its own calls of before."""
    fleet = fleet_of(A)
    first, second = sent(fleet, 0.0), sent(fleet, 0.0)
    fleet.hear(A, report(0.1, running=8, waiting=1, batch_limit=8), in_passing=True)
    assert sent(fleet, 0.2) is None
    for pick in (first, second):
        assert pick
        pick.first_content(0.3)
        pick.settle(Verdict.OK, 0.4, Usage())

    third, fourth = sent(fleet, 0.5), sent(fleet, 0.5)
    assert third
    assert fourth
    assert sent(fleet, 0.5) is None
    third.settle(Verdict.OK, 0.6, Usage())
    fourth.settle(Verdict.CANCELLED, 0.6)
    assert sent(fleet, 0.7), "one came and went since"
    assert sent(fleet, 0.7) is None, "when the engine lets go of the other is not known"


@pytest.mark.parametrize("counted", [0, 1])
def test_no_more_places_come_back_than_the_report_counts_calls(counted: int) -> None:
    """By time all were there; but the engine had not read them yet, or had ended them before their readers had."""
    fleet = fleet_of(A)
    assert fleet.windows is not None
    picks = [sent(fleet, 0.0) for _ in range(8)]
    fleet.hear(A, report(0.1, running=counted, waiting=0, batch_limit=8), in_passing=True)
    for pick in picks:
        assert pick
        pick.first_content(0.2)
        pick.settle(Verdict.OK, 0.3, Usage())

    assert fleet.windows.window(0, 0.4).requests == 9


def test_what_was_sent_into_a_full_memory_comes_back_when_it_ends() -> None:
    fleet = fleet_of(A)
    known = sent(fleet, 0.0)
    fleet.hear(A, report(0.1, kv_capacity_tokens=10_000, kv_used=1.0, running=9))
    assert known
    known.first_content(0.2)
    known.settle(Verdict.OK, 0.2, Usage())

    for now in (0.2, 0.4, 0.6):
        pick = sent(fleet, now, tokens=1_300)
        assert pick
        assert sent(fleet, now, tokens=10) is None
        pick.first_content(now + 0.1)
        pick.settle(Verdict.OK, now + 0.1, Usage())


def test_a_place_that_stays_free_is_taken_however_often_it_is_told_of() -> None:
    fleet = fleet_of(A)
    spare = report(
        0.0, batch_limit=8, running=7, free_requests=0, free_tokens=9_000, state=State.READY, subscribers=9
    )
    for turn in range(1, 7):
        fleet.hear(A, replace(spare, at=turn / 10))
        assert fleet.pulls(0, turn / 10, overload=False) is (turn >= 5)
    fleet.hear(A, replace(spare, at=0.7, running=8))
    assert not fleet.pulls(0, 0.7, overload=False)
    fleet.hear(A, replace(spare, at=0.8))

    assert not fleet.pulls(0, 0.8, overload=False), "it was taken meanwhile"
    assert fleet.drains_in_s(0.8, 0, overload=False) == pytest.approx(0.3, abs=0.03), "then somebody looks"


def test_granted_tokens_are_used_up_too() -> None:
    """For calls that wait; for others so little work is no reason to."""
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, free_tokens=500, prefill_tokens=0))

    assert sent(fleet, 0.1, tokens=400)
    assert fleet.pulls(0, 0.1, overload=True), "a call may overdraw: else a long one would never fit"
    assert sent(fleet, 0.1, tokens=9_000)
    assert not fleet.pulls(0, 0.1, overload=True)
    assert sent(fleet, 0.1)


def test_an_answers_head_which_never_grants_does_not_end_a_grant() -> None:
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, epoch="e", seq=1, free_requests=0, prefill_tokens=0, pushed=True))
    fleet.hear(A, report(0.1, epoch="e", seq=2, prefill_tokens=0))

    assert sent(fleet, 0.2) is None


def test_a_stream_that_grants_no_more_limits_no_more() -> None:
    """As after a state that lets nobody in, where neither the batch's limit nor a rate is known."""
    fleet = fleet_of(A)
    closed = report(
        0.0, epoch="e", seq=1, state=State.OVERLOADED, free_requests=0, free_tokens=0, pushed=True
    )
    fleet.hear(A, closed)
    assert not fleet.pulls(0, 0.05, overload=False)
    fleet.hear(A, report(0.1, epoch="e", seq=2, state=State.READY, prefill_tokens=0, pushed=True))

    assert fleet.pulls(0, 0.2, overload=False)
    assert sent(fleet, 0.2)


def test_nobody_is_full_by_a_report_that_has_expired() -> None:
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, free_requests=0))

    assert sent(fleet, 4.9) is None
    assert sent(fleet, 5.1)


def test_the_window_of_a_report_that_has_expired_is_open() -> None:
    fleet = fleet_of(A)
    assert fleet.windows is not None
    fleet.hear(A, report(0.0, kv_capacity_tokens=16_384, kv_used=0.0))  # vLLM's figures, killed since

    assert fleet.windows.window(0, 1.0).basis == "reported"
    assert fleet.windows.window(0, 20.0).basis != "reported"


def test_a_batch_limit_leaves_room_for_a_small_queue() -> None:
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, batch_limit=16, running=16, waiting=0))

    assert sent(fleet, 0.1)
    assert sent(fleet, 0.1)
    assert sent(fleet, 0.1) is None


def test_memory_that_is_held_closes_the_window() -> None:
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, kv_capacity_tokens=10_000, kv_used=1.0, running=9))

    assert sent(fleet, 0.1, tokens=1_300)
    assert sent(fleet, 0.1, tokens=10) is None


def test_what_one_of_several_processes_runs_is_no_limit() -> None:
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, batch_limit=16, running=99, partial=True))

    assert sent(fleet, 0.1)


def test_work_that_stands_there_makes_it_full_until_it_drains() -> None:
    fleet = fleet_of(A)
    fleet.hear(A, report(0.0, expected_wait_s=4.0))

    assert sent(fleet, 0.5) is None
    assert sent(fleet, 1.5)


def test_a_replica_that_tells_nothing_is_never_full_while_it_has_nothing_of_ours() -> None:
    fleet = fleet_of(A, engine_queue_s=0.01)
    for at in range(20):  # each finds ten seconds of others' work
        pick = sent(fleet, at * 100.0)
        assert pick
        pick.first_content(at * 100.0 + 10.0)
        pick.settle(Verdict.OK, at * 100.0 + 10.0, Usage())

    assert sent(fleet, 3000.0)
    assert sent(fleet, 3000.0) is None, "its own call stands there now"


def test_the_best_for_its_prefix_may_have_enough_to_do_while_others_have_room_but_not_be_shut() -> None:
    fleet = fleet_of(A, B)
    long = fleet.demand(fingerprint(b"p" * 400_000), text_bytes=400_000)
    first = fleet.pick(long, 0.0)
    first.first_content(1.0)
    first.settle(Verdict.OK, 2.0, Usage())
    home = first.replica.id

    fleet.hear(home, report(10.0, expected_wait_s=4.0))
    assert fleet.choose(long, 10.0).chosen.place == first.place

    fleet.hear(home, report(11.0, expected_wait_s=0.0, free_requests=0))
    assert fleet.choose(long, 11.0).chosen.place != first.place
