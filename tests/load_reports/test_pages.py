"""Each engine's pages as captured or as its sources write them: bytes in, report out."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest

from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.load_reports import (
    llama_cpp,
    nim,
    ollama,
    ray_serve,
    sglang,
    tensorrt_llm,
    tgi,
    torchserve,
    triton,
    vllm,
)

from .pages import body, page

AT = 12.5


def said(report: LoadReport | None) -> dict[str, Any]:
    """All that is known, and nothing else."""
    assert report is not None
    assert report.at == AT
    assert report == report.sane()
    left_out = {"source", "at"}
    known = {
        field.name: getattr(report, field.name) for field in fields(report) if field.name not in left_out
    }
    return {
        name: value
        for name, value in known.items()
        if value not in (None, {}, (), False) or (value == 0 and value is not False)
    }


@pytest.mark.parametrize(
    ("sample", "running", "waiting", "kv_used", "queries"),
    [
        ("vllm_metrics_idle.http", 0, 0, 0.0, 0),
        ("vllm_metrics_busy.http", 4, 5, 0.002441704309608106, 801),
        ("vllm_metrics_after_abort.http", 0, 0, 0.0, None),
        ("vllm_metrics_overload.prom", 4, 6, None, None),
    ],
)
def test_vllm_as_captured(
    sample: str, running: int, waiting: int, kv_used: float | None, queries: int | None
) -> None:
    found = vllm.from_metrics(body(sample), AT)

    assert (found.running, found.waiting) == (running, waiting)
    assert found.state == "ready"
    assert found.models == {"tiny": "ready"}
    assert found.kv_capacity_tokens == 8192 * 128
    assert found.epoch == "1795479734.13"
    assert found.doubts == ()
    assert kv_used is None or found.kv_used == kv_used
    assert queries is None or found.prefix_queries == queries


def test_vllm_before_the_gauges_were_renamed() -> None:
    assert said(vllm.from_metrics(body("vllm_0.8_old_names_metrics.prom"), AT)) == {
        "running": 5,
        "waiting": 2,
        "kv_used": 0.37,
        "prefix_queries": 4096,
        "prefix_hits": 2048,
    }


def test_vllm_with_both_names_of_a_gauge_adds_nothing_up() -> None:
    text = b"""\
vllm:num_requests_running{engine="0"} 1
vllm:gpu_cache_usage_perc{engine="0"} 0.4
vllm:kv_cache_usage_perc{engine="0"} 0.4
vllm:gpu_prefix_cache_queries_total{engine="0"} 10
vllm:prefix_cache_queries_total{engine="0"} 10
vllm:gpu_prefix_cache_hits_total{engine="0"} 4
vllm:prefix_cache_hits_total{engine="0"} 4
"""
    found = vllm.from_metrics(text, AT)

    assert (found.kv_used, found.prefix_queries, found.prefix_hits) == (0.4, 10, 4)


def test_vllm_ranks_sum_their_queues_and_the_fullest_cache_counts() -> None:
    assert said(vllm.from_metrics(body("vllm_dp2_metrics.prom"), AT)) == {
        "running": 14,
        "waiting": 6,
        "kv_used": 0.91,
        "prefix_queries": 161210,
        "prefix_hits": 73000,
    }


def test_vllm_with_one_rank_unknown_knows_no_sum() -> None:
    text = b'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} NaN\n'

    assert vllm.from_metrics(text, AT).running is None


@pytest.mark.parametrize(("awake", "state"), [((1, 1), "ready"), ((1, 0), "asleep"), ((0, 0), "asleep")])
def test_vllm_is_ready_when_every_rank_is_awake(awake: tuple[int, int], state: str) -> None:
    lines = [
        f'vllm:num_requests_running{{engine="{rank}",model_name="m"}} 0\n'
        f'vllm:engine_sleep_state{{engine="{rank}",sleep_state="awake"}} {value}\n'
        f'vllm:engine_sleep_state{{engine="{rank}",sleep_state="weights_offloaded"}} {1 - value}\n'
        for rank, value in enumerate(awake)
    ]

    found = vllm.from_metrics("".join(lines).encode(), AT)

    assert (found.state, found.models) == (state, {"m": state})


@pytest.mark.parametrize("value", ["NaN", "-1", "1e30", "100001", "+Inf"])
def test_a_value_that_cannot_be_is_said_to_be_one_and_not_to_be_missing(value: str) -> None:
    text = f"vllm:num_requests_running {value}\nvllm:kv_cache_usage_perc 41\n".encode()

    found = vllm.from_metrics(text, AT)

    assert found.running is None
    assert found.doubts == (
        "vllm:num_requests_running has no usable value",
        "no vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc has no usable value",
    )


def test_of_two_names_the_one_that_is_there_is_doubted() -> None:
    assert sglang.from_metrics(b"sglang_num_running_reqs NaN\n", AT).doubts == (
        "sglang_num_running_reqs has no usable value",
    )
    assert llama_cpp.from_metrics(b"llamacpp:requests_processing -1\n", AT).doubts == (
        "llamacpp:requests_processing has no usable value",
    )


@pytest.mark.parametrize(
    ("told", "used"), [("1.0", 1.0), ("1.02", 1.0), ("41", None), ("50", None), ("-0.1", None)]
)
def test_vllms_share_that_is_none_is_unknown_and_no_full_cache(told: str, used: float | None) -> None:
    text = f"vllm:num_requests_running 1\nvllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc {told}\n"

    assert vllm.from_metrics(text.encode(), AT).kv_used == used


@pytest.mark.parametrize(
    ("labels", "tokens"),
    [
        ('block_size="16",num_gpu_blocks="100"', 1600),
        ('block_size="16",num_gpu_blocks="100",kv_cache_size_tokens="1200"', 1200),
        ('block_size="16",num_gpu_blocks="100",kv_cache_size_tokens="None"', 1600),
        ('block_size="16",num_gpu_blocks="None"', None),
        ('block_size="16"', None),
        ('block_size="-16",num_gpu_blocks="100"', None),
        ('block_size="16",num_gpu_blocks="' + "9" * 5000 + '"', None),
    ],
)
def test_vllm_tells_its_cache_in_labels(labels: str, tokens: int | None) -> None:
    text = f"vllm:num_requests_running 0\nvllm:cache_config_info{{{labels}}} 1.0\n"

    assert vllm.from_metrics(text.encode(), AT).kv_capacity_tokens == tokens


def test_vllm_waiting_by_reason_stands_in_for_the_sum() -> None:
    text = (
        b'vllm:num_requests_running 1\nvllm:num_requests_waiting_by_reason{reason="capacity"} 3\n'
        b'vllm:num_requests_waiting_by_reason{reason="deferred"} 2\n'
    )

    assert vllm.from_metrics(text, AT).waiting == 5
    assert vllm.from_metrics(text + b"vllm:num_requests_waiting 4\n", AT).waiting == 4


def test_vllm_of_the_first_engine_counts_what_was_swapped_out_as_waiting() -> None:
    text = b"vllm:num_requests_running 1\nvllm:num_requests_waiting 3\nvllm:num_requests_swapped 2\n"

    assert vllm.from_metrics(text, AT).waiting == 5


def test_a_page_without_its_metrics_is_doubted_and_says_nothing() -> None:
    assert said(vllm.from_metrics(b"some_metric 1\n", AT)) == {
        "doubts": ("no vllm:num_requests_running", "no vllm:num_requests_waiting")
    }


@pytest.mark.parametrize(("sample", "running"), [("vllm_load.http", 9), ("vllm_load_idle.http", None)])
def test_vllms_load_of_zero_is_unknown(sample: str, running: int | None) -> None:
    found = vllm.from_load(body(sample), AT)

    assert (found.running, found.waiting, found.partial) == (running, None, True)


def test_sglangs_loads() -> None:
    assert said(sglang.from_loads(body("sglang_v1_loads.json"), AT)) == {
        "running": 8,
        "waiting": 3,
        "waiting_tokens": 10240,
        "prefill_tokens": 10240,
        "prefill_tokens_per_s": pytest.approx(2 * 918273 / 55.123),
        "batch_limit": 128,
        "kv_used": 0.3678,
        "kv_capacity_tokens": 262144,
    }


def test_an_sglang_that_only_decodes_tells_of_no_prefill() -> None:
    page = json.loads(body("sglang_v1_loads.json"))
    page["loads"][0] |= {"num_waiting_uncached_tokens": 0, "disaggregation": {"mode": "decode"}}
    page["loads"] = page["loads"][:1]

    found = sglang.from_loads(json.dumps(page).encode(), AT)

    assert (found.prefill_tokens, found.waiting_tokens, found.waiting) == (None, None, 3)


def test_sglangs_empty_loads_are_unknown_not_idle() -> None:
    found = sglang.from_loads(body("sglang_v1_loads_empty.json"), AT)

    assert found.empty
    assert found.doubts == ("/v1/loads: no rank says how much it runs",)


@pytest.mark.parametrize(
    ("loads", "running", "waiting"),
    [
        (b'[{"dp_rank":0,"num_running_reqs":2,"num_total_reqs":5}]', 2, 3),
        (b'[{"dp_rank":0,"num_running_reqs":2},{"dp_rank":1}]', None, None),
        (b'[{"dp_rank":0,"num_running_reqs":2},{"dp_rank":0,"num_running_reqs":3}]', 3, None),
        (b'[{"dp_rank":0,"num_running_reqs":NaN,"num_waiting_reqs":-1}]', None, None),
        (b'[{"dp_rank":0,"num_running_reqs":"2","num_waiting_reqs":true}]', None, None),
        (b"null", None, None),
    ],
)
def test_sglangs_loads_vary(loads: bytes, running: int | None, waiting: int | None) -> None:
    found = sglang.from_loads(b'{"loads":' + loads + b"}", AT)

    assert (found.running, found.waiting) == (running, waiting)


def test_sglangs_older_load_counts_all_requests_together() -> None:
    assert said(sglang.from_get_load(body("sglang_get_load_0.5.9.json"), AT)) == {"running": 7, "waiting": 3}


def test_sglangs_metrics() -> None:
    assert said(sglang.from_metrics(body("sglang_metrics.prom"), AT)) == {
        "state": "ready",
        "running": 7,
        "waiting": 3,
        "kv_used": 0.37,
        "kv_capacity_tokens": 131072,
        "models": {"qwen": "ready"},
    }


def test_sglangs_metrics_with_underscores() -> None:
    found = sglang.from_metrics(body("sglang_v1_loads_prometheus.prom"), AT)

    assert (found.running, found.waiting, found.kv_used) == (8, 3, 0.3678)


def test_sglangs_tensor_parallel_ranks_are_the_same_requests() -> None:
    rows = [
        f'sglang:num_running_reqs{{dp_rank="{dp}",tp_rank="{tp}"}} {5 + dp}\n'
        for dp in (0, 1)
        for tp in (0, 1)
    ]

    assert sglang.from_metrics("".join(rows).encode(), AT).running == 5 + 6


def test_tgi() -> None:
    assert said(tgi.from_metrics(body("tgi_metrics.prom"), AT)) == {
        "state": "ready",
        "running": 6,
        "waiting": 2,
    }
    assert tgi.model_of(body("tgi_info.json")) == "org/model"


def test_tgi_before_its_first_call_knows_nothing_of_its_load() -> None:
    found = tgi.from_metrics(b"tgi_request_count 0\n", AT)

    assert (found.running, found.waiting, found.state) == (None, None, "ready")
    assert found.doubts


def test_triton_with_tensorrt_llm() -> None:
    assert said(triton.from_metrics(body("triton_metrics.prom"), AT)) == {
        "running": 9,
        "waiting": 4 + 3,
        "batch_limit": 512,
        "kv_used": 0.4,
        "kv_capacity_tokens": 64_000,
        "gpu_utilization": 0.83,
        "gpu_memory_used_bytes": 70123456512,
        "gpu_memory_total_bytes": 84987740160,
    }


def test_triton_shows_the_busiest_and_the_fullest_gpu() -> None:
    text = b"""\
nv_gpu_utilization{gpu_uuid="a"} 0.9
nv_gpu_utilization{gpu_uuid="b"} 0.1
nv_gpu_memory_used_bytes{gpu_uuid="a"} 10
nv_gpu_memory_used_bytes{gpu_uuid="b"} 19
nv_gpu_memory_total_bytes{gpu_uuid="a"} 20
nv_gpu_memory_total_bytes{gpu_uuid="b"} 20
"""
    found = triton.from_metrics(text, AT)

    assert (found.gpu_utilization, found.gpu_memory, found.waiting) == (0.9, 19 / 20, None)


def test_tensorrt_llms_newest_iteration_counts() -> None:
    expected = {
        "running": 5,
        "waiting": 3,
        "batch_limit": 64,
        "kv_used": 0.4,
        "kv_capacity_tokens": 32_000,
        "gpu_memory_used_bytes": 76665782272,
        "prefix_queries": (44 + 3121) * 32,
        "prefix_hits": 44 * 32,
    }
    newest = body("trtllm_metrics.json").strip()[1:-1]
    older = b'{"iter": 9, "numActiveRequests": 60}'

    for text in (b"[%s]" % newest, b"[%s,%s]" % (older, newest), b"[%s,%s]" % (newest, older)):
        assert said(tensorrt_llm.from_iterations(text, AT)) == expected


def test_tensorrt_llms_empty_list_is_no_report() -> None:
    assert tensorrt_llm.from_iterations(body("trtllm_metrics_drained.json"), AT) is None


def test_tensorrt_llms_other_metrics() -> None:
    text = b"""\
trtllm_num_requests_running{model_name="m",engine_type="trtllm"} 4.0
trtllm_num_requests_waiting{model_name="m",engine_type="trtllm"} 2.0
trtllm_kv_cache_utilization{model_name="m",engine_type="trtllm"} 0.62
"""
    assert said(tensorrt_llm.from_metrics(text, AT)) == {
        "state": "ready",
        "running": 4,
        "waiting": 2,
        "kv_used": 0.62,
        "models": {"m": "ready"},
    }


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("ready", {"running": 0, "waiting": 0, "prefix_queries": 0, "prefix_hits": 0}),
        (
            "busy",
            {
                "running": 2,
                "waiting": 3,
                "prefix_queries": 116,
                "prefix_hits": 25,
                "prefill_tokens_per_s": 23.3501,
            },
        ),
        ("after_abort", {"running": 2, "waiting": 1, "prefix_queries": 164, "prefix_hits": 73}),
    ],
)
def test_llama_cpps_metrics_as_captured(sample: str, expected: dict[str, Any]) -> None:
    assert said(llama_cpp.from_metrics(body(f"llamacpp_metrics_{sample}.http"), AT)) == expected


@pytest.mark.parametrize(
    ("sample", "waiting", "expected"),
    [
        ("ready", None, {"running": 0, "batch_limit": 2, "prefill_tokens": 0}),
        ("busy", None, {"running": 2, "batch_limit": 2}),
        ("busy", 3, {"running": 2, "batch_limit": 2}),
        ("busy", 0, {"running": 2, "batch_limit": 2, "prefill_tokens": 0}),
        ("after_abort", 0, {"running": 2, "batch_limit": 2, "prefill_tokens": 2}),
    ],
)
def test_llama_cpps_slots_as_captured(sample: str, waiting: int | None, expected: dict[str, int]) -> None:
    assert said(llama_cpp.from_slots(body(f"llamacpp_slots_{sample}.http"), AT, waiting)) == expected


def test_llama_cpps_props_and_refusals_as_captured() -> None:
    assert llama_cpp.props(body("llamacpp_props_ready.http")) == llama_cpp.Props(2, "gemma-3-270m", False)
    for loading in ("health", "metrics", "slots"):
        assert llama_cpp.refusal(page(f"llamacpp_{loading}_loading.http")) == "starting"
    assert llama_cpp.refusal(page("llamacpp_slots_fail_on_no_slot_busy.http")) == "overloaded"
    assert llama_cpp.refusal(page("llamacpp_slots_busy.http")) is None


def test_ollama_with_and_without_a_model_in_memory() -> None:
    assert said(ollama.from_ps(body("ollama_api_ps.json"), AT)) == {
        "state": "ready",
        "gpu_memory_used_bytes": 572000000,
        "models": {"gemma3:270m": "ready"},
    }
    assert said(ollama.from_ps(b'{"models":[]}', AT)) == {"state": "warming", "gpu_memory_used_bytes": 0}


def test_torchserve() -> None:
    found = torchserve.counters(body("torchserve_metrics.prom"))

    assert (found.calls, found.waited_us) == (12, 416)
    assert torchserve.health(page("torchserve_ping.http")) == "ready"


def test_nim_of_both_versions() -> None:
    assert said(nim.from_metrics(body("nim_1x_metrics.prom"), AT)) == {
        "running": 3,
        "waiting": 0,
        "kv_used": 0.12,
    }
    found = nim.from_metrics(body("vllm_metrics_busy.http"), AT)
    assert (found.source, found.running, found.waiting) == ("nim", 4, 5)


def test_ray_serve_alone_and_around_vllm() -> None:
    serve = body("rayserve_metrics.prom")
    assert said(ray_serve.from_metrics(serve, AT)) == {
        "state": "ready",
        "running": 4,
        "waiting": 9,
        "partial": True,
    }
    engine = b"ray_vllm_num_requests_running 3\nray_vllm_num_requests_waiting 2\nray_vllm_kv_cache_usage_perc 0.5\n"
    assert said(ray_serve.from_metrics(serve + engine, AT)) == {
        "state": "ready",
        "running": 3,
        "waiting": 11,
        "kv_used": 0.5,
        "partial": True,
    }
