"""The record of what was sent where, against a naive model of itself."""

from collections import OrderedDict
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.core.placement.prefix_index import PrefixIndex

chains = st.lists(st.integers(0, 30), min_size=1, max_size=12, unique=True)
prompts = st.lists(st.integers(0, 2), min_size=1, max_size=8)
actions = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(0, 4), prompts),
        st.tuples(st.just("forget"), st.integers(0, 4), prompts),
        st.tuples(st.just("drop"), st.integers(0, 4), st.just([])),
    ),
    max_size=40,
)


def chain_of(prompt: list[int]) -> list[int]:
    """As real hashes, each stands for all of the prompt up to its block: 1, then two bits a block."""
    block = 1
    return [block := block << 2 | each for each in prompt]


def goes_on_from(block: int, start: int) -> bool:
    return block >> max(0, block.bit_length() - start.bit_length()) == start


def naive_depth(held: set[int], chain: list[int]) -> int:
    for depth, block in enumerate(chain):
        if block not in held:
            return depth
    return len(chain)


@settings(max_examples=200)
@given(actions, prompts, st.integers(0, 31))
def test_it_answers_as_plain_sets_would(done: list, asked: list[int], among: int) -> None:
    chain = chain_of(asked)
    index = PrefixIndex(capacity_blocks=1000)
    held: dict[int, set[int]] = {place: set() for place in range(5)}
    for action, place, prompt in done:
        blocks = chain_of(prompt)
        if action == "record":
            index.record(place, blocks)
            held[place] |= set(blocks)
        elif action == "forget":
            # Whoever has not the end of this prompt has nothing that goes on from there.
            beyond = {block for block in held[place] if goes_on_from(block, blocks[-1])}
            index.forget(place, sorted(beyond))
            held[place] -= beyond
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


@settings(max_examples=20)
@given(st.integers())
def test_what_was_not_used_for_the_longest_goes_first_and_of_that_the_deepest(seed: int) -> None:
    rng = Random(seed)
    index = PrefixIndex(capacity_blocks=64)
    held: OrderedDict[int, None] = OrderedDict()
    for _ in range(600):
        chain = chain_of([rng.randrange(3) for _ in range(rng.randrange(1, 9))])
        known = sum(block in held for block in chain)
        for block in reversed(chain):
            held[block] = None
            held.move_to_end(block)

        assert index.record(0, chain) == known
        while len(held) > 64:
            held.popitem(last=False)
        if rng.random() < 0.1:
            index.forget(0, chain[known:])
            for block in chain[known:]:
                held.pop(block, None)
        assert len(index) == len(held)
        asked = chain_of([rng.randrange(3) for _ in range(8)])
        assert index.depth(0, asked) == naive_depth(set(held), asked)


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
