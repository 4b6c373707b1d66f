"""The load stream as a client reads it: whatever comes, cut wherever, it is a report or it is dropped."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.fingerprint import SCHEME
from mlbalance_client.core.load.format import PrefixDelta, encode_load, encode_prefixes
from mlbalance_client.core.load.prefix_delta import Hashing
from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.load_reports import ReportError
from mlbalance_client.load_reports.stream import StreamReader


def load(seq: int, acked: dict[str, int] | None = None) -> bytes:
    report = LoadReport(
        source="stream", at=0.0, epoch="e", seq=seq, state=State.READY, prefill_tokens=seq * 10
    )
    return b"event: load\nid: %d\ndata: %b\n\n" % (seq, encode_load(report, acked=acked))


def prefixes(delta: PrefixDelta) -> bytes:
    return b"event: prefixes\ndata: %b\n\n" % encode_prefixes(delta)


def read(reader: StreamReader, chunks: Iterable[bytes], at: float = 5.0) -> list[LoadReport | PrefixDelta]:
    return [found for chunk in chunks for found in reader.feed(chunk, at)]


@pytest.fixture
def reader() -> StreamReader:
    return StreamReader("me", Hashing())


def test_reports_and_deltas_come_out_in_order_with_the_moment_of_their_coming(reader: StreamReader) -> None:
    delta = PrefixDelta("e", 4, reset=True, add=(1, 2**64 - 1))
    found = read(reader, [load(1) + prefixes(delta) + b": ping\n\n" + load(2)])

    assert [getattr(each, "prefill_tokens", None) for each in found] == [10, None, 20]
    assert found[1] == delta
    assert [each.at for each in found if isinstance(each, LoadReport)] == [5.0, 5.0]


def test_what_comes_by_the_stream_is_known_to_have_been_pushed(reader: StreamReader) -> None:
    (report,) = reader.feed(b'event: load\ndata: {"v":1,"epoch":"e","seq":1,"state":"ready"}\n\n', 1.0)

    assert isinstance(report, LoadReport)
    assert report.pushed


def test_the_newest_id_is_the_place_to_come_back_to(reader: StreamReader) -> None:
    assert reader.last_id is None
    read(reader, [load(7), load(8)])
    assert reader.last_id == "8"


@pytest.mark.parametrize(
    "given_id", [b"a\x00b", b"1" * 21, b"", "\u00b2".encode(), b"1 2", b"x: y", b"7\rid: -1"]
)
def test_an_id_that_no_reporter_gives_is_not_sent_back(reader: StreamReader, given_id: bytes) -> None:
    read(reader, [b"id: " + given_id + b"\n\n"])
    assert reader.last_id in (None, "7")
    assert reader.last_id is None or b"\r" not in given_id


def test_a_report_acknowledges_its_readers_calls_only_and_without_a_word_none(reader: StreamReader) -> None:
    found = read(reader, [load(1), load(2, {"other": 9}), load(3, {"other": 9, "me": 4})])

    assert [each.acked for each in found if isinstance(each, LoadReport)] == [0, 0, 4]


@pytest.mark.parametrize(
    "event",
    [
        b"event: load\ndata: {\n\n",
        b"event: load\ndata: []\n\n",
        b"event: load\ndata: " + b"[" * 5_000 + b"\n\n",
        b'event: load\ndata: {"v":2,"epoch":"e","seq":1,"state":"ready"}\n\n',
        b'event: load\ndata: {"v":1,"epoch":"e","seq":-1,"state":"ready"}\n\n',
        b'event: load\ndata: {"v":1,"epoch":"e","seq":1,"state":"fine"}\n\n',
        b'event: load\ndata: {"v":1,"epoch":"e","seq":1,"state":"ready","waiting":"3"}\n\n',
        b"event: load\ndata: " + b"x" * 70_000 + b"\n\n",
        b'event: prefixes\ndata: {"v":1,"epoch":"e","seq":1,"scheme":"md5/1/1","add":""}\n\n',
        b'event: prefixes\ndata: {"v":1,"epoch":"e","seq":1,"scheme":"%b","add":"AAAA"}\n\n'
        % SCHEME.encode(),
        b'event: prefixes\ndata: {"v":1,"epoch":"e","seq":1,"scheme":"%b","add":"!"}\n\n' % SCHEME.encode(),
        prefixes(PrefixDelta("e", 1, hashing=Hashing.by(b"k"))),
    ],
)
def test_a_malformed_event_is_counted_told_and_dropped_and_the_next_is_read(
    reader: StreamReader, event: bytes
) -> None:
    found = read(reader, [event, load(2)])

    assert len(found) == 1
    assert reader.malformed == 1
    assert reader.doubt
    assert len(reader.doubt) < 300


@pytest.mark.parametrize(
    ("theirs", "ours", "read_"),
    [
        (Hashing.by(b"old"), Hashing.by(b"old"), True),
        (Hashing.by(b"old"), Hashing.by(b"new"), False),
        (Hashing(Hashing.by(b"old").scheme), Hashing.by(b"new"), True),  # who does not tell is believed
        (Hashing(), Hashing.by(b"new"), False),
    ],
)
def test_hashes_by_another_secret_mean_nothing(theirs: Hashing, ours: Hashing, read_: bool) -> None:
    reader = StreamReader("me", ours)
    found = read(reader, [prefixes(PrefixDelta("e", 1, reset=True, add=(3,), hashing=theirs))])

    assert bool(found) is read_
    assert (reader.doubt is None) is read_
    assert b"new" not in prefixes(PrefixDelta("e", 1, hashing=ours))


@pytest.mark.parametrize("figure", ["-5", "1e400", "1e300", "9" * 4_000, "-1e-9"])
def test_a_figure_that_cannot_be_is_left_out(reader: StreamReader, figure: str) -> None:
    event = (
        f'event: load\ndata: {{"v":1,"epoch":"e","seq":1,"state":"ready","waiting":{figure},"running":3}}\n\n'
    )
    found = [each for each in read(reader, [event.encode()]) if isinstance(each, LoadReport)]

    assert [(each.waiting in (None, 0), each.running) for each in found] in ([], [(True, 3)])
    assert len(found) + reader.malformed == 1


def test_unknown_events_are_passed_over(reader: StreamReader) -> None:
    assert read(reader, [b"event: news\ndata: {}\n\n", b"data: 1\n\n"]) == []
    assert reader.malformed == 0


@pytest.mark.parametrize("line", [b"data: ", b": ", b"id: ", b""])
def test_ten_megabytes_without_an_end_are_refused_early(reader: StreamReader, line: bytes) -> None:
    taken = 0
    with pytest.raises(ReportError):
        for _ in range(160):
            taken += 65_536
            list(reader.feed(line + b"x" * (65_535 - len(line)) + (b"\n" if line else b"x"), 0.0))
    assert taken < 3e6


def test_a_flood_is_noticed_and_forgiven_a_second_later(reader: StreamReader) -> None:
    assert not reader.flooded(0.0)
    read(reader, [load(seq) for seq in range(1, 60)])
    assert not reader.flooded(0.5)
    read(reader, [b"event: x\ndata: y\n\n" * 300])
    assert reader.flooded(0.9)
    assert not reader.flooded(1.9)


def test_resets_and_large_events_weigh_more_than_small_ones(reader: StreamReader) -> None:
    resets, large = StreamReader("me", Hashing()), StreamReader("me", Hashing())
    for each in (resets, large):
        each.flooded(0.0)
    read(resets, [prefixes(PrefixDelta("e", seq, reset=True, add=(seq,))) for seq in range(5)])
    read(large, [prefixes(PrefixDelta("e", seq, add=tuple(range(60_000)))) for seq in range(4)])

    assert resets.flooded(0.5)
    assert large.flooded(0.5)


def test_what_an_honest_replica_says_at_the_beginning_is_no_flood(reader: StreamReader) -> None:
    reader.flooded(0.0)
    found = read(reader, [prefixes(PrefixDelta("e", 1, reset=True, add=tuple(range(65_536)))), load(1)])

    assert len(found) == 2
    assert not reader.flooded(0.1)


STREAM = load(1) + prefixes(PrefixDelta("e", 1, add=(3,))) + b"event: load\r\ndata: {\r\n\r\n" + load(2)


@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_cuts_anywhere_change_nothing(cuts: list[int]) -> None:
    whole, pieces = StreamReader("me", Hashing()), StreamReader("me", Hashing())
    at = [0, *sorted(cuts), len(STREAM)]

    assert read(pieces, [STREAM[a:b] for a, b in pairwise(at)]) == read(whole, [STREAM])
    assert (pieces.malformed, pieces.last_id) == (whole.malformed, whole.last_id) == (1, "2")


@given(
    st.lists(st.binary(max_size=200) | st.sampled_from([load(1)[:40], b"\n\n", b"data: ", b"event: load\n"]))
)
def test_no_bytes_make_it_fail(chunks: list[bytes]) -> None:
    reader = StreamReader("me", Hashing())
    for found in read(reader, chunks):
        assert isinstance(found, LoadReport | PrefixDelta)
