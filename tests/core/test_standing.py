"""Which figure of a report rules, and what it means in seconds."""

from __future__ import annotations

from dataclasses import fields
from math import isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.core.load.standing import Basis, Work, basis, reported_s, tells, under_way_s

RATE = 10_000.0


def report(at: float = 0.0, **figures: Any) -> LoadReport:
    return LoadReport(source="test", at=at, **figures).sane()


def work(units: float = 4_000.0, tokens: int = 2_000) -> Work:
    made = Work()
    for _ in range(2_000):
        made.learn(units, tokens)
    return made


@pytest.mark.parametrize(
    ("figures", "rules", "seconds"),
    [
        ({}, Basis.NOTHING, 0.0),
        ({"running": 9, "kv_used": 0.9, "gpu_memory_used_bytes": 7}, Basis.NOTHING, 0.0),
        ({"state": State.READY}, Basis.NOTHING, 0.0),
        ({"expected_wait_s": 3.0, "prefill_tokens": 1, "waiting": 50}, Basis.WORK, 3.0),
        ({"prefill_tokens": 5_000, "waiting_tokens": 9, "waiting": 50}, Basis.WORK, 1.0),
        ({"prefill_tokens": 0, "waiting": 50}, Basis.WORK, 0.0),
        ({"waiting_tokens": 5_000, "waiting": 50, "gpu_utilization": 1.0}, Basis.QUEUED_WORK, 1.0),
        ({"waiting_tokens": 0, "waiting": 50}, Basis.EMPTY_QUEUE, 0.0),
        ({"waiting": 5, "gpu_utilization": 1.0}, Basis.QUEUE, 2.0),
        ({"waiting": 0, "gpu_utilization": 1.0}, Basis.EMPTY_QUEUE, 0.0),
        ({"utilization": 0.5, "gpu_utilization": 0.9}, Basis.SHARE, 0.4),
        ({"gpu_utilization": 0.75}, Basis.NOTHING, 0.0),
        ({"gpu_utilization": 0.05}, Basis.IDLE, 0.0),
        ({"running": 0, "gpu_utilization": 0.75}, Basis.IDLE, 0.0),
        ({"running": 3, "gpu_utilization": 0.05}, Basis.NOTHING, 0.0),
        ({"utilization": 7.0}, Basis.SHARE, 19 * 0.4),
    ],
)
def test_the_most_telling_figure_rules(figures: dict[str, Any], rules: Basis, seconds: float) -> None:
    told = report(**figures)

    assert basis(told) is rules
    assert reported_s(told, work(), RATE, 0, 0.0) == pytest.approx(seconds, rel=0.01)


def test_a_queue_without_tokens_is_never_zero() -> None:
    assert reported_s(report(waiting=1), Work(), RATE, 0, 0.0) > 0


def test_more_telling_reports_are_told_apart_from_less_telling_ones() -> None:
    ladder: list[dict[str, Any]] = [
        {},
        {"gpu_utilization": 0.5},
        {"waiting": 0},
        {"waiting_tokens": 0},
        {"prefill_tokens": 0},
    ]

    assert [tells(report(**each)) for each in ladder] == [0, 1, 2, 3, 4]
    assert tells(report(expected_wait_s=0.0)) == 4


def test_own_calls_in_a_queue_are_taken_from_what_it_tells() -> None:
    assert reported_s(report(waiting=5), work(), RATE, 3, 99.0) == pytest.approx(0.8, rel=0.01)
    assert reported_s(report(waiting=2), work(), RATE, 3, 99.0) == 0.0
    assert reported_s(report(waiting_tokens=5_000), work(), RATE, 3, 0.4) == pytest.approx(0.6, rel=0.01)


def test_what_left_the_queue_is_under_way() -> None:
    before = report(0.0, running=1, waiting_tokens=30_000)
    now = report(0.5, running=2, waiting_tokens=10_000)
    work_ = work(2_000, 2_000)

    assert under_way_s(before, 0.3, now, work_, RATE) == pytest.approx(0.3 + 2.0 - 0.5, rel=0.01)


def test_nothing_is_under_way_where_nothing_runs_or_no_tokens_are_told() -> None:
    queue, empty = report(waiting_tokens=30_000), report(0.1, running=0, waiting_tokens=0)

    assert under_way_s(queue, 5.0, empty, work(), RATE) == 0.0
    assert under_way_s(report(waiting=9, running=1), 5.0, report(waiting=1, running=1), work(), RATE) == 0.0


def test_whoever_waits_waits_for_somebody() -> None:
    told = report(running=1, waiting_tokens=10)

    assert under_way_s(told, 0.0, told, work(), RATE) == pytest.approx(0.2, rel=0.01)


def test_an_absurd_queue_that_vanishes_is_forgotten_within_a_minute() -> None:
    absurd, idle = report(waiting_tokens=10**15, running=1), report(0.1, running=1, waiting_tokens=0)

    assert under_way_s(absurd, 0.0, idle, work(), RATE) <= 60.0


NUMBERS = [f.name for f in fields(LoadReport) if "int" in str(f.type) or "float" in str(f.type)]
wild = st.one_of(st.none(), st.floats(), st.integers(), st.integers(-(10**400), 10**400))


@given(st.fixed_dictionaries({name: wild for name in NUMBERS if name != "at"}), st.integers(0, 9))
def test_whatever_figures_come_seconds_are_finite_and_not_negative(
    figures: dict[str, Any], known: int
) -> None:
    told = report(**figures)

    for seconds in (
        reported_s(told, Work(), RATE, known, 1.0),
        under_way_s(told, 1.0, told, Work(), RATE),
    ):
        assert isfinite(seconds)
        assert seconds >= 0
