"""What others have sent since stands where least stood: as water poured over columns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.load.levelling import Inflow, levelled

columns = st.lists(
    st.tuples(st.floats(0, 100), st.one_of(st.none(), st.floats(0, 10))), min_size=1, max_size=9
)


def test_the_least_loaded_fill_up_to_one_level() -> None:
    assert levelled([0.0, 1.0, 9.0], [1.0, 1.0, 1.0], 1.0) == pytest.approx([2.0, 2.0, 9.0])


def test_fresh_reports_are_taken_as_they_are() -> None:
    assert levelled([0.0, 1.0], [0.0, 0.0], 0.75) == [0.0, 1.0]
    assert levelled([0.0, 0.5, 9.0], [0.0, 1.0, 1.0], 1.0)[0] == 0.0
    assert levelled([0.0, 5.0], [0.1, 10.0], 1.0)[0] == pytest.approx(0.2)  # no more than may have come since


def test_without_others_or_without_reports_nothing_has_come() -> None:
    assert levelled([0.0, 1.0], [1.0, 1.0], 0.0) == [0.0, 1.0]
    assert levelled([0.0, 1.0], [None, None], 1.0) == [0.0, 1.0]


def test_of_whom_nothing_was_reported_is_no_emptier_by_a_little_that_may_have_come_to_others() -> None:
    assert levelled([0.0, 0.02], [1.0, None], 0.1) == [0.1, 0.1]
    assert levelled([0.0, 0.3], [1.0, None], 0.5) == [0.5, 0.4]
    assert levelled([0.0, 0.7], [1.0, None], 0.5) == [0.5, 0.7]
    assert levelled([0.0, 1.99, 0.0], [1.0, 1.0, None], 1.0) == pytest.approx([1.995, 1.995, 0.1])
    # What stands there has not come since.
    assert levelled([0.4, 0.0, 2.0], [0.0, None, 0.0], 0.5) == [0.4, 0.0, 2.0]


def test_up_to_three_times_as_much_comes_as_reports_find_replicas_busy() -> None:
    inflow = Inflow()
    assert inflow.value == 0.75
    for at in range(600):
        inflow.hear(0, at / 10, busy=at % 4 == 0)
        inflow.hear(1, at / 10, busy=False)
    assert inflow.value == pytest.approx(0.375, abs=0.06)

    inflow.drop(1)
    assert inflow.value == pytest.approx(0.75, abs=0.06)
    inflow.drop(0)
    assert inflow.value == 0.75


def test_one_that_reports_when_something_changes_was_until_then_as_it_had_said() -> None:
    inflow = Inflow()
    for second in range(60):
        inflow.hear(0, second, busy=True)
        inflow.hear(0, second + 0.1, busy=False)

    assert inflow.value == pytest.approx(0.3, abs=0.09)


def test_one_that_reports_far_more_often_speaks_for_itself_alone() -> None:
    inflow = Inflow()
    for second in range(60):
        for place in range(1, 8):
            inflow.hear(place, second, busy=True)
        for at in range(1000):
            inflow.hear(0, second + at / 1000, busy=False)

    assert inflow.value == 0.75


@given(columns, st.floats(0, 1))
def test_nobody_sinks_the_order_holds_and_no_more_is_there_than_came(
    told: list[tuple[float, float | None]], inflow: float
) -> None:
    before, ages = [each[0] for each in told], [each[1] for each in told]
    after = levelled(before, ages, inflow)

    came = inflow * sum(age for age in ages if age is not None)
    assert all(b <= a for b, a in zip(before, after, strict=True))
    told_of = [i for i, age in enumerate(ages) if age is not None]
    assert sum(after[i] - before[i] for i in told_of) <= came + 1e-6
    for i in set(range(len(told))) - set(told_of):
        assert after[i] - before[i] <= max((after[j] - before[j] for j in told_of), default=0.0) + 1e-9
        assert after[i] - before[i] <= 0.1 + 1e-9
        assert after[i] <= max(before[i], min((after[j] for j in told_of), default=0.0))
    alike = [(b, a) for b, a, age in zip(before, after, ages, strict=True) if age == ages[0]]
    assert all(a1 <= a2 + 1e-9 for b1, a1 in alike for b2, a2 in alike if b1 <= b2)
