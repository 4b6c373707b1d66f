"""One client's part of a replica's room, where the replica grants nobody anything: all together fill it, about once."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.config import AdmissionConfig, PickingConfig
from mlbalance_client.core.admission import Admission
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.load.own_part import OwnPart
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.core.model import Replica, ReplicaId

A = ReplicaId("a")
CALL_S = 0.4
CLIENTS = 16


def one_of(clients: int, seed: int = 1, *, calls: int = 10) -> OwnPart:
    """A client whose calls are as many as each other's, at the only replica."""
    part = OwnPart(Random(seed), 10.0)
    for at in range(20):
        part.hear(0, at / 10, calls // 10, clients * calls // 10, 9.0)
    return part


def takes(part: OwnPart, most_s: float, now: float, most: int = 100) -> int:
    """How many usual calls it sends now."""
    taken = 0
    while taken < most and part.opens_in_s(0, most_s, CALL_S, now) == 0.0:
        part.sent(0, CALL_S)
        taken += 1
    return taken


@pytest.mark.parametrize("room_s", [0.2, 2.0])
@pytest.mark.parametrize("clients", [4, 16, 64])
def test_all_together_fill_the_room_once(clients: int, room_s: float) -> None:
    rounds = 300
    sent = 0
    for seed in range(rounds):
        for number in range(clients):
            part = OwnPart(Random(seed * 1000 + number), 10.0)
            part.hear(0, 0.0, 10, 10 * clients, 1.0)
            sent += takes(part, 1.0 + room_s, 0.0)

    assert sent / rounds == pytest.approx(room_s / CALL_S, rel=0.2)


def test_one_that_is_alone_is_not_held_up() -> None:
    assert takes(one_of(1), 0.5, 2.0) == 100


def test_room_grows_as_work_drains_and_opens_when_it_was_said_to() -> None:
    part = one_of(8)
    part.sent(0, 3 * CALL_S)
    opens_s = part.opens_in_s(0, 9.5, CALL_S, 1.9)

    assert opens_s > 1.0
    assert part.opens_in_s(0, 9.5, CALL_S, 1.9 + opens_s / 2) == pytest.approx(opens_s / 2)
    assert part.opens_in_s(0, 9.5, CALL_S, 1.9 + opens_s + 1e-9) == 0.0


def test_who_has_not_used_a_better_draw_keeps_it() -> None:
    """Light clients would else wait for a turn as long as heavy ones who have just had theirs."""

    def needs_s(parts: list[OwnPart]) -> float:
        return sum(part.opens_in_s(0, 1.0, CALL_S, 5.0) for part in parts) / len(parts)

    kept, used = ([one_of(8, seed) for seed in range(50)] for _ in range(2))
    for part in used:
        part.sent(0, 0.01)
    for part in kept + used:
        part.hear(0, 5.0, 1, 8, 0.9)

    assert needs_s(kept) < needs_s(used) / 2


def test_old_reports_and_replicas_that_left_hold_nobody_up() -> None:
    part = one_of(16)
    part.sent(0, 100.0)
    assert part.opens_in_s(0, 1.0, CALL_S, 2.0) > 0.0
    assert part.opens_in_s(0, 1.0, CALL_S, 20.0) == 0.0
    part.drop(0)
    assert part.opens_in_s(0, 1.0, CALL_S, 2.0) == 0.0


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 5000), st.floats(0, 60)), min_size=1, max_size=30),
    st.floats(0.0, 5.0),
    st.floats(1e-6, 60.0),
)
def test_whoever_waits_has_a_turn_to_come(
    reports: list[tuple[int, int, float]], most_s: float, call_s: float
) -> None:
    part = OwnPart(Random(7), 1e9)
    for at, (own, calls, stood_s) in enumerate(reports):
        part.hear(0, float(at), own, calls, stood_s)
    now = float(len(reports))

    assert 0.0 < part.share <= 1.0
    opens_s = part.opens_in_s(0, most_s, call_s, now)
    assert 0.0 <= opens_s < 1e6
    assert part.opens_in_s(0, most_s, call_s, now + opens_s * (1 + 1e-9) + 1e-6) == 0.0


def pulling(calls_each: int, at: float, **grant: int) -> int:
    """Of 16 clients whose calls wait for the one replica, how many pull as they hear that next to nothing stands."""
    found = 0
    for number in range(CLIENTS):
        config = AdmissionConfig(engine_queue_s=3.0)
        fleet = Fleet(PickingConfig(), Random(number), windows=config)
        fleet.update([Replica(A, "http://a")])
        queue = Admission(config, fleet)

        def tell(now: float, waiting: int, fleet: Fleet = fleet, **free: int) -> None:
            counts = {"running": 10, "waiting": waiting, "batch_limit": 256}
            fleet.hear(A, LoadReport(source="s", at=now, **counts, **free))  # type: ignore[arg-type]

        demand = fleet.demand(fingerprint(b"x"), text_bytes=1, prompt_tokens=2000)
        tell(0.0, 100)
        assert not any(queue.enter(queue.waiting(demand, 0.0), 0.0) for _ in range(calls_each))
        tell(at, 0, **grant)
        found += bool(queue.tick(at))
    return found


def test_clients_that_wait_do_not_all_fill_the_same_gap() -> None:
    assert 0 < pulling(3, 4.0) < CLIENTS / 2
    assert 0 < pulling(1, 2.0) < CLIENTS / 2


def test_who_is_granted_room_need_not_share_it_again() -> None:
    assert pulling(3, 4.0, free_tokens=2000) == CLIENTS


def test_a_call_that_waits_for_long_nearly_alone_has_bad_luck() -> None:
    """Others' ordinary calls are not waiting, or this client's would be more: it might wait for a turn for ever."""
    assert pulling(1, 4.0) == CLIENTS
