"""What the log is told of a replica's reports: each trouble once a spell, its end, and no flood."""

from __future__ import annotations

import pytest

from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.load_reports import Complaints
from mlbalance_client.load_reports.complaints import doubtful

ODD = "understood in part only (x): one; two"


def report(*doubts: str) -> LoadReport:
    return LoadReport(source="x", at=0.0, doubts=doubts)


def test_each_spell_of_a_trouble_and_its_end_make_one_line() -> None:
    complaints = Complaints()
    odd, well = report("one", "two"), report()
    heard = [
        (0.0, well, None),
        (10.0, odd, ODD),
        (11.0, odd, None),
        (500.0, odd, None),
        (501.0, well, "understood again"),
        (502.0, well, None),
        (600.0, odd, ODD),
        (700.0, report("three"), "understood in part only (x): three"),
    ]

    assert [complaints.hear(doubtful(each), now) for now, each, _ in heard] == [line for _, _, line in heard]


def test_a_trouble_that_comes_and_goes_makes_a_line_a_minute_at_most() -> None:
    complaints = Complaints()
    lines = [
        complaints.hear(doubtful(report("one") if now % 2 else report()), float(now)) for now in range(600)
    ]

    assert 1 <= sum(line is not None for line in lines) <= 10


def test_what_holds_when_the_minute_is_over_is_said_then() -> None:
    complaints = Complaints()
    assert complaints.hear("a", 0.0) == "a"
    assert complaints.hear("", 1.0) is None
    assert complaints.hear("b", 59.0) is None
    assert complaints.hear("b", 60.0) == "b"
    assert complaints.hear("", 119.0) is None
    assert complaints.hear("", 120.0) == "understood again"


@pytest.mark.parametrize(("trouble", "understood"), [("", True), ("x", False)])
def test_it_knows_whether_anything_was_ever_understood(trouble: str, understood: bool) -> None:
    complaints = Complaints()
    complaints.hear(trouble, 0.0)
    assert complaints.understood is understood
    complaints.hear("x", 1.0)
    assert complaints.understood is understood
