"""The load format: golden texts, round trips of anything a report can be, and strangers' input of any kind."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.fingerprint import SCHEME
from mlbalance_client.core.load.format import (
    LoadFormatError,
    PrefixDelta,
    decode_header,
    decode_load,
    decode_prefixes,
    encode_header,
    encode_load,
    encode_prefixes,
    personal,
)
from mlbalance_client.core.load.prefix_delta import KEYED_SCHEME, Hashing
from mlbalance_client.core.load.report import LoadReport, State

GOLDEN = (
    b'{"v":1,"replica":"llm-7","epoch":"f3c1","seq":1842,"t_ms":91342,"state":"ready","running":3,"waiting":1,'
    b'"prefill_tokens":12034,"decode_tokens":6200,"prefill_tokens_per_s":11800.0,"decode_tokens_per_s":2100.0,'
    b'"expected_wait_s":1.02,"batch_limit":64,"kv_used":0.41,"kv_capacity_tokens":300000,'
    b'"gpu_utilization":0.83,"gpu_memory_used_bytes":61203283968,"gpu_memory_total_bytes":85899345920,'
    b'"models":{"m":"ready"},"subscribers":16,"partial":false,"free":{"requests":2,"tokens":9000},'
    b'"acked":{"c1":7}}'
)
REPORT = LoadReport(
    source="stream", at=5.0, replica="llm-7", epoch="f3c1", seq=1842, t_ms=91342, state=State.READY, running=3,
    waiting=1, prefill_tokens=12034, decode_tokens=6200, prefill_tokens_per_s=11800.0, decode_tokens_per_s=2100.0,
    expected_wait_s=1.02, batch_limit=64, kv_used=0.41, kv_capacity_tokens=300000, gpu_utilization=0.83,
    gpu_memory_used_bytes=61203283968, gpu_memory_total_bytes=85899345920, models={"m": "ready"}, subscribers=16,
    free_requests=2, free_tokens=9000, acked=7,
)  # fmt: skip
# As the design gives it, adapters and all.
DESIGN = (
    '{"v":1,"replica":"llm-7","epoch":"f3c1","seq":1842,"t_ms":91342,"state":"ready","running":3,"waiting":1,'
    '"prefill_tokens":12034,"decode_tokens":6200,"prefill_tokens_per_s":11800.0,"decode_tokens_per_s":2100.0,'
    '"expected_wait_s":1.02,"batch_limit":64,"kv_used":0.41,"kv_capacity_tokens":300000,'
    '"gpu_utilization":0.83,"gpu_memory_used_bytes":61203283968,"gpu_memory_total_bytes":85899345920,'
    '"models":{"m":"ready"},"adapters":{},"subscribers":16,"free":{"requests":2,"tokens":9000},"partial":false}'
)

counts = st.none() | st.integers(0, 10**15)
requests = st.none() | st.integers(0, 10**5)
reals = st.none() | st.floats(0, 1e15)
shares = st.none() | st.floats(0, 1)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
u64 = st.integers(0, 2**64 - 1)
reports = st.builds(
    LoadReport,
    source=st.just("stream"), at=st.just(1.0), state=st.sampled_from([s for s in State if s is not State.ASLEEP]),
    running=requests, waiting=requests, prefill_tokens=counts, decode_tokens=counts, expected_wait_s=reals,
    prefill_tokens_per_s=reals, decode_tokens_per_s=reals, batch_limit=counts, kv_used=shares,
    kv_capacity_tokens=counts, gpu_utilization=shares, gpu_memory_used_bytes=counts, gpu_memory_total_bytes=counts,
    models=st.dictionaries(names, names, max_size=3), adapters=st.dictionaries(names, names, max_size=3),
    replica=st.none() | names, epoch=names, seq=st.integers(0, 10**15), t_ms=counts, subscribers=counts,
    free_requests=counts, free_tokens=counts, partial=st.booleans(),
)  # fmt: skip
deltas = st.builds(
    PrefixDelta, names, st.integers(0, 10**15), st.booleans(), st.lists(u64).map(tuple), st.lists(u64).map(tuple),
    st.sampled_from([Hashing(), Hashing(KEYED_SCHEME), Hashing.by(b"s")]),
)  # fmt: skip


def test_a_report_is_written_as_the_design_has_it() -> None:
    assert encode_load(REPORT, acked={"c1": 7}) == GOLDEN
    assert set(json.loads(DESIGN)) == set(json.loads(GOLDEN)) - {"acked"} | {"adapters"}


def test_the_designs_example_is_read() -> None:
    assert decode_load(DESIGN, at=5.0, client="c1") == replace(REPORT, acked=None)
    assert decode_load(GOLDEN, at=5.0, client="c1") == REPORT
    assert decode_load(GOLDEN, at=5.0, client="other").acked is None
    assert decode_load(GOLDEN, at=5.0).acked is None


def test_the_short_form() -> None:
    short = (
        "v=1;epoch=f3c1;seq=1842;t_ms=91342;state=ready;running=3;waiting=1;prefill_tokens=12034;"
        "decode_tokens=6200;prefill_tokens_per_s=11800;decode_tokens_per_s=2100;expected_wait_s=1.02;batch_limit=64;"
        "kv_used=0.41;kv_capacity_tokens=300000;gpu_utilization=0.83;gpu_memory_used_bytes=61203283968;"
        "gpu_memory_total_bytes=85899345920;replica=llm-7;subscribers=16;free.requests=2;free.tokens=9000;acked=7"
    )

    assert encode_header(REPORT) == short
    assert decode_header(short, at=5.0) == replace(REPORT, source="answer", models={})
    assert decode_header("v=1; epoch=a; seq=1; state=ready; new=thing; odd", at=0.0).seq == 1


def test_what_is_for_one_subscriber_is_added_to_what_is_for_all() -> None:
    common = encode_load(replace(REPORT, free_requests=None, free_tokens=None))

    assert personal(common, 2, 9000, {"c1": 7}) == GOLDEN
    assert personal(common, None, None, None) == common


def test_prefixes() -> None:
    text = (
        b'{"v":1,"epoch":"f3c1","scheme":"xxh3-64/1024/1","seq":77,"reset":false,'
        b'"add":"AQAAAAAAAAD//////////w==","drop":""}'
    )
    delta = PrefixDelta("f3c1", 77, add=(1, 2**64 - 1))

    assert encode_prefixes(delta) == text
    assert decode_prefixes(text) == delta
    assert decode_prefixes(b'{"v":1,"epoch":"e","scheme":"%s","seq":1}' % KEYED_SCHEME.encode()).add == ()


@pytest.mark.parametrize("told", ["", 7, None, "0" * 9, "wxyz0123", "ab" * 200])
@pytest.mark.parametrize("scheme", [SCHEME, KEYED_SCHEME])
def test_a_key_check_that_is_none_is_not_there(told: object, scheme: str) -> None:
    fields = {"v": 1, "epoch": "e", "scheme": scheme, "seq": 1, "key_check": told}

    assert decode_prefixes(json.dumps(fields)).hashing == Hashing(scheme)


def test_a_key_check_may_be_written_in_either_case_and_means_nothing_without_a_key() -> None:
    fields = {"v": 1, "epoch": "e", "seq": 1, "key_check": "0A1b2C3d"}

    assert decode_prefixes(json.dumps(fields | {"scheme": KEYED_SCHEME})).hashing.key == "0a1b2c3d"
    assert decode_prefixes(json.dumps(fields | {"scheme": SCHEME})).hashing.key == ""


@given(reports)
def test_json_round_trip(report: LoadReport) -> None:
    assert decode_load(encode_load(report), at=1.0) == report


@given(reports)
def test_header_round_trip(report: LoadReport) -> None:
    rounded = decode_header(encode_header(report), at=1.0)

    for field in fields(LoadReport):
        expected = getattr(report, field.name)
        if field.name not in ("source", "models", "adapters"):
            assert getattr(rounded, field.name) == (
                pytest.approx(expected, rel=1e-5) if isinstance(expected, float) else expected
            )
    assert encode_header(report).isascii()


@given(deltas)
def test_prefixes_round_trip(delta: PrefixDelta) -> None:
    assert decode_prefixes(encode_prefixes(delta)) == delta


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=5,
)
field_names = st.sampled_from([*json.loads(GOLDEN), "adapters", "scheme", "reset", "add", "drop"])


@given(st.dictionaries(field_names, anything), st.booleans())
def test_whatever_the_fields_hold_only_our_error_is_raised(wrong: dict[str, object], whole: bool) -> None:
    text = json.dumps((json.loads(GOLDEN) | {"scheme": "xxh3-64/1024/1"} if whole else {}) | wrong)

    for decode in (lambda: decode_load(text, at=0.0, client="c1"), lambda: decode_prefixes(text)):
        try:
            decode()
        except LoadFormatError:
            pass


@given(st.binary() | st.binary().map(lambda tail: GOLDEN[:-20] + tail))
def test_whatever_the_bytes_are_only_our_error_is_raised(data: bytes) -> None:
    for decode in (
        lambda: decode_load(data, at=0.0),
        lambda: decode_prefixes(data),
        lambda: decode_header(data.decode("latin-1"), at=0.0),
    ):
        with pytest.raises(LoadFormatError):
            decode()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[]", "no object"),
        ("{", "no JSON"),
        ("[" * 60_000, "no JSON"),
        (" " * 100_000, "are allowed"),
        ('{"v":2,"epoch":"e","seq":1,"state":"ready"}', "version"),
        ('{"v":true,"epoch":"e","seq":1,"state":"ready"}', "version"),
        ('{"v":1,"seq":1,"state":"ready"}', "epoch"),
        ('{"v":1,"epoch":"","seq":1,"state":"ready"}', "epoch"),
        ('{"v":1,"epoch":"e","state":"ready"}', "seq"),
        ('{"v":1,"epoch":"e","seq":-1,"state":"ready"}', "seq"),
        ('{"v":1,"epoch":"e","seq":1}', "state"),
        ('{"v":1,"epoch":"e","seq":1,"state":"asleep"}', "state"),
        ('{"v":1,"epoch":"e","seq":1,"state":"ready","running":"3"}', "running"),
        ('{"v":1,"epoch":"e","seq":1,"state":"ready","running":true}', "running"),
        ('{"v":1,"epoch":"e","seq":1,"state":"ready","free":[]}', "free"),
        ('{"v":1,"epoch":"e","seq":1,"state":"ready","models":{"m":1}}', "models"),
        ('{"v":1,"epoch":"e","seq":1,"state":"ready","partial":1}', "partial"),
    ],
)
def test_malformed_reports_are_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(LoadFormatError, match=said):
        decode_load(text, at=0.0)


@pytest.mark.parametrize("figure", ["-1", "NaN", "Infinity", "-Infinity", "1e300", "1" + "0" * 400, "null"])
def test_figures_that_cannot_be_are_left_out(figure: str) -> None:
    text = f'{{"v":1,"epoch":"e","seq":1,"state":"ready","running":{figure},"expected_wait_s":{figure}}}'
    report = decode_load(text, at=0.0)

    assert report.running is None
    assert report.expected_wait_s is None


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ('"add":"AQ=="', "whole number"),
        ('"add":"*"', "base64"),
        ('"add":7', "base64"),
        ('"reset":1', "reset"),
        ('"scheme":"md5"', "scheme"),
    ],
)
def test_malformed_prefixes_are_refused_by_name(field: str, said: str) -> None:
    with pytest.raises(LoadFormatError, match=said):
        decode_prefixes('{"v":1,"epoch":"e","scheme":"xxh3-64/1024/1","seq":1,' + field + "}")
