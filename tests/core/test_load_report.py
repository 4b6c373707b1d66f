"""What a load report takes for true."""

from __future__ import annotations

import pytest

from mlbalance_client.core.load.report import LoadReport, State


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), 1e16, 10**400, -(10**400)])
def test_figures_that_cannot_be_are_unknown(wrong: float) -> None:
    report = LoadReport(source="x", at=1.0, running=wrong, waiting=3, kv_used=wrong).sane()  # type: ignore[arg-type]

    assert (report.running, report.waiting, report.kv_used) == (None, 3, None)


def test_shares_are_cut_and_rates_are_not() -> None:
    report = LoadReport(source="x", at=1.0, kv_used=1.2, gpu_utilization=99.0, utilization=1.2).sane()

    assert (report.kv_used, report.gpu_utilization, report.utilization) == (1.0, 1.0, 1.2)


def test_what_is_sane_stays_the_same_object() -> None:
    report = LoadReport(source="x", at=1.0, running=0, models={"m": "ready"})

    assert report.sane() is report


def test_too_many_names_are_none() -> None:
    names = {str(number): "ready" for number in range(257)}

    assert LoadReport(source="x", at=1.0, models=names, adapters=names).sane().empty


def test_doubts_alone_say_nothing_of_the_load() -> None:
    assert LoadReport(source="x", at=1.0, doubts=("odd",), partial=True).empty
    assert not LoadReport(source="x", at=1.0, running=0).empty
    assert not LoadReport(source="x", at=1.0, state=State.READY).empty


@pytest.mark.parametrize(
    ("used", "total", "share"), [(1, 2, 0.5), (3, 2, 1.0), (1, 0, None), (None, 2, None)]
)
def test_the_share_of_gpu_memory(used: int | None, total: int, share: float | None) -> None:
    report = LoadReport(source="x", at=1.0, gpu_memory_used_bytes=used, gpu_memory_total_bytes=total)

    assert report.gpu_memory == share
