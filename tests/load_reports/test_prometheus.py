"""The reader of metrics pages, against the library's; its cost; hostile lines."""

from __future__ import annotations

from math import isnan

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from mlbalance_client.load_reports import ReportError
from mlbalance_client.load_reports.base import MOST_BYTES
from mlbalance_client.load_reports.prometheus import Reader

NAME = "vllm:num_requests_waiting"
READ = Reader(NAME)


def values(text: str) -> list[float]:
    return [series.value for series in READ(text.encode()).series(NAME)]


@given(
    st.dictionaries(
        st.tuples(st.text(max_size=20), st.text('\\"{},=\n# é', max_size=10)),
        st.floats(allow_nan=True, allow_infinity=True),
        min_size=1,
        max_size=5,
    )
)
def test_it_reads_what_the_library_writes_as_the_library_does(lines: dict[tuple[str, str], float]) -> None:
    registry = CollectorRegistry()
    gauge = Gauge("m", "Help with \\ and \n.", ["a", "b"], registry=registry)
    for labels, value in lines.items():
        gauge.labels(*labels).set(value)
    page = generate_latest(registry)
    theirs = [
        (sample.labels, sample.value)
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    ]

    metrics = Reader("m")(page)

    assert metrics.doubts == ()
    assert [(s.labels, repr(s.value)) for s in metrics.series("m")] == [(a, repr(b)) for a, b in theirs]


def test_names_are_exact() -> None:
    registry = CollectorRegistry()
    Counter("vllm:x", "", registry=registry).inc(3)
    Histogram("vllm:x_seconds", "", registry=registry).observe(1)

    metrics = Reader("vllm:x_total", "vllm:x")(generate_latest(registry))

    assert metrics.total("vllm:x_total") == 3
    assert metrics.series("vllm:x") == []
    assert not Reader("vllm:x")(generate_latest(registry))
    assert values(f'{NAME}_by_reason{{reason="capacity"}} 4\n{NAME}{{a="b"}} 5\n') == [5]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4", 4), ("4.0", 4), ("+4.", 4), (".5", 0.5), ("1.7e+09", 1.7e9), ("-1E-3", -0.001), ("+Inf", float("inf")),
        ("-Inf", float("-inf")), ("4 1795479734130", 4), ('4 # {trace_id="x"} 1 2', 4), ("  4\t ", 4), ("4\r", 4),
    ],
)  # fmt: skip
def test_figures(text: str, value: float) -> None:
    assert values(f"{NAME} {text}\n") == [value]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "4x",
        "1_000",
        "0x10",
        "infinity",
        "4 5 6",
        '{a="b} 4',
        "{a=b} 4",
        '{a="b"}',
        "{a} 4",
        '{="b"} 4',
        "é",
    ],
)
def test_malformed_lines_are_left_out_and_doubted(line: str) -> None:
    metrics = READ(f'{NAME} {line}\n{NAME}{{ok="1"}} 7\n'.encode())

    assert [s.value for s in metrics.series(NAME)] == [7]
    assert metrics.doubts == ("a metrics line is malformed",)


def test_nan_is_no_figure_and_no_sum() -> None:
    metrics = READ(f'{NAME}{{a="1"}} NaN\n{NAME}{{a="2"}} 3\n'.encode())

    assert isnan(metrics.series(NAME)[0].value)
    assert metrics.total(NAME) is None
    assert metrics.most(NAME) is None


def test_a_line_that_is_there_twice_counts_once() -> None:
    assert values(f'{NAME}{{a="1",b="2"}} 3\n{NAME}{{b="2",a="1",}} 4\n') == [4]


def test_a_line_that_was_cut_off_is_not_read() -> None:
    assert values(f"{NAME} 43") == []


def test_a_page_beyond_the_bound_is_refused_and_a_flood_of_lines_is_cut() -> None:
    with pytest.raises(ReportError, match="longer than"):
        READ(b"a" * (MOST_BYTES + 1))
    flood = b"".join(b'%s{a="%d"} 1\n' % (NAME.encode(), n) for n in range(10_000))
    assert len(READ(flood).series(NAME)) == 4096


@pytest.mark.parametrize("hostile", [" ", "1", "{", '"', '{a="', "\\", '{a="b",', "e", "#", ".", "1 ", '"\\'])
def test_hostile_lines_tell_nothing(hostile: str) -> None:
    # Long enough that reading them more than once over would not end within the test's time limit.
    line = f"{NAME} {hostile * 200_000}!\n{NAME}{{{hostile * 200_000}\n".encode()

    assert READ(line).series(NAME) == []
