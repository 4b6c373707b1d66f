"""One table of prefixes for all clients of a process, whatever threads they run in."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from random import Random

from mlbalance_client.core.load.format import PrefixDelta
from mlbalance_client.load_reports.shared import Key, SharedPrefixes

KEY = ("http://replica", "e1")


def told(shared: SharedPrefixes, key: Key, seq: int, **delta: object) -> int:
    """Apply all of a delta; in how many slices."""
    return sum(1 for _ in shared.apply(key, PrefixDelta(key[1], seq, **delta)))  # type: ignore[arg-type]


def test_all_who_follow_one_life_share_its_number_and_the_last_to_leave_clears_it() -> None:
    shared = SharedPrefixes()
    one, other = shared.join(KEY), shared.join(KEY)
    told(shared, KEY, 1, add=(1, 2))
    assert one == other
    shared.leave(KEY)
    assert shared.table.count(one) == 2
    shared.leave(KEY)
    assert len(shared.table) == 0
    assert list(shared.table.holders(1)) == []


def test_another_epoch_is_another_life() -> None:
    shared = SharedPrefixes()
    old, new = shared.join(KEY), shared.join((KEY[0], "e2"))
    told(shared, KEY, 1, add=(1,))

    assert old != new
    assert list(shared.table.holders(1)) == [old]


def test_what_one_follower_has_told_the_others_do_not_tell_again() -> None:
    shared = SharedPrefixes()
    holder = shared.join(KEY)
    shared.join(KEY)
    told(shared, KEY, 1, add=(1, 2))
    told(shared, KEY, 2, drop=(1,))
    told(shared, KEY, 1, add=(1, 2))
    told(shared, KEY, 2, reset=True, add=(7,))

    assert (shared.table.holds(holder, 1), shared.table.holds(holder, 2), shared.table.holds(holder, 7)) == (
        False,
        True,
        False,
    )


def test_a_reset_is_all_there_is() -> None:
    shared = SharedPrefixes()
    holder = shared.join(KEY)
    told(shared, KEY, 1, add=(1, 2))
    told(shared, KEY, 2, reset=True, add=(2, 3))

    assert [shared.table.holds(holder, c) for c in (1, 2, 3)] == [False, True, True]


def test_a_large_delta_is_taken_in_slices() -> None:
    shared = SharedPrefixes()
    holder = shared.join(KEY)
    rng = Random(1)

    assert told(shared, KEY, 1, add=tuple(rng.getrandbits(64) for _ in range(50_000))) > 10
    assert shared.table.count(holder) == 50_000


def test_threads_that_follow_the_same_replicas_leave_nothing_behind() -> None:
    shared = SharedPrefixes()
    deltas = [PrefixDelta("e", seq, add=(seq << 50, seq), drop=(seq - 3,)) for seq in range(1, 200)]

    def follow(seed: int) -> None:
        rng = Random(seed)
        for _ in range(3):
            key = (f"http://replica-{rng.randrange(3)}", "e")
            holder = shared.join(key)
            for delta in deltas:
                for _ in shared.apply(key, delta):
                    pass
                assert len(list(shared.table.holders(delta.seq))) <= 3
            assert shared.table.holds(holder, 199 << 50)
            assert not shared.table.holds(holder, 1)
            shared.leave(key)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(follow, seed) for seed in range(8)]:
            done.result()

    assert len(shared.table) == 0
    assert shared.table.enrol() < 100
