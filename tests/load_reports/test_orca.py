"""ORCA headers: every form, what must be refused, and what zeros mean."""

from __future__ import annotations

import struct
import timeit
from base64 import b64encode

import pytest

from mlbalance_client.load_reports import ReportError, orca

from .pages import SAMPLES, body, page

AT = 3.0
NAME = b"endpoint-load-metrics"
GOOD, _, REFUSED = (SAMPLES / "orca_headers.txt").read_text().partition("# must be refused:\n")


def header(line: str) -> tuple[bytes, bytes]:
    name, _, value = line.partition(":")
    return name.encode(), value.strip().encode()


@pytest.mark.parametrize("line", GOOD.splitlines())
def test_good_samples_are_read(line: str) -> None:
    report = orca.from_headers([(b"Content-Type", b"text/plain"), header(line)], AT)

    assert report is not None
    assert (report.source, report.at, report.doubts) == ("orca", AT, ())
    assert report.utilization == (0.8 if "application" in line or " CWZm" in line else 0.7)
    assert report.kv_used == (None if "cpu_utilization:0.7,mem" in line else 0.25)


@pytest.mark.parametrize("line", REFUSED.splitlines())
def test_refused_samples_say_nothing_but_why(line: str) -> None:
    report = orca.from_headers([header(line)], AT)

    assert report is not None
    assert report.empty
    assert len(report.doubts) == 1


def test_a_report_as_bytes_and_as_text_is_the_same() -> None:
    text = orca.parse(
        b"TEXT cpu_utilization=0.7, mem_utilization=0.9, rps_fractional=1000, eps=2, "
        b"named_metrics.kv_cache_usage_perc=0.25, application_utilization=0.8, utilization.total=0.5"
    )

    assert orca.parse(b"BIN " + b64encode(body("orca_report.bin"))) == text


@pytest.mark.parametrize("line", (SAMPLES / "triton_orca_headers.txt").read_text().splitlines())
def test_tritons_names(line: str) -> None:
    report = orca.from_headers([header(line)], AT)

    assert report is not None
    assert (report.kv_used, report.kv_capacity_tokens) == (0.4, 64_000)


@pytest.mark.parametrize("form", ["TEXT", "JSON", "BIN"])
def test_vllms_idle_answers_as_captured_say_nothing(form: str) -> None:
    headers = [
        (name.encode(), value.encode()) for name, value in page(f"vllm_orca_{form}.http").headers.items()
    ]

    assert (NAME in dict(headers)) is (form != "BIN")
    report = orca.from_headers(headers, AT)
    assert (report is None) is (form == "BIN")
    assert report is None or (report.empty and not report.doubts)


def test_a_zero_beside_a_figure_is_a_figure() -> None:
    value = b'JSON {"named_metrics": {"num_requests_waiting": 0.0, "kv_cache_usage_perc": 0.5}}'
    report = orca.from_headers([(b"Endpoint-Load-Metrics", value)], AT)

    assert report is not None
    assert (report.waiting, report.running, report.kv_used, report.utilization) == (0, None, 0.5, None)


def test_the_cpu_counts_where_the_application_says_nothing() -> None:
    for text, utilization in ((b"cpu_utilization=1.5,application_utilization=0", 1.5), (b"eps=1", None)):
        report = orca.from_headers([(NAME, b"TEXT " + text)], AT)
        assert report is not None
        assert report.utilization == utilization


def test_names_may_hold_a_colon_where_the_sign_is_an_equals_sign() -> None:
    assert orca.parse(b"TEXT named_metrics.vllm:x=3, eps:1") == {"named_metrics.vllm:x": 3.0, "eps": 1.0}


def test_the_legacy_header_wins() -> None:
    binary = (NAME + b"-bin", b64encode(body("orca_report.bin")))

    for headers in ([binary, (NAME, b"TEXT cpu_utilization=0.1")], [(NAME, b"BAD"), binary]):
        report = orca.from_headers(headers, AT)
        assert report is not None
        assert report.utilization == 0.8


def test_the_older_header_of_json() -> None:
    report = orca.from_headers([(NAME + b"-json", b'{"cpuUtilization":"0.5","eps":null}')], AT)

    assert report is not None
    assert report.utilization == 0.5


@pytest.mark.parametrize(
    "value",
    [
        b"TEXT", b"TEXT ", b"text cpu_utilization=0.1", b"TEXT cpu_utilization", b"TEXT cpu_utilization=",
        b"TEXT cpu_utilization=inf", b"TEXT cpu_utilization=1_0", b"TEXT cpu_utilization=0x1",
        b"TEXT cpu_utilization=-1",
        b"TEXT cpu_utilization=0.1,", b"TEXT mem_utilization=1.1", b"TEXT utilization.x=1.1", b"TEXT bogus=1",
        b"TEXT named_metrics.=1", b"TEXT named_metrics=1", b"TEXT eps=1e999", b"TEXT \xff=1",
        b"TEXT named_metrics.num_requests_waiting=1,named_metrics.num_requests_waiting=2",
        b"JSON", b"JSON {", b"JSON []", b"JSON {}", b"JSON null", b'JSON {"cpu_utilization":NaN}',
        b'JSON {"cpu_utilization":true}', b'JSON {"bogus":1}', b'JSON {"named_metrics":{"":1}}',
        b'JSON {"named_metrics":{"a":"b"}}', b'JSON {"named_metrics":{"a":Infinity}}', b'JSON {"eps":{"a":1}}',
        b'JSON {"cpu_utilization":0.1,"cpuUtilization":0.2}', b'JSON {"named_metrics":{"a":' + b"9" * 400 + b"}}",
        b"BIN", b"BIN !", b"BIN CWZm", b"BIN //8=",
        b"BIN " + b64encode(b"\x0b"), b"BIN " + b64encode(b"\x09" + b"\0" * 7),
        b"BIN " + b64encode(b"\x09" + struct.pack("<d", float("nan"))),
        b"BIN " + b64encode(b"\x42\x05\x0a\x01\xff\x11\x00"),
        b"BIN " + b64encode(b"\xff" * 11), b"BIN " + b64encode(b"\x42\xff\xff\xff\xff\x7f"),
        b"TEXT " + b",".join(b"named_metrics.m%d=1" % n for n in range(257)), b"TEXT eps=" + b"1" * 20_000,
    ],
)  # fmt: skip
def test_what_must_be_refused(value: bytes) -> None:
    report = orca.from_headers([(NAME, value)], AT)

    assert report is not None
    assert report.empty
    assert report.doubts
    if len(value) < 16_384:
        with pytest.raises(ReportError):
            orca.parse(value)


def test_ranks_that_repeat_a_name_are_refused_and_not_taken_for_one_another() -> None:
    twice = [(NAME, b"TEXT eps=1"), (b"Endpoint-Load-Metrics", b"TEXT eps=1")]

    report = orca.from_headers(twice, AT)

    assert report is not None
    assert (report.empty, report.doubts) == (True, ("ORCA: the header is there twice",))


def test_a_named_share_that_is_none_is_unknown() -> None:
    report = orca.from_headers([(NAME, b"TEXT named_metrics.kv_cache_usage_perc=41, rps=2")], AT)

    assert report is not None
    assert (report.kv_used, report.doubts) == (None, ())


def test_unknown_fields_of_the_binary_form_are_passed_over() -> None:
    data = (
        b"\x79"
        + struct.pack("<d", 9.0)
        + b"\x7d"
        + b"\0" * 4
        + b"\x78\x01"
        + b"\x7a\x01x"
        + body("orca_report.bin")
    )

    assert orca.parse(b"BIN " + b64encode(data)) == orca.parse(b"BIN " + b64encode(body("orca_report.bin")))


def test_an_answer_without_the_header_costs_next_to_nothing() -> None:
    headers = [
        (b"date", b"x"), (b"server", b"uvicorn"), (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-cache"),
        (b"x-request-id", b"y"), (b"transfer-encoding", b"chunked"),
        (b"access-control-allow-or", b"*"), (b"vary", b"z"),
    ]  # fmt: skip

    taken_s = min(timeit.repeat(lambda: orca.from_headers(headers, AT), number=1000, repeat=5)) / 1000

    assert orca.from_headers(headers, AT) is None
    assert taken_s < 20e-6
