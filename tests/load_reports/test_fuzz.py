"""Any bytes: a ReportError, or a report with unknowns; never another exception, never a figure that cannot be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.load_reports import (
    Complaints,
    ReportError,
    llama_cpp,
    nim,
    ollama,
    orca,
    ray_serve,
    sglang,
    tensorrt_llm,
    tgi,
    triton,
    vllm,
)
from mlbalance_client.load_reports.complaints import doubtful

from .pages import body

Parse = Callable[[bytes, float], LoadReport | None]

PARSERS: dict[str, tuple[Parse, str]] = {
    "vllm": (vllm.from_metrics, "vllm_metrics_busy.http"),
    "vllm old": (vllm.from_metrics, "vllm_0.8_old_names_metrics.prom"),
    "vllm load": (vllm.from_load, "vllm_load.http"),
    "sglang": (sglang.from_loads, "sglang_v1_loads.json"),
    "sglang get_load": (sglang.from_get_load, "sglang_get_load_0.5.9.json"),
    "sglang metrics": (sglang.from_metrics, "sglang_metrics.prom"),
    "tgi": (tgi.from_metrics, "tgi_metrics.prom"),
    "triton": (triton.from_metrics, "triton_metrics.prom"),
    "tensorrt_llm": (tensorrt_llm.from_iterations, "trtllm_metrics.json"),
    "llama_cpp": (llama_cpp.from_metrics, "llamacpp_metrics_busy.http"),
    "llama_cpp slots": (llama_cpp.from_slots, "llamacpp_slots_busy.http"),
    "ollama": (ollama.from_ps, "ollama_api_ps.json"),
    "nim": (nim.from_metrics, "nim_1x_metrics.prom"),
    "ray_serve": (ray_serve.from_metrics, "rayserve_metrics.prom"),
}
ODD = st.sampled_from(
    [
        b"NaN",
        b"+Inf",
        b"-1",
        b"1e308",
        b"-0.0",
        b"1e999",
        b"9" * 400,
        b"null",
        b"true",
        b'"3"',
        b"{}",
        b"[]",
        b"",
        b"\xff",
    ]
)


def checked(parse: Parse, data: bytes) -> LoadReport | None:
    try:
        report = parse(data, 1.0)
    except ReportError:
        return None
    if report is not None:
        assert report == report.sane()
        hash(report)
        complaints = Complaints()
        lines = [complaints.hear(doubtful(report), now) for now in (1.0, 2.0, 99.0)]
        assert lines[1:] == [None, None]
        assert (lines[0] is None) is (not report.doubts)
        assert lines[0] is None or ("\n" not in lines[0] and len(lines[0]) <= 300)
    return report


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_damaged_pages(name: str, data: st.DataObject) -> None:
    parse, sample = PARSERS[name]
    page = body(sample)
    cut = data.draw(st.integers(0, len(page)))
    at = data.draw(st.integers(0, len(page)))
    odd = data.draw(ODD | st.binary(max_size=8))

    checked(parse, page[:cut])
    checked(parse, page[:at] + odd + page[at + data.draw(st.integers(0, 8)) :])


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=30, deadline=None)
@given(junk=st.binary(max_size=200) | st.text().map(str.encode))
def test_any_bytes(name: str, junk: bytes) -> None:
    parse, _ = PARSERS[name]

    report = checked(parse, junk)

    assert report is None or report.running is None


METRICS = [name for name, (_, sample) in PARSERS.items() if "_metrics" in sample and "trtllm" not in sample]


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_lines_in_any_order_and_any_number_say_the_same(name: str, data: st.DataObject) -> None:
    parse, sample = PARSERS[name]
    lines = [line for line in body(sample).splitlines(keepends=True) if not line.startswith(b"#")]
    shuffled = data.draw(st.permutations(lines + data.draw(st.lists(st.sampled_from(lines), max_size=4))))

    expected, found = parse(b"".join(lines), 1.0), parse(b"".join(shuffled), 1.0)

    assert found == expected


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_a_missing_line_is_an_unknown_and_never_a_zero(name: str, data: st.DataObject) -> None:
    parse, sample = PARSERS[name]
    lines = body(sample).splitlines(keepends=True)
    full = parse(b"".join(lines), 1.0)
    fewer = parse(b"".join(line for line in lines if data.draw(st.booleans())), 1.0)
    assert full is not None
    assert fewer is not None

    for figure in ("running", "waiting", "kv_used", "kv_capacity_tokens", "batch_limit", "prefix_queries"):
        value = getattr(fewer, figure)
        assert value is None or value != 0 or getattr(full, figure) == 0


@settings(max_examples=200, deadline=None)
@given(
    prefix=st.sampled_from([b"TEXT ", b"JSON ", b"BIN ", b""]),
    value=st.binary(max_size=60) | st.from_regex(rb"[a-z_.]{0,30}[=:][0-9.eE+-]{0,9}"),
    name=st.sampled_from(
        [b"endpoint-load-metrics", b"Endpoint-Load-Metrics-Bin", b"endpoint-load-metrics-json"]
    ),
)
def test_orca_headers(prefix: bytes, value: bytes, name: bytes) -> None:
    report = orca.from_headers([(name, prefix + value)], 1.0)

    assert report is None or report == report.sane()
