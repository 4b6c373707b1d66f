"""What a load report takes for true."""

from __future__ import annotations

from random import Random

import pytest

from mlbalance_client.config import PickingConfig
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.core.model import Replica, ReplicaId


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), 1e16, 10**400, -(10**400)])
def test_figures_that_cannot_be_are_unknown(wrong: float) -> None:
    report = LoadReport(source="x", at=1.0, running=wrong, waiting=3, kv_used=wrong).sane()  # type: ignore[arg-type]

    assert (report.running, report.waiting, report.kv_used) == (None, 3, None)


@pytest.mark.parametrize(
    ("told", "share"), [(1.0, 1.0), (1.02, 1.0), (1.1, 1.0), (1.11, None), (41.0, None), (99, None)]
)
def test_a_share_little_above_one_is_cut_and_one_far_above_is_none(told: float, share: float | None) -> None:
    report = LoadReport(source="x", at=1.0, kv_used=told, gpu_utilization=told, utilization=told).sane()

    assert (report.kv_used, report.gpu_utilization, report.utilization) == (share, share, told)


def test_more_requests_than_any_server_has_are_unknown() -> None:
    report = LoadReport(source="x", at=1.0, running=100_001, waiting=100_000, prefill_tokens=10**9).sane()

    assert (report.running, report.waiting, report.prefill_tokens) == (None, 100_000, 10**9)


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
    ("used", "total", "share"), [(1, 2, 0.5), (21, 20, 1.0), (3, 2, None), (1, 0, None), (None, 2, None)]
)
def test_the_share_of_gpu_memory(used: int | None, total: int, share: float | None) -> None:
    report = LoadReport(source="x", at=1.0, gpu_memory_used_bytes=used, gpu_memory_total_bytes=total)

    assert report.gpu_memory == share


def test_a_fleet_drops_what_cannot_be_of_every_report_that_it_hears() -> None:
    replica = ReplicaId("a")
    fleet = Fleet(PickingConfig(), Random(1), expiry_s=5.0)
    fleet.update([Replica(replica, "http://a")])
    fleet.hear(replica, LoadReport(source="x", at=1.0, running=-5, waiting=3, kv_used=1.05, state="ready"))  # type: ignore[arg-type]

    assert fleet.report(replica, 1.0) == LoadReport(source="x", at=1.0, waiting=3, kv_used=1.0)

    fleet.hear(replica, LoadReport(source="x", at=2.0, running=-5, waiting="3"))  # type: ignore[arg-type]

    heard = fleet.report(replica, 2.0)
    assert heard is not None
    assert heard.at == 1.0
