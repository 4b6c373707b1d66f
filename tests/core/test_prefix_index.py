"""The record of what was sent where, against a naive model of itself."""

from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.core.prefix_index import PrefixIndex

chains = st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(0, 4), chains),
        st.tuples(st.just("forget"), st.integers(0, 4), chains),
        st.tuples(st.just("drop"), st.integers(0, 4), st.just([])),
    ),
    max_size=40,
)


def naive_depth(held: set[int], chain: list[int]) -> int:
    for depth, block in enumerate(chain):
        if block not in held:
            return depth
    return len(chain)


@settings(max_examples=200)
@given(actions, chains, st.integers(0, 31))
def test_it_answers_as_plain_sets_would(done: list, chain: list[int], among: int) -> None:
    index = PrefixIndex(capacity_blocks=1000)
    held: dict[int, set[int]] = {place: set() for place in range(5)}
    for action, place, blocks in done:
        if action == "record":
            index.record(place, blocks)
            held[place] |= set(blocks)
        elif action == "forget":
            index.forget(place, blocks)
            held[place] -= set(blocks)
        else:
            index.drop(place)
            held[place] = set()

    depths = {place: naive_depth(held[place], chain) for place in range(5) if among >> place & 1}
    expected = {place: depth for place, depth in depths.items() if depth}

    assert dict(index.deepest(chain, among, 5)) == expected
    assert {place: index.depth(place, chain) for place in depths} == depths
    assert len(index) == len(set().union(*held.values()))


@given(st.lists(chains, min_size=1, max_size=30), st.integers(64, 70))
def test_a_replica_is_never_believed_to_hold_more_than_it_can(sent: list, capacity: int) -> None:
    index = PrefixIndex(capacity_blocks=capacity)
    for number, chain in enumerate(sent):
        index.record(0, [number * 100 + block for block in chain])

    assert len(index) <= capacity


def test_the_beginning_of_a_prompt_outlives_its_end() -> None:
    index = PrefixIndex(capacity_blocks=64)
    index.record(0, range(64))
    index.record(0, range(1000, 1010))

    assert index.depth(0, range(64)) == 54


def test_misses_shrink_what_is_believed_and_hits_restore_it() -> None:
    index = PrefixIndex(capacity_blocks=1000)
    index.record(0, range(500))

    index.confirmed(0, predicted_blocks=400, seen_blocks=0)

    assert index.limit_blocks(0) == 450
    assert len(index) == 450
    for _ in range(100):
        index.confirmed(0, predicted_blocks=10, seen_blocks=10)
    assert index.limit_blocks(0) == 1000


def test_deepest_names_the_deepest_when_there_are_too_many() -> None:
    index = PrefixIndex(capacity_blocks=1000)
    for place in range(100):
        index.record(place, range(1 + place % 10))

    found = index.deepest(range(20), (1 << 100) - 1, 8)

    assert len(found) == 8
    assert {depth for _, depth in found} == {10}
