"""One limit for all replicas: calls that have no content yet, by how long first contents stand behind others' work."""

from __future__ import annotations

from itertools import count
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.load.company import Company
from mlbalance_client.core.load.delay_limit import DelayLimit
from mlbalance_client.core.load.ledger import Charge, Ledger

TARGET_S = 3.0


class Scene:
    """One client of ``replicas``, of which two get all calls in turn: what one says alone may be its own stall."""

    def __init__(self, replicas: int = 8) -> None:
        self.ledger = Ledger(0.0)
        self.company = Company()
        self.limit = DelayLimit(TARGET_S, self.company)
        self.limit.members(replicas)
        self._turn = count()

    def send(self, now: float, own_s: float = 1.0, place: int | None = None) -> Charge:
        place = next(self._turn) % 2 if place is None else place
        charge = self.ledger.charge(place, prefill_tokens=1, decode_tokens=0, prefill_s=own_s, now=now)
        self.limit.sent(charge)
        return charge

    def answer(self, charge: Charge, now: float, under_way: int | None = None) -> None:
        self.limit.answered(charge, self.ledger.queued if under_way is None else under_way, now)
        self.ledger.first_content(charge, now)
        self.company.stood(now - charge.at, charge.waiting_s + charge.prefill_s)

    def rounds(
        self, times: int, stood_s: float, waiting: int = 0, under_way: int = 3, now: float = 0.0
    ) -> float:
        """One call after another, each of which stands for so long; the time after them."""
        for _ in range(times):
            self.limit.waits(waiting)
            self.answer(self.send(now), now + stood_s, under_way)
            now += stood_s + 0.1
        return now


def test_it_begins_open_and_is_cut_from_what_was_used() -> None:
    scene = Scene(8)
    assert scene.limit.opens_in_s(1_000, 0.0) == 0.0
    calls = [scene.send(0.0, place=at) for at in range(40)]

    scene.answer(calls[0], 6.0)

    assert 20.0 < scene.limit.value < 30.0


def test_answers_that_come_together_leave_what_their_calls_used() -> None:
    scene = Scene(8)
    now = 0.0
    for _ in range(200):
        calls = [scene.send(now, 0.1, place=at % 8) for at in range(40)]
        for call in calls:
            scene.answer(call, now + 1.0)
        now += 2.0

    assert scene.limit.opens_in_s(39, now) == 0.0


def test_calls_of_replicas_that_are_gone_do_not_count() -> None:
    scene = Scene(3)
    now = scene.rounds(50, 12.0)
    for _ in range(12):
        scene.send(now, place=1)
    assert scene.limit.opens_in_s(12, now + 60.0) == 0.0  # they hang
    scene.ledger.close(1)

    assert scene.ledger.queued == 0
    assert scene.limit.opens_in_s(12, now + 61.0) == inf


def test_own_work_is_no_crowd_however_long() -> None:
    scene = Scene()
    now = scene.rounds(50, 1.0, under_way=100)
    before = scene.limit.value
    calls = [scene.send(now, place=0) for _ in range(60)]
    for at, call in enumerate(calls):  # the last one stands behind a minute of own work
        scene.answer(call, now + 1.0 + at, under_way=100)

    assert scene.limit.value >= before


def test_others_work_cuts_it_to_a_few_and_to_one_only_while_more_wait_than_are_under_way() -> None:
    scene = Scene()
    now = scene.rounds(50, 12.0)
    assert 4.0 <= scene.limit.value <= 5.0

    now = scene.rounds(50, 12.0, waiting=10, now=now)
    assert scene.limit.value < 2.0
    assert scene.limit.opens_in_s(1, now) == inf
    assert scene.limit.opens_in_s(0, now) == 0.0

    scene.limit.waits(0)
    assert scene.limit.value >= 4.0


def test_those_sent_before_a_cut_do_not_cut_again() -> None:
    scene = Scene(50)
    calls = [scene.send(0.0, place=at) for at in range(30)]
    scene.answer(calls[0], 100.0)
    after_one = scene.limit.value
    assert after_one < 100.0
    for call in calls[1:]:
        scene.answer(call, 100.0)

    assert scene.limit.value >= after_one * 0.99


def test_a_call_that_is_late_already_cuts_it_before_its_content_comes() -> None:
    scene = Scene()
    now = scene.rounds(1, 1.0)
    before = scene.limit.value
    for place in range(10):
        scene.send(now, place=place)
    assert scene.limit.opens_in_s(10, now + 3.0) == 0.0

    assert scene.limit.opens_in_s(10, now + 12.0) == inf
    assert scene.limit.value < before


def test_one_that_stalls_alone_does_not_cut_it_before_its_content_comes() -> None:
    scene = Scene()
    now = scene.rounds(10, 2.5)
    before = scene.limit.value
    scene.send(now, place=7)
    for later in range(1, 60):
        scene.limit.opens_in_s(1_000, now + later)
        scene.answer(scene.send(now + later, place=later % 7), now + later + 2.5, under_way=1_000)

    assert scene.limit.value >= before


def test_a_call_that_a_later_one_has_overtaken_tells_of_no_queue() -> None:
    scene = Scene()
    now = scene.rounds(1, 1.0)
    stalled = [scene.send(now, place=place) for place in range(10)]
    for place in range(10):
        scene.answer(scene.send(now + 1.0, place=place), now + 2.5)
    before = scene.limit.value

    assert scene.limit.opens_in_s(10, now + 12.0) == 0.0
    for call in stalled:
        scene.answer(call, now + 12.0)
    assert scene.limit.value == before


def test_a_call_that_hangs_keeps_no_other_from_being_sent() -> None:
    scene = Scene()
    now = scene.rounds(50, 12.0, waiting=10)
    scene.limit.waits(10)
    scene.send(now)
    assert scene.limit.opens_in_s(1, now + 2.0) == inf

    assert scene.limit.opens_in_s(1, now + 20.0) == 0.0


def test_whom_it_has_kept_waiting_for_long_is_owed_as_many_as_there_are_replicas() -> None:
    scene = Scene(8)
    since = scene.rounds(50, 12.0, waiting=10)
    scene.limit.waits(10)
    assert scene.limit.opens_in_s(4, since) == inf

    for now in range(300):  # those under way are new, and do not hang
        for place in range(8):
            scene.send(since + now, own_s=1e3, place=place)
        owed = int(8 * min(1.0, now / 60.0))
        if owed >= 4:
            assert scene.limit.opens_in_s(owed - 1, since + now) == 0.0
        assert scene.limit.opens_in_s(max(4, owed), since + now) == inf

    scene.limit.waits(0)  # a break
    scene.limit.waits(10)
    assert scene.limit.opens_in_s(6, since + 300.0) == inf


def test_a_limit_that_was_open_for_a_while_owes_nothing_for_what_was_before() -> None:
    scene = Scene(50)
    now = scene.rounds(50, 12.0, waiting=10)
    scene.limit.waits(3)
    assert scene.limit.opens_in_s(4, now) == inf
    for second in range(1, 100):
        assert scene.limit.opens_in_s(0, now + second) == 0.0

    assert scene.limit.opens_in_s(20, now + 100.0) == inf
    assert not scene.limit.takes_urgent(20, now + 100.0)


def test_nobody_is_owed_anything_for_a_wait_that_was_not_for_the_limit() -> None:
    scene = Scene(8)
    now = scene.rounds(50, 12.0, waiting=10)
    scene.limit.waits(0)
    scene.limit.waits(1)  # for a replica
    assert scene.limit.opens_in_s(0, now + 120.0) == 0.0

    assert scene.limit.opens_in_s(6, now + 120.0) == inf


def test_what_is_urgent_may_stand_where_the_others_are_owed_to() -> None:
    scene = Scene(8)
    now = scene.rounds(50, 12.0, waiting=10)
    scene.limit.waits(10)
    assert all(scene.limit.opens_in_s(7, now + second) == inf for second in range(60))
    assert scene.limit.opens_in_s(7, now + 60.0) == 0.0

    assert scene.limit.takes_urgent(31, now + 60.0)
    assert not scene.limit.takes_urgent(32, now + 60.0)


def test_what_is_not_used_fades() -> None:
    scene = Scene(100)
    scene.rounds(100, 3.0, under_way=1)

    assert scene.limit.value < 6.0


def test_three_times_as_many_more_are_kept_for_urgent_calls() -> None:
    scene = Scene()
    now = scene.rounds(50, 12.0, waiting=10)

    assert scene.limit.opens_in_s(1, now) == inf
    assert scene.limit.takes_urgent(3, now)
    assert not scene.limit.takes_urgent(4, now)


def test_calls_that_hang_are_no_use_that_is_made_of_it() -> None:
    scene = Scene()
    now = scene.rounds(50, 12.0)
    for _ in range(8):
        scene.send(now)
    assert scene.limit.opens_in_s(8, now + 60.0) == 0.0

    scene.rounds(200, 1.0, under_way=9, now=now + 60.0)
    assert scene.limit.value < 6.0


def test_a_call_to_one_that_starts_slowly_does_not_cut_it() -> None:
    scene = Scene()
    now = scene.rounds(1, 1.0)
    for place in range(10):
        charge = scene.ledger.charge(place, prefill_tokens=1, decode_tokens=0, prefill_s=1.0, now=now)
        scene.limit.sent(charge, tells=False)

    assert scene.limit.opens_in_s(10, now + 12.0) == 0.0


def test_a_call_that_hangs_takes_no_urgent_calls_place() -> None:
    scene = Scene()
    now = scene.rounds(50, 12.0, waiting=10)
    for _ in range(4):
        scene.send(now)
    assert not scene.limit.takes_urgent(4, now)
    assert scene.limit.opens_in_s(4, now + 20.0) == 0.0

    assert scene.limit.takes_urgent(4, now)


@given(
    st.lists(
        st.tuples(st.floats(0, 1e9), st.floats(0, 1e9), st.integers(1, 1_000), st.integers(0, 100)),
        max_size=60,
    )
)
def test_whatever_comes_one_may_be_under_way(
    samples: list[tuple[float, float, int, int]],
) -> None:
    scene = Scene()
    now = 0.0
    for own_s, stood_s, under_way, waiting in samples:
        scene.limit.waits(waiting)
        scene.answer(scene.send(now, own_s), now + stood_s, under_way)
        now += stood_s

        assert scene.limit.opens_in_s(0, now) == 0.0
