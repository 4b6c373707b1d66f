"""A replica whose memory is near its limit gets no more while others have room."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from mlbalance_client.config import PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.load_report import LoadReport
from mlbalance_client.core.model import Replica, ReplicaId

FULL, ROOMY = ReplicaId("full"), ReplicaId("roomy")
GPU = 80 * 10**9


def fleet(**memory: Any) -> Fleet:
    made = Fleet(PickingConfig(), Random(1), expiry_s=5.0)
    made.update([Replica(FULL, "http://full"), Replica(ROOMY, "http://roomy")])
    made.hear(FULL, LoadReport(source="test", at=0.0, waiting=0, **memory))
    made.hear(ROOMY, LoadReport(source="test", at=0.0, waiting=3, kv_used=0.5))
    return made


def picked(made: Fleet, now: float = 0.1) -> ReplicaId:
    demand = made.demand(fingerprint(b"x" * 2000), text_bytes=2000)
    return made.pick(demand, now).replica.id


@pytest.mark.parametrize(
    ("memory", "goes_to"),
    [
        ({"kv_used": 0.97}, ROOMY),
        ({"kv_used": 0.90}, FULL),
        ({"gpu_memory_used_bytes": GPU * 99 // 100, "gpu_memory_total_bytes": GPU}, ROOMY),
        ({"gpu_memory_used_bytes": GPU * 92 // 100, "gpu_memory_total_bytes": GPU}, FULL),
        ({"kv_used": 0.2, "gpu_memory_used_bytes": GPU, "gpu_memory_total_bytes": GPU}, FULL),
    ],
)
def test_full_memory_is_left_alone_and_what_engines_take_by_design_is_not_full(
    memory: dict[str, Any], goes_to: ReplicaId
) -> None:
    assert picked(fleet(**memory)) == goes_to


def test_where_all_are_full_the_call_is_placed_all_the_same() -> None:
    made = fleet(kv_used=1.0)
    made.hear(ROOMY, LoadReport(source="test", at=0.0, waiting=3, kv_used=1.0))

    assert picked(made) == FULL


def test_room_is_heard_of_silence_is_not_and_old_reports_are_forgotten() -> None:
    made = fleet(kv_used=1.0)
    made.hear(FULL, LoadReport(source="test", at=0.1, waiting=0))
    assert picked(made) == ROOMY

    made.hear(FULL, LoadReport(source="test", at=0.2, waiting=0, kv_used=0.3))
    assert picked(made, 0.3) == FULL
    made.hear(FULL, LoadReport(source="test", at=0.4, waiting=0, kv_used=1.0))
    made.hear(ROOMY, LoadReport(source="test", at=5.5, waiting=3, kv_used=0.5))
    assert made.fullness.full(5.3) == 1
    assert made.fullness.full(5.5) == 0


def test_a_place_that_is_free_again_is_not_full() -> None:
    made = fleet(kv_used=1.0)
    made.update([Replica(ROOMY, "http://roomy")])

    assert made.fullness.full(0.1) == 0
