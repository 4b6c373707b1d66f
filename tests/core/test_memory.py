"""A replica whose memory is near its limit gets no more while others have room."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from mlbalance_client.config import PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.core.model import Replica, ReplicaId

FULL, ROOMY = ReplicaId("full"), ReplicaId("roomy")
GPU = 80 * 10**9


def fleet(**memory: Any) -> Fleet:
    made = Fleet(PickingConfig(), Random(1), expiry_s=5.0)
    made.update([Replica(FULL, "http://full"), Replica(ROOMY, "http://roomy")])
    made.hear(FULL, LoadReport(source="test", at=0.0, gpu_utilization=0.05, **memory))
    made.hear(ROOMY, LoadReport(source="test", at=0.0, gpu_utilization=1.0, kv_used=0.5))
    return made


def picked(made: Fleet, now: float = 0.1) -> ReplicaId:
    demand = made.demand(fingerprint(b"x" * 2000), text_bytes=2000)
    return made.pick(demand, now).replica.id


@pytest.mark.parametrize(
    ("memory", "full"),
    [
        ({"kv_used": 0.97}, True),
        ({"kv_used": 0.90}, False),
        ({"gpu_memory_used_bytes": GPU * 99 // 100, "gpu_memory_total_bytes": GPU}, True),
        ({"gpu_memory_used_bytes": GPU * 92 // 100, "gpu_memory_total_bytes": GPU}, False),
        ({"kv_used": 0.97, "kv_capacity_tokens": 100_000}, False),
        ({"kv_used": 0.2, "gpu_memory_used_bytes": GPU, "gpu_memory_total_bytes": GPU}, False),
    ],
)
def test_full_memory_is_left_alone_and_what_engines_take_by_design_is_not_full(
    memory: dict[str, Any], full: bool
) -> None:
    made = fleet(**memory)

    assert made.fitness.fullness.full(0.1) == (1 if full else 0)
    assert {picked(made) for _ in range(20)} == ({ROOMY} if full else {FULL, ROOMY})


def test_where_a_queue_is_told_it_rules() -> None:
    made = fleet()
    made.hear(FULL, LoadReport(source="test", at=0.1, waiting=0, kv_used=1.0))

    assert made.fitness.fullness.full(0.2) == 0


def test_where_all_are_full_the_call_is_placed_all_the_same() -> None:
    made = fleet(kv_used=1.0)
    made.hear(ROOMY, LoadReport(source="test", at=0.0, gpu_utilization=1.0, kv_used=1.0))

    assert {picked(made) for _ in range(20)} == {FULL, ROOMY}


def test_room_is_heard_of_silence_is_not_and_old_reports_are_forgotten() -> None:
    made = fleet(kv_used=1.0)
    made.hear(FULL, LoadReport(source="test", at=0.1, gpu_utilization=0.05))
    assert picked(made) == ROOMY

    made.hear(FULL, LoadReport(source="test", at=0.2, gpu_utilization=0.05, kv_used=0.3))
    assert made.fitness.fullness.full(0.3) == 0
    made.hear(FULL, LoadReport(source="test", at=0.4, gpu_utilization=0.05, kv_used=1.0))
    made.hear(ROOMY, LoadReport(source="test", at=5.5, gpu_utilization=1.0, kv_used=0.5))
    assert made.fitness.fullness.full(5.3) == 1
    assert made.fitness.fullness.full(5.5) == 0


def test_of_two_reports_the_older_one_is_not_believed() -> None:
    made = fleet(kv_used=1.0)
    made.hear(FULL, LoadReport(source="other", at=-0.5, gpu_utilization=0.05, kv_used=0.3))

    assert made.fitness.fullness.full(0.1) == 1


def test_a_place_that_is_free_again_is_not_full() -> None:
    made = fleet(kv_used=1.0)
    made.update([Replica(ROOMY, "http://roomy")])

    assert made.fitness.fullness.full(0.1) == 0
