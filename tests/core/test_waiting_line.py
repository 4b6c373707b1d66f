"""The order of those who wait: priority, tenants in turn, deadline, arrival; bounded, and nobody starves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.waiting_line import Waiter, WaitingLine


def line_of(most: int = 100, ageing_s: float = 1000.0, **weights: float) -> WaitingLine:
    return WaitingLine(most, ageing_s, weights)


def waiter(since: float = 0.0, due: float | None = None, **more: object) -> Waiter:
    return Waiter(units=1.0, since=since, due=since + 60.0 if due is None else due, **more)  # type: ignore[arg-type]


def served(line: WaitingLine, now: float, count: int) -> list[Waiter]:
    """Who is served, one after the other."""
    found = []
    for _ in range(min(count, len(line))):
        first = next(line.in_order(now))
        line.serve(first)
        found.append(first)
    return found


def test_priority_goes_first_then_retries_then_deadline_then_arrival() -> None:
    line = line_of()
    first, second = waiter(due=60), waiter(due=60)
    urgent = waiter(priority=2)
    soon = waiter(due=5)
    again = waiter(due=60, again=True)
    for each in (first, second, soon, again, urgent):
        assert line.add(each, 0.0) is None

    assert list(line.in_order(0.0)) == [urgent, again, soon, first, second]


@pytest.mark.parametrize(("came_at", "before"), [(9.0, True), (11.0, False)])
def test_a_step_of_priority_is_worth_so_many_seconds_of_waiting(came_at: float, before: bool) -> None:
    line = line_of(ageing_s=10.0)
    old, new = waiter(0.0), waiter(came_at, priority=1)
    line.add(old, 0.0)
    line.add(new, came_at)

    assert (next(line.in_order(came_at)) is new) is before


def test_tenants_share_by_weight_whoever_sends_most() -> None:
    line = line_of(most=1000, heavy=3.0)
    for _ in range(400):
        line.add(waiter(tenant="greedy"), 0.0)
    for _ in range(100):
        line.add(waiter(tenant="modest"), 0.0)
        line.add(waiter(tenant="heavy"), 0.0)

    names = [each.tenant for each in served(line, 0.0, 100)]

    assert 19 <= names.count("greedy") <= 21
    assert 19 <= names.count("modest") <= 21
    assert 59 <= names.count("heavy") <= 61


def test_one_who_was_away_gets_no_arrears() -> None:
    line = line_of()
    for _ in range(20):
        line.add(waiter(tenant="a"), 0.0)
    served(line, 0.0, 20)
    for _ in range(10):
        line.add(waiter(tenant="a"), 1.0)
        line.add(waiter(tenant="b"), 1.0)

    names = [each.tenant for each in served(line, 1.0, 10)]

    assert 4 <= names.count("b") <= 6


def test_a_full_line_gives_up_the_last_of_the_lowest_priority() -> None:
    line = line_of(most=2)
    low, lower = waiter(priority=0), waiter(priority=-1)
    line.add(low, 0.0)
    line.add(lower, 0.0)

    assert line.add(waiter(priority=1), 0.0) is lower
    another = waiter(priority=0)
    assert line.add(another, 0.0) is another
    assert len(line) == 2


def test_a_full_line_gives_up_the_last_of_the_tenant_with_the_longest() -> None:
    line = line_of(most=3)
    greedy = [waiter(tenant="greedy") for _ in range(3)]
    for each in greedy:
        line.add(each, 0.0)

    assert line.add(waiter(tenant="modest"), 0.0) is greedy[-1]


moves = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(-2, 2), st.sampled_from([None, "a", "b"]), st.floats(0.1, 20)),
        st.tuples(st.just("serve"), st.integers(0, 5)),
        st.tuples(st.just("leave"), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.floats(0, 10)),
    ),
    max_size=60,
)


@given(moves)
def test_the_line_is_bounded_and_loses_nobody(played: list[tuple]) -> None:  # type: ignore[type-arg]
    line, now = line_of(most=5, ageing_s=3.0, a=2.0), 0.0
    inside: set[Waiter] = set()
    for move in played:
        match move:
            case ("add", priority, tenant, due_s):
                new = waiter(now, now + due_s, priority=priority, tenant=tenant)
                inside.add(new)
                if (gone := line.add(new, now)) is not None:
                    assert len(inside) == 6
                    inside.remove(gone)
            case ("serve" | "leave" as how, at):
                for each in list(line.in_order(now))[at : at + 1]:
                    (line.serve if how == "serve" else line.remove)(each)
                    inside.remove(each)
            case ("wait", seconds):
                now += seconds
                for late in line.expired(now):
                    assert late.due <= now
                    line.remove(late)
                    inside.remove(late)
        assert set(line.in_order(now)) == inside
        assert len(list(line.in_order(now))) == len(line) == len(inside) <= 5
        assert line.urgent == sum(each.priority > 0 for each in inside)
        assert line.next_expiry() == min((each.due for each in inside), default=float("inf"))
        assert all(line.units_before(each) >= 0 for each in inside)


@given(st.integers(1, 5), st.integers(1, 30))
def test_nobody_starves(priority: int, a_second: int) -> None:
    """However many of higher priority come, the lowest is served once it has waited a step for each priority."""
    line = line_of(most=10_000, ageing_s=2.0)
    patient = waiter(0.0, due=1_000.0)
    line.add(patient, 0.0)
    for tick in range(1, 2 * priority + 3):
        for _ in range(a_second):
            line.add(waiter(float(tick), due=tick + 1_000.0, priority=priority), float(tick))
        served(line, float(tick), a_second)
        if patient not in line:
            return
    raise AssertionError("it still waits")
