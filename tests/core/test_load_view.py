"""The work that stands at a replica: its report drained, own charges that it cannot know added once and only once."""

from __future__ import annotations

from typing import Any

import pytest

from mlbalance_client.core.load.company import Company
from mlbalance_client.core.load.ledger import Charge, Ledger
from mlbalance_client.core.load.pace import Found
from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.core.load.standing import Basis
from mlbalance_client.core.load.view import LoadView
from mlbalance_client.core.model import Verdict

RATE = 10_000.0
EXPIRY_S = 4.0


class View:
    """A view whose mean call is 2,000 tokens of a unit each, so 0.2 s."""

    def __init__(self) -> None:
        self.ledger = Ledger(0.0)
        self.company = Company()
        self.load = LoadView(self.ledger, 10.0, EXPIRY_S, lambda _: RATE, self.company)

    def tell(self, at: float, source: str = "test", **figures: Any) -> None:
        self.load.hear(0, LoadReport(source=source, at=at, **figures).sane())

    def send(self, at: float, seconds: float, number: int = 0) -> Charge:
        return self.ledger.charge(
            0, prefill_tokens=1, decode_tokens=1, prefill_s=seconds, now=at, number=number
        )

    def waiting_s(self, now: float) -> float:
        return self.load.waiting_s(0, now)


def test_one_that_was_overtaken_stands_before_others_no_longer_than_was_predicted(view: View) -> None:
    view.send(0.0, 4.0)
    later = view.send(0.5, 0.5)
    assert view.waiting_s(6.0) == pytest.approx(0.5 + 2.0)  # all behind the first, which is overdue

    view.ledger.first_content(later, 6.0)
    last = view.send(6.5, 1.0)
    assert view.waiting_s(6.5) == pytest.approx(1.0)
    view.ledger.first_content(last, 7.0)

    assert last.took_s == pytest.approx(0.5)


def test_one_overdue_call_says_ever_less_of_its_replica_where_there_are_no_other_clients() -> None:
    alone, crowded = View(), View()
    for _ in range(80):
        alone.company.found_cached(1000, 1000)
    for view in (alone, crowded):
        view.send(0.0, 1.0)
    assert [view.waiting_s(1.5) for view in (alone, crowded)] == pytest.approx([0.5, 0.5])
    assert [view.waiting_s(9.0) for view in (alone, crowded)] == pytest.approx([0.125, 8.0], rel=0.01)

    for view in (alone, crowded):
        view.send(9.0, 1.0)  # that it waits too speaks against the replica
    assert [view.waiting_s(9.0) for view in (alone, crowded)] == pytest.approx([9.0, 9.0])


@pytest.fixture
def view() -> View:
    return View()


def test_a_report_of_all_work_drains_as_time_passes(view: View) -> None:
    view.tell(0.0, prefill_tokens=10_000)

    assert [view.waiting_s(t) for t in (0.0, 0.4, 1.0, 1.5)] == pytest.approx([1.0, 0.6, 0.0, 0.0])


def test_a_call_sent_after_the_report_is_added_and_one_sent_before_is_not(view: View) -> None:
    view.send(0.0, 0.5)
    view.tell(0.1, prefill_tokens=10_000)
    assert view.waiting_s(0.1) == pytest.approx(1.0)
    view.send(0.2, 0.25)
    assert view.waiting_s(0.2) == pytest.approx(0.9 + 0.25)
    view.tell(0.3, prefill_tokens=12_500)
    assert view.waiting_s(0.3) == pytest.approx(1.25)


def test_a_numbered_call_is_added_until_it_is_acknowledged_however_late_the_report(view: View) -> None:
    view.send(0.0, 0.5, number=7)
    view.send(0.0, 0.25, number=8)
    view.tell(1.0, prefill_tokens=10_000, acked=0)
    assert view.waiting_s(1.0) == pytest.approx(1.75)
    view.tell(1.1, prefill_tokens=15_000, acked=7)
    assert view.waiting_s(1.1) == pytest.approx(1.75)
    view.tell(1.2, prefill_tokens=17_500, acked=8)
    assert view.waiting_s(1.2) == pytest.approx(1.75)


def test_a_call_without_a_number_is_judged_by_time_even_where_others_are_acknowledged(view: View) -> None:
    view.send(0.0, 0.5)
    view.send(2.0, 0.25)
    view.tell(1.0, prefill_tokens=20_000, acked=99)

    assert view.waiting_s(2.0) == pytest.approx(1.0 + 0.25)


def test_a_call_that_has_begun_or_ended_is_added_no_more(view: View) -> None:
    view.tell(0.0, prefill_tokens=10_000)
    begun, ended = view.send(0.1, 0.5), view.send(0.1, 0.5)
    view.ledger.first_content(begun, 0.2)
    view.ledger.settle(ended, Verdict.OK, 0.2)
    view.ledger.settle(begun, Verdict.OK, 0.3)

    assert view.waiting_s(0.3) == pytest.approx(0.7)


def test_who_says_idle_while_own_calls_lie_there_is_not_believed(view: View) -> None:
    for _ in range(10):
        view.send(0.0, 0.5)
    view.tell(0.1, prefill_tokens=0, running=0, waiting=0)

    assert view.waiting_s(0.1) > 4.0


def test_a_report_loses_its_say_softly_and_all_of_it_at_its_expiry(view: View) -> None:
    view.tell(0.0, expected_wait_s=100.0)
    told = [view.waiting_s(t) for t in (1.9, 2.5, 3.0, 3.5, 3.9)]

    assert told[0] == pytest.approx(98.1)
    assert told == sorted(told, reverse=True)
    assert 40 < told[2] < 60
    assert view.waiting_s(EXPIRY_S) == 0.0
    assert view.load.report(0, 3.9) is not None
    assert view.load.report(0, EXPIRY_S) is None


def test_a_report_beyond_its_expiry_changes_nothing() -> None:
    told, untold = View(), View()
    told.tell(0.0, prefill_tokens=10**9, waiting=50, waiting_tokens=10**9, running=3, kv_used=0.9)
    for view in (told, untold):
        view.send(0.5, 0.3)
        view.send(3.0, 0.4, number=5)

    for now in (EXPIRY_S, 9.0):
        assert told.waiting_s(now) == untold.waiting_s(now)
        assert told.load.guess(0, now) == untold.load.guess(0, now)
    # And the first report of a new age begins from nothing.
    for view in (told, untold):
        view.tell(10.0, waiting_tokens=100, running=1)
    assert told.waiting_s(10.0) == untold.waiting_s(10.0)


def test_one_of_several_processes_speaks_for_itself_so_own_knowledge_counts_too(view: View) -> None:
    view.send(0.0, 3.0)
    view.tell(0.1, prefill_tokens=10_000, partial=True)
    assert view.waiting_s(0.1) == pytest.approx(2.9)
    view.tell(0.2, prefill_tokens=90_000, partial=True)
    assert view.waiting_s(0.2) == pytest.approx(9.0)


def learned(view: View, basis: Basis, seconds: float) -> None:
    for _ in range(500):
        guess = view.load.guess(0, 0.0)
        assert guess.look == (Found.UNSEEN, basis)
        view.load.explained(guess, seconds, 0.0)


def test_one_of_several_processes_does_not_speak_for_what_was_found(view: View) -> None:
    learned(view, Basis.NOTHING, 5.0)
    view.tell(0.1, prefill_tokens=0, partial=True)

    assert view.waiting_s(0.1) == pytest.approx(5.0, rel=0.01)


def test_missing_is_unknown_never_idle(view: View) -> None:
    """A report without a figure of work leaves the guess as it is; it does not make it zero."""
    learned(view, Basis.NOTHING, 2.0)
    before_s = view.waiting_s(0.0)
    view.tell(0.0, running=3, kv_used=0.1, gpu_memory_used_bytes=1)

    assert before_s == pytest.approx(2.0, rel=0.1)
    assert view.waiting_s(0.0) == before_s


def test_an_empty_queue_is_what_own_calls_have_found_at_empty_queues(view: View) -> None:
    view.tell(0.0, waiting=0)
    learned(view, Basis.EMPTY_QUEUE, 0.7)

    assert view.waiting_s(0.0) == pytest.approx(0.7, rel=0.1)


def test_depth_without_tokens_is_depth_times_the_mean_call(view: View) -> None:
    view.tell(0.0, waiting=5)
    assert view.waiting_s(0.0) == pytest.approx(1.0)
    for _ in range(500):
        view.load.work.learn(6_000, 2_000)
    assert view.waiting_s(0.0) == pytest.approx(3.0, rel=0.01)


def test_own_calls_in_a_queue_count_once_by_their_size_and_others_by_the_mean(view: View) -> None:
    view.send(0.0, 1.0)
    view.send(0.0, 1.0)
    view.tell(0.0, waiting=5)

    assert view.waiting_s(0.0) == pytest.approx(2.0 + 3 * 0.2)


def test_an_older_report_that_comes_late_is_passed_over(view: View) -> None:
    view.tell(1.0, prefill_tokens=10_000)
    view.tell(0.5, prefill_tokens=90_000)

    assert view.waiting_s(1.0) == pytest.approx(1.0)


def test_the_replicas_own_count_tells_which_of_two_reports_is_older(view: View) -> None:
    view.tell(1.0, prefill_tokens=10_000, epoch="e", seq=8)
    view.tell(1.1, prefill_tokens=90_000, epoch="e", seq=7)
    assert view.waiting_s(1.1) == pytest.approx(0.9)
    view.tell(1.2, prefill_tokens=20_000, epoch="another", seq=1)
    assert view.waiting_s(1.2) == pytest.approx(2.0)


def test_a_count_that_jumped_ahead_silences_a_replica_until_its_report_expires_only(view: View) -> None:
    view.tell(0.0, prefill_tokens=0, epoch="e", seq=10**15)
    view.tell(1.0, prefill_tokens=10_000, epoch="e", seq=1)
    assert view.waiting_s(1.0) == 0.0
    view.tell(EXPIRY_S, prefill_tokens=10_000, epoch="e", seq=2)
    assert view.waiting_s(EXPIRY_S) == pytest.approx(1.0)


def test_ready_without_figures_does_not_replace_what_tells_more_until_that_expires(view: View) -> None:
    view.tell(0.0, state=State.READY, running=3, waiting=20, epoch="1")
    for at in (1.0, 3.9):
        view.tell(at, state=State.READY)
        view.tell(at, "other")
        report = view.load.report(0, at)
        assert report is not None
        assert (report.at, report.waiting) == (0.0, 20)

    view.tell(EXPIRY_S, state=State.READY)

    report = view.load.report(0, EXPIRY_S)
    assert report is not None
    assert (report.at, report.waiting) == (EXPIRY_S, None)


@pytest.mark.parametrize(
    "figures",
    [
        {"state": State.STARTING},
        {"state": State.DRAINING},
        {"state": State.READY, "epoch": "2"},
        {"state": State.READY, "free_requests": 2},
        {"state": State.READY, "running": 1},
    ],
)
def test_what_says_something_else_than_ready_replaces_what_tells_more(
    view: View, figures: dict[str, Any]
) -> None:
    view.tell(0.0, state=State.READY, running=3, waiting=20, epoch="1")

    view.tell(1.0, **figures)

    report = view.load.report(0, 1.0)
    assert report is not None
    assert (report.at, report.waiting) == (1.0, None)


def test_what_tells_less_does_not_replace_what_tells_more_while_that_is_fresh(view: View) -> None:
    view.tell(0.0, "sglang", waiting_tokens=10_000)
    view.tell(0.1, "orca", waiting=0)
    assert view.load.guess(0, 0.1).look[1] is Basis.QUEUED_WORK
    view.tell(2.5, "orca", waiting=0)
    assert view.load.guess(0, 2.5).look[1] is Basis.EMPTY_QUEUE


def test_what_an_answer_tells_replaces_what_the_stream_of_the_same_reporter_told(view: View) -> None:
    view.tell(0.0, "stream", prefill_tokens=10_000, pushed=True, epoch="e", seq=1)
    view.tell(0.1, "answer", waiting=0, epoch="e", seq=2)
    assert view.load.guess(0, 0.1).look[1] is Basis.EMPTY_QUEUE
    view.tell(0.2, "stream", prefill_tokens=10_000, pushed=True, epoch="e", seq=3)
    view.tell(0.3, "answer", waiting=0, epoch="of its next life", seq=1)
    assert view.load.guess(0, 0.3).look[1] is Basis.EMPTY_QUEUE


def test_what_a_report_told_is_not_learned_again_as_unknown(view: View) -> None:
    view.tell(0.0, waiting=10)
    guess = view.load.guess(0, 0.0)
    assert guess.reported_s == pytest.approx(2.0)
    for _ in range(100):
        view.load.explained(guess, 2.0, 0.0)

    assert view.waiting_s(0.0) == pytest.approx(2.0)


def test_on_an_idle_fleet_others_are_not_thought_to_have_sent_anything(view: View) -> None:
    view.ledger.account(0)
    view.tell(0.0, prefill_tokens=0)
    assert view.load.all_waiting_s([0], 1.0, others=1.0) == [pytest.approx(0.75)]
    for at in range(1, 61):
        view.tell(float(at), prefill_tokens=0)

    assert view.load.all_waiting_s([0], 61.0, others=1.0) == [pytest.approx(0.0, abs=0.01)]

    view.load.drop(0)
    view.tell(62.0, prefill_tokens=0)
    assert view.load.all_waiting_s([0], 63.0, others=1.0) == [pytest.approx(0.75)]


def test_own_calls_are_not_what_others_send(view: View) -> None:
    alone, crowded = View(), View()
    for number in range(60):
        for seen, running in ((alone, 1), (crowded, 2)):
            charge = seen.send(float(number), 0.5)
            seen.tell(number + 0.1, running=running, waiting=0, prefill_tokens=100)
            seen.ledger.first_content(charge, number + 0.2)
            seen.ledger.settle(charge, number + 0.3, Verdict.OK)

    assert alone.load.all_waiting_s([0], 60.1, others=1.0) == [pytest.approx(0.0, abs=0.02)]
    assert crowded.load.all_waiting_s([0], 60.1, others=1.0) == [pytest.approx(0.75, abs=0.1)]


def test_what_others_may_have_sent_counts_as_much_as_the_report_that_it_came_after(view: View) -> None:
    view.ledger.account(0)
    view.tell(0.0, prefill_tokens=0)

    by_age = [view.load.all_waiting_s([0], age_s, others=1.0)[0] for age_s in (1.0, 2.0, 3.0, 4.0)]

    assert by_age == pytest.approx([0.75, 1.5, 1.125, 0.0])


def test_an_idle_replica_that_reports_is_as_good_as_one_that_does_not(view: View) -> None:
    for at in range(60):
        view.tell(float(at), prefill_tokens=0)
    told, untold = view.load.all_waiting_s([0, 1], 60.0, others=1.0)
    assert told == untold
    assert 0.0 < told < 0.1

    view.tell(60.0, prefill_tokens=30_000)  # work does stand there
    assert view.load.all_waiting_s([0, 1], 60.0, others=1.0) == [pytest.approx(3.0), 0.0]


def test_a_stream_that_is_silent_for_less_than_its_time_says_that_nothing_has_come(view: View) -> None:
    view.ledger.account(0)
    view.tell(0.5, "stream", prefill_tokens=0, pushed=True, subscribers=20, epoch="e", seq=1)
    view.tell(0.5, "answer", prefill_tokens=0, subscribers=20, epoch="e", seq=2)

    silent = [view.load.all_waiting_s([0], now, others=1.0)[0] for now in (0.55, 1.0, 2.0, 3.0)]

    most_s = 0.1 + 20 * 0.001  # until it would have told of a change
    assert silent == pytest.approx([0.05 * 0.75, most_s * 0.75, most_s * 0.75, 2.5 * 0.75 * 0.75])


@pytest.mark.parametrize("of_another", [False, True])
def test_the_silence_of_a_stream_says_nothing_of_what_others_tell(view: View, of_another: bool) -> None:
    view.ledger.account(0)
    view.tell(0.0, "stream", prefill_tokens=0, pushed=True, partial=not of_another, epoch="e", seq=1)
    if of_another:
        view.tell(0.0, "pages", prefill_tokens=0)

    assert view.load.all_waiting_s([0], 1.0, others=1.0) == [pytest.approx(0.75)]


def test_the_stream_of_who_was_there_before_says_nothing(view: View) -> None:
    view.tell(0.0, prefill_tokens=0, pushed=True)
    view.load.drop(0)
    view.ledger.account(0)
    view.tell(0.0, prefill_tokens=0)

    assert view.load.all_waiting_s([0], 1.0, others=1.0) == [pytest.approx(0.75)]


def test_a_stream_that_tells_a_queue_makes_no_other_report_young(view: View) -> None:
    for place in range(3):
        view.ledger.account(place)
        view.load.hear(place, LoadReport(source="s", at=0.0, running=1, waiting=1, pushed=place == 0))

    by_stream, *polled = view.load.all_waiting_s(range(3), 2.0, others=1.0)

    assert polled == [pytest.approx((2.0 + 2.0 + 0.1) * 0.75 / 3)] * 2
    assert by_stream == pytest.approx(3 * 0.1 * 0.75)  # all that came in that time, but no more


def test_what_is_told_with_answers_does_not_say_how_busy_a_replica_is(view: View) -> None:
    view.ledger.account(0)
    for at in range(100):
        view.tell(float(at), prefill_tokens=0)
    for at in range(100):
        report = LoadReport(source="test", at=100.0 + at, prefill_tokens=1)
        view.load.hear(0, report, in_passing=True)

    assert view.load.all_waiting_s([0], 200.0, others=1.0) == [pytest.approx(0.0, abs=0.01)]


def test_a_replica_that_is_gone_is_forgotten(view: View) -> None:
    view.tell(0.0, prefill_tokens=10_000)
    view.load.drop(0)

    assert view.waiting_s(0.0) == 0.0
    assert view.load.report(0, 0.0) is None
