"""The guard: the last good list survives the registry's mistakes, for as long as it should and no longer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.config import RegistryConfig
from mlbalance_client.core.members.guard import Guard
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.core.model import Replica, ReplicaId, ReplicaState


def replica(name: str, state: ReplicaState = ReplicaState.HEALTHY, url: str = "") -> Replica:
    return Replica(ReplicaId(name), url or f"http://10.0.0.{ord(name[0]) % 200}:1", state=state)


def seen(*replicas: Replica | str) -> Membership:
    return Membership(tuple(replica(r) if isinstance(r, str) else r for r in replicas), "test")


def guard(**keys: object) -> Guard:
    return Guard(RegistryConfig(kind="test", **keys))


def ids(guard: Guard) -> str:
    return "".join(sorted(r.id for r in guard.in_force or () if r.usable))


OUT, DRAINING = ReplicaState.OUT, ReplicaState.DRAINING


def test_nothing_is_in_force_before_the_first_answer() -> None:
    it = guard()
    assert it.in_force is None
    it.failed("no route", 1.0)
    assert (it.in_force, it.trouble) == (None, "no route")
    it.observe(seen("a"), 2.0)
    assert (ids(it), it.trouble) == ("a", "")


def test_errors_keep_the_list_for_ever_unless_said_otherwise() -> None:
    it = guard()
    it.observe(seen("a", "b"), 0.0)
    it.failed("gone", 1.0)
    it.tick(1e9)
    assert (ids(it), it.due) == ("ab", None)

    it = guard(max_stale_s=60)
    it.observe(seen("a", "b"), 0.0)
    it.failed("gone", 10.0)
    it.failed("gone", 50.0)
    assert it.due == 70.0
    it.tick(69.9)
    assert ids(it) == "ab"
    it.tick(70.0)
    assert (it.in_force, "given up" in it.trouble) == ((), True)
    it.observe(seen("c"), 80.0)
    assert (ids(it), it.trouble) == ("c", "")


@pytest.mark.parametrize("nobody", [seen(), seen(replica("a", OUT), replica("b", DRAINING))])
def test_emptiness_is_believed_only_when_it_lasts(nobody: Membership) -> None:
    it = guard(empty_hold_s=100)
    it.observe(seen("a", "b"), 0.0)
    it.observe(nobody, 10.0)
    assert (ids(it), it.due) == ("ab", 110.0)
    assert "kept" in it.trouble
    it.observe(nobody, 60.0)
    it.tick(109.9)
    assert ids(it) == "ab"
    it.tick(110.0)
    assert (ids(it), it.due) == ("", None)
    assert "kept" not in it.trouble


def test_why_a_list_is_empty_is_said() -> None:
    it = guard()
    it.observe(replace(seen(), empty_because="the token may not read it"), 0.0)
    assert it.trouble == "the token may not read it"
    it.observe(seen(replace(replica("a", OUT), because="check: ping")), 0.0)
    assert it.trouble == "none of 1 replicas is usable: a out (check: ping)"


def test_waiting_confirms_nothing_while_the_source_fails() -> None:
    it = guard(empty_hold_s=100)
    it.observe(seen("a"), 0.0)
    it.observe(seen(), 1.0)
    it.failed("gone", 2.0)
    it.tick(1000.0)
    assert ids(it) == "a"
    it.observe(seen(), 1001.0)
    assert (ids(it), it.due) == ("a", 1101.0)
    it.tick(1101.0)
    assert ids(it) == ""


def test_a_shrinkage_is_held_anew_after_an_outage() -> None:
    it = guard(shrink_hold_s=30)
    it.observe(seen("a", "b", "c", "d"), 0.0)
    it.observe(seen("a"), 1.0)
    it.failed("gone", 2.0)
    it.observe(seen("a"), 40.0)
    assert (ids(it), it.due) == ("abcd", 70.0)
    it.observe(seen("a"), 69.0)
    assert ids(it) == "abcd"
    it.tick(70.0)
    assert ids(it) == "a"


def test_a_sudden_shrinkage_is_held_and_those_that_are_named_follow_it() -> None:
    it = guard(shrink_hold_s=30)
    it.observe(seen("a", "b", "c", "d", "e"), 0.0)
    it.observe(seen("a", replica("b", DRAINING)), 1.0)
    assert ids(it) == "acde"
    it.observe(seen(replica("a", url="http://10.0.0.9:9"), "x"), 2.0)
    assert ids(it) == "abcdex"
    assert "http://10.0.0.9:9" in {r.url for r in it.in_force or ()}
    it.tick(31.0)
    assert (ids(it), it.trouble) == ("ax", "")


def test_the_dead_do_not_count_when_the_living_vanish() -> None:
    dead = [replica(name, OUT) for name in "mnopqrstuv"]
    it = guard(shrink_hold_s=30)
    it.observe(seen(*"abcdefghij", *dead), 0.0)
    it.observe(seen("a", *dead), 1.0)
    assert (ids(it), it.due) == ("abcdefghij", 31.0)
    assert it.trouble.startswith("only 1 of 10 replicas are left")


def test_tidying_up_the_dead_is_no_shrinkage() -> None:
    it = guard()
    it.observe(seen("a", "b", *(replica(name, OUT) for name in "mnopqrstuv")), 0.0)
    it.observe(seen("a", "b"), 1.0)
    assert (len(it.in_force or ()), it.trouble) == (2, "")


def test_who_is_named_as_out_has_not_vanished() -> None:
    it = guard()
    it.observe(seen("a", "b", "c", "d"), 0.0)
    it.observe(seen("a", *(replica(name, OUT) for name in "bcd")), 1.0)
    assert (ids(it), it.trouble) == ("a", "")


def test_one_whose_address_another_has_by_now_is_not_held() -> None:
    it = guard()
    it.observe(seen("a", "b", "c", "d", "e"), 0.0)
    it.observe(seen("a", replica("x", url=replica("b").url)), 1.0)
    assert ids(it) == "acdex"


def test_half_may_go_at_once_and_all_may_be_replaced() -> None:
    it = guard()
    it.observe(seen("a", "b", "c", "d"), 0.0)
    it.observe(seen("a", "b"), 1.0)
    assert (ids(it), it.trouble) == ("ab", "")
    it.observe(seen("x", "y"), 2.0)
    assert (ids(it), it.trouble) == ("xy", "")


def test_a_registry_that_fills_up_again_after_emptiness_is_held_anew() -> None:
    it = guard(empty_hold_s=300, shrink_hold_s=30)
    it.observe(seen("a", "b", "c", "d"), 0.0)
    it.observe(seen(), 1.0)
    it.observe(seen("a"), 200.0)
    assert (ids(it), it.due) == ("abcd", 230.0)
    it.observe(seen("a", "b"), 201.0)
    assert (ids(it), it.trouble) == ("ab", "")


def flap(it: Guard, times: int, every_s: float = 2.0, at: float = 0.0) -> float:
    for _ in range(times):
        it.observe(seen("a", "b", "c", replica("d", OUT)), at + every_s / 2)
        at += every_s
        it.observe(seen("a", "b", "c", "d"), at)
    return at


def test_a_flapping_replica_is_out_until_it_stays() -> None:
    it = guard(flap_departures=3, flap_window_s=60, flap_hold_s=10)
    it.observe(seen("a", "b", "c", "d"), 0.0)
    assert flap(it, 2) == 4.0
    assert ids(it) == "abcd"
    assert flap(it, 1, at=4.0) == 6.0
    assert (ids(it), it.due) == ("abc", 16.0)
    it.tick(16.0)
    assert ids(it) == "abcd"


def test_slow_comings_and_goings_are_no_flapping() -> None:
    it = guard(flap_departures=3, flap_window_s=60)
    it.observe(seen("a", "b", "c", "d"), 0.0)
    flap(it, 10, every_s=40.0)
    assert ids(it) == "abcd"


def test_if_all_flap_the_registry_does() -> None:
    it = guard(flap_departures=2, empty_hold_s=0)
    for at in range(0, 20, 2):
        it.observe(seen("a", "b"), float(at))
        assert ids(it) == "ab"
        it.observe(seen(), at + 1.0)


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("http://10.1.2.3:80", True),
        ("http://10.1.2.3", True),
        ("http://11.1.2.3:80", False),
        ("https://[fd00::1]:80/v1", True),
        ("http://[fe80::1]", False),
        ("http://localhost:80", False),
        ("http://10.1.2.3.example.com", False),
    ],
)
def test_addresses_outside_the_networks_are_refused_and_reported(url: str, allowed: bool) -> None:
    it = guard(allowed_networks=["10.0.0.0/8", "fd00::/8"])
    it.observe(seen("a", replica("b", url=url)), 0.0)
    assert ids(it) == "ab" if allowed else "a"
    assert any(url in remark for remark in it.remarks) is not allowed


def test_what_is_left_out_is_said_in_one_line() -> None:
    it = guard(allowed_networks=["10.0.0.0/8"])
    it.observe(seen(*(Replica(ReplicaId(f"r{n}"), f"http://11.0.0.{n}:1") for n in range(200))), 0.0)
    (remark,) = it.remarks
    assert remark.startswith("left out, outside allowed_networks: r0 (http://11.0.0.0:1), r1 ")
    assert remark.endswith("and 195 more")


def test_of_two_with_one_id_the_first_counts() -> None:
    it = guard()
    it.observe(seen(replica("a", url="http://10.0.0.1:1"), replica("a", url="http://10.0.0.2:1")), 0.0)
    assert [r.url for r in it.in_force or ()] == ["http://10.0.0.1:1"]
    assert "http://10.0.0.2:1" in it.remarks[0]


names = st.sets(st.sampled_from("abcdefgh"))
steps = st.lists(
    st.tuples(
        st.floats(0.0, 20.0),
        st.one_of(st.none(), st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from(ReplicaState))),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(steps)
def test_a_living_fleet_is_never_emptied_within_its_guard(
    steps: list[tuple[float, dict[str, ReplicaState] | None]],
) -> None:
    it = guard(empty_hold_s=50, shrink_hold_s=20, flap_departures=2, flap_window_s=30, flap_hold_s=5)
    now, last_usable = 0.0, None
    for wait_s, step in steps:
        while it.due is not None and it.due <= now + wait_s:
            due = it.due
            it.tick(due)
            assert it.due is None or it.due > due, "a tick that is due must bring something about"
        now += wait_s
        if step is None:
            before = it.in_force
            it.failed("cause", now)
            assert it.in_force == before
            assert "cause" in it.trouble
            continue
        it.observe(seen(*(replica(name, state) for name, state in step.items())), now)
        usable = {
            name for name, state in step.items() if state in (ReplicaState.HEALTHY, ReplicaState.DEGRADED)
        }
        if usable:
            last_usable = now
            assert ids(it), "somebody is usable, so somebody is used"
            assert usable & set(ids(it))
        elif last_usable is not None and now - last_usable < 50:
            assert ids(it), "within the hold nothing empties the fleet"
        for r in it.in_force or ():
            if r.id in step and usable and step[r.id] != r.state:
                assert r.state is OUT, "who is named is as he is said to be, unless he flaps"
