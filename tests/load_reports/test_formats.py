"""Formats against scripted replicas: the promises of the Protocol, and which page is asked when."""

from __future__ import annotations

import pytest

from mlbalance_client.config import LoadReportsConfig
from mlbalance_client.core.load.report import State
from mlbalance_client.load_reports import Format, NoAnswer, NotThere, Page, ReportError, create
from mlbalance_client.load_reports.waits import LateWait
from mlbalance_client.testing.load_reports import Script, ScriptedReplica, check_format

from .pages import LLAMA_CPP, NIM, REPLICAS, SGLANG_METRICS, SGLANG_OLD, TORCHSERVE, TRITON, VLLM, page

pytestmark = pytest.mark.anyio

PORTS = {"ray_serve": 8080}
MODELS = {"kserve": ["m"]}


def make(kind: str) -> Format:
    found = create(LoadReportsConfig(kind=kind, metrics_port=PORTS.get(kind)), MODELS.get(kind, ()))
    assert found is not None
    assert found.kind == kind
    return found


@pytest.mark.parametrize(
    ("kind", "script"),
    [*REPLICAS.items(), ("sglang", SGLANG_OLD), ("sglang", SGLANG_METRICS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_every_format_keeps_its_promises(kind: str, script: Script) -> None:
    report = await check_format(lambda: make(kind), script)

    assert (report.source, report.state) == (kind, State.READY)


@pytest.mark.parametrize("kind", REPLICAS)
async def test_a_format_takes_no_other_engine_for_its_own(kind: str) -> None:
    shared = {("kserve", "triton")}  # Triton speaks the protocol too; auto asks for Triton first
    others = [
        other
        for other, script in REPLICAS.items()
        if other != kind and await make(kind).recognises(ScriptedReplica(script))
    ]

    assert [(kind, other) for other in others if (kind, other) not in shared] == []


def test_what_is_not_asked_for_has_no_format() -> None:
    for kind in ("orca", "stream", "none"):
        assert create(LoadReportsConfig(kind=kind)) is None


async def test_vllm_whose_engine_died_takes_no_calls() -> None:
    report = await make("vllm").read(ScriptedReplica({**VLLM, "/health": Page(503, {}, b"")}), 1.0)

    assert report.state is State.DRAINING
    assert report.running is None


async def test_a_proxy_that_answers_for_vllm_is_no_dead_engine() -> None:
    replica = ScriptedReplica({**VLLM, "/health": Page(503, {}, b"no healthy upstream")})

    assert (await make("vllm").read(replica, 1.0)).state is State.STARTING


async def test_vllm_that_shows_its_health_alone_is_ready_and_its_load_unknown() -> None:
    report = await make("vllm").read(ScriptedReplica({"/health": b""}), 1.0)

    assert (report.state, report.running) == (State.READY, None)
    assert report.doubts == ("neither /metrics nor /load is there",)


async def test_vllm_that_sleeps_is_healthy_and_takes_no_calls() -> None:
    old = {
        **VLLM,
        "/metrics": page("vllm_0.8_old_names_metrics.prom"),
        "/is_sleeping": b'{"is_sleeping":true}',
    }
    report = await make("vllm").read(ScriptedReplica(old), 1.0)

    assert report.state is State.ASLEEP


@pytest.mark.parametrize("kind", ["vllm", "nim", "triton", "torchserve", "ray_serve", "llama_cpp"])
async def test_figures_that_are_not_there_for_a_moment_are_looked_for_again_soon(kind: str) -> None:
    figures = {
        key for key in REPLICAS[kind] if (key[1] if isinstance(key, tuple) else key).endswith("/metrics")
    }
    replica = ScriptedReplica(
        {key: value for key, value in REPLICAS[kind].items() if key not in ("/load", "/slots")}
    )
    form = make(kind)
    full = await form.read(replica, 0.0)
    pages = {key: replica.pages.pop(key) for key in figures}
    for at in range(1, 4):
        await form.read(replica, float(at))
    replica.pages |= pages
    before = len(replica.asked)

    reports = [await form.read(replica, float(at)) for at in range(4, 8)]

    assert full.doubts in [report.doubts for report in reports]
    assert any("/metrics" in path for path in replica.asked[before:])


async def test_a_server_that_had_none_of_its_pages_is_asked_for_all_of_them_at_the_next_reading() -> None:
    for kind in REPLICAS:
        replica = ScriptedReplica(REPLICAS[kind])
        form = make(kind)
        full = await form.read(replica, 0.0)
        replica.pages.clear()
        for at in range(1, 20):
            with pytest.raises(NotThere):
                await form.read(replica, float(at))
        replica.pages |= REPLICAS[kind]

        assert (await form.read(replica, 20.0)).running == full.running, kind


async def test_vllm_that_does_not_show_its_load_for_a_moment_lives_all_the_same() -> None:
    replica = ScriptedReplica({"/health": b"", "/metrics": VLLM["/metrics"]})
    form = make("vllm")
    await form.read(replica, 1.0)
    del replica.pages["/metrics"]

    reports = [await form.read(replica, at) for at in (1.1, 1.3, 1.7)]

    assert {report.doubts for report in reports} == {("neither /metrics nor /load is there",)}


async def test_vllm_that_cannot_sleep_is_asked_ever_less_often_whether_it_does() -> None:
    replica = ScriptedReplica({"/health": b"", "/metrics": page("vllm_0.8_old_names_metrics.prom")})
    form = make("vllm")

    asked_at = []
    for at in range(260):
        before = replica.asked.count("/is_sleeping")
        assert (await form.read(replica, float(at))).state is State.READY
        if replica.asked.count("/is_sleeping") > before:
            asked_at.append(at)

    assert asked_at == [0, 1, 3, 7, 15, 31, 63, 127, 192, 257]


async def test_vllm_is_asked_for_figures_alone_where_it_was_awake_a_moment_ago() -> None:
    replica = ScriptedReplica(VLLM)
    form = make("vllm")
    await form.read(replica, 1.0)
    asked_before = len(replica.asked)

    report = await form.read(replica, 1.2)

    assert replica.asked[asked_before:] == ["/metrics"]
    assert report.state is State.READY
    await form.read(replica, 1.6)
    assert replica.asked[asked_before + 1] == "/health"


@pytest.mark.parametrize("metrics", [Page(404, {}, b""), b"http_requests_total 3\n"])
async def test_vllm_without_metrics_is_read_by_its_load(metrics: Page | bytes) -> None:
    report = await make("vllm").read(ScriptedReplica({**VLLM, "/metrics": metrics}), 1.0)

    assert (report.running, report.waiting, report.partial, report.state) == (9, None, True, State.READY)
    assert bool(report.doubts) is isinstance(metrics, bytes)


async def test_a_page_for_everything_before_an_old_vllm_is_no_sign_of_sleep() -> None:
    replica = ScriptedReplica(
        {"/metrics": page("vllm_0.8_old_names_metrics.prom")}, other=Page(200, {}, b"<html></html>")
    )

    report = await make("vllm").read(replica, 1.0)

    assert (report.state, report.running) == (State.READY, 5)


async def test_metrics_may_be_on_another_port() -> None:
    form = create(LoadReportsConfig(kind="vllm", metrics_port=9100))
    assert form is not None

    report = await form.read(ScriptedReplica({(9100, "/metrics"): VLLM["/metrics"]}), 1.0)

    assert report.running == 4


async def test_sglang_says_that_it_is_not_ready() -> None:
    replica = ScriptedReplica({**REPLICAS["sglang"], "/ready": Page(503, {}, b"")})

    report = await make("sglang").read(replica, 1.0)

    assert report.state is State.STARTING


async def test_sglang_that_knows_nothing_of_its_scheduler_is_not_idle() -> None:
    replica = ScriptedReplica({"/v1/loads": page("sglang_v1_loads_empty.json")})

    report = await make("sglang").read(replica, 1.0)

    assert report.empty


async def test_sglangs_health_is_never_asked_as_it_generates() -> None:
    for script in (REPLICAS["sglang"], SGLANG_OLD, SGLANG_METRICS, {}):
        replica = ScriptedReplica(script)
        form = make("sglang")
        await form.recognises(replica)
        try:
            await form.read(replica, 1.0)
        except NotThere:
            pass
        assert not any("health" in path for path in replica.asked)


async def test_triton_without_its_metrics_port_tells_its_readiness() -> None:
    replica = ScriptedReplica({key: value for key, value in TRITON.items() if isinstance(key, str)})

    report = await make("triton").read(replica, 1.0)

    assert report.state is State.READY
    assert report.waiting is None
    assert report.doubts == ("no metrics at port 8002",)


async def test_triton_asks_for_the_models_that_its_metrics_name() -> None:
    replica = ScriptedReplica({**TRITON, "/v2/models/llm/ready": Page(400, {}, b"")})

    report = await make("triton").read(replica, 1.0)

    assert (report.state, report.models) == (State.READY, {"llm": "starting"})


@pytest.mark.parametrize("status", [400, 503])
async def test_triton_that_loads_is_starting(status: int) -> None:
    replica = ScriptedReplica({**TRITON, "/v2/health/ready": Page(status, {}, b"")})

    assert (await make("triton").read(replica, 1.0)).state is State.STARTING


async def test_many_models_are_asked_for_in_turn() -> None:
    names = [f"m/{number}" for number in range(10)]
    replica = ScriptedReplica(
        {"/v2/health/ready": b""} | {f"/v2/models/m%2F{number}/ready": b"" for number in range(10)}
    )
    form = create(LoadReportsConfig(kind="kserve"), names)
    assert form is not None

    known = [len((await form.read(replica, 1.0)).models) for _ in range(3)]

    assert known == [4, 8, 10]


@pytest.mark.parametrize(
    ("ready", "live", "state"),
    [
        (Page(200, {}, b""), Page(200, {}, b""), State.READY),
        (Page(200, {}, b'{"ready":false}'), Page(200, {}, b""), State.STARTING),
        (Page(200, {}, b'{"live":true}'), Page(200, {}, b""), State.READY),
        (Page(503, {}, b'{"ready":true}'), Page(200, {}, b'{"live":true}'), State.STARTING),
        (Page(503, {}, b""), Page(503, {}, b""), State.DRAINING),
        (Page(200, {}, b"not json"), Page(200, {}, b""), State.READY),
    ],
)
async def test_kserves_status_counts_first_and_a_body_that_says_no_second(
    ready: Page, live: Page, state: State
) -> None:
    replica = ScriptedReplica({"/v2/health/ready": ready, "/v2/health/live": live})

    assert (await make("kserve").read(replica, 1.0)).state is state


async def test_a_model_that_mlserver_has_unloaded_takes_no_calls_until_it_is_loaded_again() -> None:
    path = "/v2/models/double/ready"
    replica = ScriptedReplica({"/v2/health/ready": b"", path: page("mlserver_model_unloaded.http")})
    form = create(LoadReportsConfig(kind="kserve"), ["double"])
    assert form is not None

    seen = [(await form.read(replica, 1.0)).models]
    replica.pages[path] = page("mlserver_model_loading.http")
    seen.append((await form.read(replica, 2.0)).models)
    replica.pages[path] = b""
    seen.append((await form.read(replica, 3.0)).models)

    assert seen == [{"double": "starting"}, {"double": "starting"}, {"double": "ready"}]


@pytest.mark.parametrize("status", [401, 403, 405, 501])
async def test_a_model_of_which_nothing_is_shown_is_unknown(status: int) -> None:
    replica = ScriptedReplica({"/v2/health/ready": b"", "/v2/models/m/ready": Page(status, {}, b"")})
    form = create(LoadReportsConfig(kind="kserve"), ["m"])
    assert form is not None

    assert (await form.read(replica, 1.0)).models == {}


async def test_tensorrt_llms_last_report_stands_with_its_own_time_when_there_is_nothing_new() -> None:
    replica = ScriptedReplica(REPLICAS["tensorrt_llm"])
    form = make("tensorrt_llm")
    first = await form.read(replica, 1.0)
    replica.pages["/metrics"] = page("trtllm_metrics_drained.json")

    second = await form.read(replica, 2.0)

    assert second == first
    assert second.at == 1.0


async def test_tensorrt_llm_that_never_ran_anything_is_unknown() -> None:
    replica = ScriptedReplica({"/metrics": page("trtllm_metrics_drained.json")})

    report = await make("tensorrt_llm").read(replica, 1.0)

    assert (report.state, report.running, report.waiting) == (State.READY, None, None)


async def test_tensorrt_llms_list_is_left_to_others_where_metrics_can_be_read_freely() -> None:
    metrics = b"trtllm_num_requests_running 4\ntrtllm_num_requests_waiting 2\n"
    replica = ScriptedReplica({**REPLICAS["tensorrt_llm"], "/prometheus/metrics": metrics})
    form = make("tensorrt_llm")
    await form.recognises(replica)

    report = await form.read(replica, 1.0)

    assert (report.running, report.waiting) == (4, 2)
    assert "/metrics" not in replica.asked


async def test_tensorrt_llm_that_is_down_inside_takes_no_calls() -> None:
    replica = ScriptedReplica({**REPLICAS["tensorrt_llm"], "/health": page("trtllm_health_503.http")})

    assert (await make("tensorrt_llm").read(replica, 1.0)).state is State.STARTING


async def test_llama_cpp_is_recognised_and_starting_while_it_loads() -> None:
    replica = ScriptedReplica({}, other=page("llamacpp_health_loading.http"))
    form = make("llama_cpp")

    assert await form.recognises(replica)
    assert (await form.read(replica, 1.0)).state is State.STARTING


async def test_llama_cpp_that_sleeps_is_not_woken() -> None:
    asleep = b'{"total_slots":2,"model_alias":"g","is_sleeping":true}'
    replica = ScriptedReplica({**LLAMA_CPP, "/props": asleep})

    report = await make("llama_cpp").read(replica, 1.0)

    assert report.state is State.WARMING
    assert report.models == {"g": "warming"}
    assert "/slots" not in replica.asked


async def test_llama_cpp_without_metrics_is_read_by_its_slots_and_its_queue_is_unknown() -> None:
    replica = ScriptedReplica({**LLAMA_CPP, "/metrics": Page(501, {}, b"")})

    report = await make("llama_cpp").read(replica, 1.0)

    assert (report.running, report.waiting, report.batch_limit) == (2, None, 2)


async def test_llama_cpps_idle_slots_are_not_asked_for() -> None:
    replica = ScriptedReplica({**LLAMA_CPP, "/metrics": page("llamacpp_metrics_ready.http")})

    report = await make("llama_cpp").read(replica, 1.0)

    assert (report.running, report.batch_limit, report.epoch) == (0, 2, "2339553951")
    assert "/slots" not in replica.asked


async def test_torchserve_tells_what_calls_have_waited_lately() -> None:
    replica = ScriptedReplica(TORCHSERVE)
    form = make("torchserve")
    first = await form.read(replica, 1.0)
    replica.pages[8082, "/metrics"] = (
        b"ts_inference_requests_total 14\nts_queue_latency_microseconds 400416\nQueueTime 9000\n"
    )

    second = await form.read(replica, 2.0)
    third = await form.read(replica, 3.0)

    assert [report.expected_wait_s for report in (first, second, third)] == [None, 0.2, None]


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (200, b'{"health": "healthy!"}', State.READY),
        (200, b'{"status": "Partial Healthy"}', State.READY),
        (200, b'{"status": "Unhealthy"}', State.STARTING),
        (500, b'{"status": "Unhealthy"}', State.STARTING),
    ],
)
async def test_torchserves_ping(status: int, body: bytes, state: State) -> None:
    replica = ScriptedReplica({"/ping": Page(status, {}, body)})
    form = make("torchserve")

    assert await form.recognises(replica)
    assert (await form.read(replica, 1.0)).state is state


async def test_nim_that_loads_is_recognised_and_starting() -> None:
    loading = Page(503, {}, b'{"object":"health.response","message":"...","status":"not ready"}')
    replica = ScriptedReplica({**NIM, "/v1/health/ready": loading})
    form = make("nim")

    assert await form.recognises(replica)
    assert (await form.read(replica, 1.0)).state is State.STARTING


async def test_ray_serve_that_drains_is_recognised_and_takes_no_calls() -> None:
    replica = ScriptedReplica({"/-/healthz": Page(503, {}, b""), "/-/routes": b'{"/":"llm"}'})
    form = make("ray_serve")

    assert await form.recognises(replica)
    assert (await form.read(replica, 1.0)).state is State.DRAINING


async def test_ray_serve_without_a_metrics_port_tells_its_readiness() -> None:
    form = create(LoadReportsConfig(kind="ray_serve"))
    assert form is not None

    report = await form.read(ScriptedReplica(REPLICAS["ray_serve"]), 1.0)

    assert (report.state, report.running) == (State.READY, None)


async def test_a_server_error_is_an_error_and_no_missing_page() -> None:
    for kind, path in (("sglang", "/v1/loads"), ("tgi", "/metrics"), ("ollama", "/api/ps")):
        replica = ScriptedReplica({**REPLICAS[kind], path: Page(500, {}, b"")})
        with pytest.raises(ReportError, match=rf"{path}: answers 500") as caught:
            await make(kind).read(replica, 1.0)
        assert not isinstance(caught.value, NotThere | NoAnswer)


def test_the_late_wait_needs_two_readings_and_calls_between_them() -> None:
    wait = LateWait()

    given = [
        (0.0, 0.0),
        (3e6, 6.0),
        (3e6, 6.0),
        (1e6, 2.0),
        (2e6, 3.0),
        (None, 4.0),
        (4e6, 5.0),
        (9e99, 6.0),
        (1e100, 5.0),
    ]
    assert [wait(*each) for each in given] == [None, 0.5, None, None, 1.0, None, None, 3600.0, None]
