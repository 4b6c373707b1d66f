"""KV cache events of engines: real payloads over real ZMQ, gaps, restarts, and what is not of the form."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.errors import ConfigError
from mlbalance_client.reporter import LoadBoard, LoadReporter, ReporterSettings
from mlbalance_client.reporter.kv_events import Cleared, KvEventError, KvIndex, Removed, Stored, decode
from mlbalance_client.reporter.kv_feed import KvFeed, KvFollower

from ..conftest import eventually
from .asgi import answering

SAMPLES = Path(__file__).parent / "samples"
VLLM = [json.loads(line) for line in (SAMPLES / "vllm_kv_events.jsonl").read_text().splitlines()]
ARRAY = json.loads((SAMPLES / "vllm_kv_events_array_wire_le_0.20.json").read_text())["payload"]


def board_of() -> LoadBoard:
    """One that would follow events, were it not closed: the test brings them."""
    board = LoadBoard(ReporterSettings(gpu=False, kv_events="tcp://127.0.0.1:1"))
    board.close()
    return board


def stored(*hashes: int, parent: int | None = None, size: int = 128) -> dict[str, Any]:
    return {
        "type": "BlockStored",
        "block_hashes": list(hashes),
        "parent_block_hash": parent,
        "block_size": size,
    }


def batch(*events: Any) -> bytes:
    return msgpack.packb([0.0, list(events), 0])


def test_captured_batches_are_read() -> None:
    for each in VLLM:
        events = decode(msgpack.unpackb(bytes.fromhex(each["payload_hex"]), strict_map_key=False))
        told = [event for event in each["decoded"][1] if event["type"] != "AllBlocksCleared"]

        assert [list(e.hashes) for e in events if not isinstance(e, Cleared)] == [
            e["block_hashes"] for e in told
        ]
    assert any(each["decoded"][1] for each in VLLM)


def test_older_engines_send_arrays() -> None:
    assert decode(ARRAY) == [
        Stored((9187201950435737471,), None, 16),
        Removed((42,)),
        Cleared(),
    ]


def test_other_media_and_later_groups_are_of_no_account() -> None:
    assert (
        decode([0, [{**stored(1), "medium": "CPU_PINNED"}, {**stored(1), "group_idx": 1}, {"type": "New"}]])
        == []
    )
    assert decode([0, [stored(b"\x01")]]) == [Stored((b"\x01",), None, 128)]  # type: ignore[arg-type]


nested = st.recursive(
    st.none()
    | st.integers()
    | st.binary(max_size=4)
    | st.sampled_from(["BlockStored", "BlockRemoved", "type"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["type", "block_hashes", "block_size", "parent_block_hash"]), inner)
    ),
    max_leaves=12,
)


@given(nested)
def test_whatever_is_sent_only_our_error_is_raised(value: Any) -> None:
    for each in (value, [0, value], [0, [value]]):
        try:
            decode(each)
        except KvEventError:
            pass


def test_blocks_of_the_only_call_in_prefill_are_linked_and_what_is_dropped_is_lost() -> None:
    board = board_of()
    index = KvIndex(board.beliefs)
    call = board.begin(prompt="a" * 8192)  # 2048 tokens, 8 blocks of text, 16 of the engine
    index.apply([Stored(tuple(range(16)), None, 128)])
    call.succeed()

    index.apply([Removed((15,))])
    assert set(board.chains._held) == set(call.chain[:7])

    index.apply([Removed(tuple(range(8, 15)))])
    assert set(board.chains._held) == set(call.chain[:4])

    index.apply([Cleared()])
    assert (len(board.chains), len(index)) == (0, 0)


def test_which_call_is_told_by_kinship_and_if_several_fit_none_is_taken() -> None:
    board = board_of()
    index = KvIndex(board.beliefs)
    first = board.begin(prompt="a" * 4096)
    index.apply([Stored(tuple(range(8)), None, 128)])
    first.succeed()
    follow_up = board.begin(prompt="a" * 8192)
    board.begin(prompt="b" * 8192)
    index.apply([Stored(tuple(range(8, 16)), 7, 128)])
    index.apply([Stored((100,), None, 128)])  # either may have brought it
    held = len(board.chains)
    index.apply([Removed((100,))])
    assert len(board.chains) == held

    index.apply([Removed((8,))])
    assert follow_up.chain[4] not in board.chains
    assert follow_up.chain[5] in board.chains


def test_blocks_behind_unknown_ones_and_longer_than_any_prompt_are_not_linked() -> None:
    board = board_of()
    index = KvIndex(board.beliefs)
    board.begin(prompt="a" * 4096)
    index.apply([Stored((1,), 99, 128), Stored(tuple(range(100)), None, 128)])
    index.apply([Removed((1, *range(100)))])

    assert len(board.chains) == 4


class Replays:
    """An engine's buffer of batches from ``first`` on."""

    def __init__(self, first: int, *batches: bytes) -> None:
        self.kept = list(enumerate(batches, first))

    def __call__(self, first: int) -> list[tuple[int, bytes]]:
        return [each for each in self.kept if each[0] >= first]


def follower(replays: Replays) -> KvFollower:
    return KvFollower(KvIndex(board_of().beliefs), replays, msgpack.unpackb)


def test_what_came_before_we_listened_is_replayed() -> None:
    found = follower(Replays(0, batch(stored(1)), batch(stored(2, parent=1))))
    found.batch(2, batch(stored(3, parent=2)))

    assert set(found.index._blocks) == {1, 2, 3}


def test_a_gap_is_replayed() -> None:
    found = follower(Replays(0, batch(stored(1)), batch(stored(2)), batch(stored(3)), batch(stored(9))))
    found.batch(0, batch(stored(1)))
    found.batch(3, batch(stored(4)))

    assert set(found.index._blocks) == {1, 2, 3, 4}


@pytest.mark.parametrize("kept", [Replays(0), Replays(2, batch(stored(3)))])
def test_a_gap_that_is_lost_begins_anew(kept: Replays) -> None:
    found = follower(kept)
    found.batch(0, batch(stored(1)))
    found.batch(3, batch(stored(4)))

    assert set(found.index._blocks) == {4}


def test_a_restart_begins_anew() -> None:
    found = follower(Replays(0))
    for number in range(5):
        found.batch(number, batch(stored(number)))
    found.batch(0, batch(stored(77)))

    assert set(found.index._blocks) == {77}


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\x93\x00", b"\x91" * 5000, msgpack.packb(7)])
def test_what_cannot_be_read_is_dropped(payload: bytes) -> None:
    found = follower(Replays(0))
    found.batch(0, payload)
    found.batch(1, batch(stored(1)))

    assert (found.dropped, set(found.index._blocks)) == (1, {1})


class Engine:
    """Publishes batches and replays them, as vLLM does; ``topic_first``: as from 0.28."""

    def __init__(self, topic_first: bool) -> None:
        self._context = zmq.Context()
        self._topic_first = topic_first
        self.sent: list[bytes] = []
        self._out = self._context.socket(zmq.XPUB)
        self.endpoint = f"tcp://127.0.0.1:{self._out.bind_to_random_port('tcp://127.0.0.1')}"
        self._router = self._context.socket(zmq.ROUTER)
        self.replay = f"tcp://127.0.0.1:{self._router.bind_to_random_port('tcp://127.0.0.1')}"
        self._thread = threading.Thread(target=self._serve)
        self._closing = threading.Event()
        self._thread.start()

    def publish(self, payload: bytes, *, lost: bool = False) -> None:
        if not lost:
            self._out.send_multipart([b"kv-events", len(self.sent).to_bytes(8, "big"), payload])
        self.sent.append(payload)

    def subscribed(self) -> None:
        assert self._out.recv() == b"\x01kv"

    def _serve(self) -> None:
        while not self._closing.is_set():
            if self._router.poll(20):
                peer, _, first = self._router.recv_multipart()
                for number, payload in enumerate(self.sent):
                    if number >= int.from_bytes(first, "big"):
                        topic = [b"kv-events"] if self._topic_first else []
                        self._router.send_multipart([peer, b"", *topic, number.to_bytes(8, "big"), payload])
                self._router.send_multipart(
                    [peer, b"", *([b""] if self._topic_first else []), b"\xff" * 8, b""]
                )

    def close(self) -> None:
        self._closing.set()
        self._thread.join()
        self._out.close(0)
        self._router.close(0)
        self._context.term()


@contextmanager
def followed(topic_first: bool) -> Iterator[tuple[Engine, KvFeed]]:
    engine = Engine(topic_first)
    feed = KvFeed(board_of().beliefs, engine.endpoint, engine.replay, "kv")
    try:
        yield engine, feed
    finally:
        feed.close(wait=True)
        engine.close()


@pytest.mark.parametrize("topic_first", [True, False])
def test_an_engine_is_followed_over_zmq_and_gaps_are_replayed(topic_first: bool) -> None:
    with followed(topic_first) as (engine, feed):
        engine.publish(batch(stored(1)), lost=True)
        engine.subscribed()
        for number in (2, 3, 4):
            engine.publish(batch(stored(number)), lost=number == 3)
        index = feed.follower.index

        assert eventually(lambda: set(index._blocks) == {1, 2, 3, 4})


def test_captured_batches_over_zmq_leave_what_the_engine_holds() -> None:
    held: set[int] = set()
    for each in VLLM:
        for event in each["decoded"][1]:
            match event["type"]:
                case "BlockStored":
                    if event["parent_block_hash"] is None or event["parent_block_hash"] in held:
                        held |= set(event["block_hashes"])
                case "BlockRemoved":
                    held -= set(event["block_hashes"])
                case _:
                    held = set()
    with followed(True) as (engine, feed):
        engine.subscribed()
        for each in VLLM:
            engine.publish(bytes.fromhex(each["payload_hex"]))
        engine.publish(batch(stored(1)))
        index = feed.follower.index

        assert eventually(lambda: set(index._blocks) == held | {1})
        assert feed.follower.dropped == 0


def test_a_board_follows_its_engine_until_it_is_closed_whoever_serves_it() -> None:
    engine = Engine(True)
    board = LoadBoard(
        ReporterSettings(
            gpu=False, kv_events=engine.endpoint, kv_events_replay=engine.replay, kv_events_topic="kv"
        )
    )
    try:
        engine.subscribed()
        with board.begin(prompt="why " * 1024) as call:
            call.first_content()
            call.succeed()
        assert len(board.chains) == 4
        engine.publish(batch({"type": "AllBlocksCleared"}))

        assert eventually(lambda: len(board.chains) == 0)
    finally:
        following = [thread for thread in threading.enumerate() if thread.name == "mlbalance kv events"]
        board.close()
        for thread in following:
            thread.join()
        engine.close()


@pytest.mark.parametrize("make", [LoadReporter, lambda app, **given: LoadBoard(ReporterSettings(**given))])
def test_an_endpoint_that_cannot_be_had_is_named(make: Any) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        make(answering(), kv_events="nowhere")
