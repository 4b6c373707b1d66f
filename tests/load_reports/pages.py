"""The samples as pages. What each is: the README beside them."""

from __future__ import annotations

from pathlib import Path

from mlbalance_client.load_reports import Page
from mlbalance_client.testing.load_reports import Script

SAMPLES = Path(__file__).parent / "samples"


def body(name: str) -> bytes:
    """The body of a sample."""
    return page(name).body


def page(name: str) -> Page:
    """A sample; ``.http`` ones with their status and headers."""
    data = (SAMPLES / name).read_bytes()
    if not name.endswith(".http"):
        return Page(200, {}, data)
    head, _, rest = data.replace(b"\r\n", b"\n").partition(b"\n\n")
    status, *lines = head.decode().split("\n")
    pairs = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in pairs}
    return Page(int(status.split()[1]), headers, rest)


VLLM: Script = {
    "/health": page("vllm_health_ok.http"),
    "/metrics": page("vllm_metrics_busy.http"),
    "/is_sleeping": page("vllm_is_sleeping.http"),
    "/load": page("vllm_load.http"),
    "/v1/models": page("vllm_v1_models.http"),
}
SGLANG: Script = {"/v1/loads": page("sglang_v1_loads.json"), "/ready": b""}
SGLANG_OLD: Script = {
    "/get_load": page("sglang_get_load_0.5.9.json"),
    "/v1/models": b'{"data":[{"id":"qwen","owned_by":"sglang"}]}',
}
SGLANG_METRICS: Script = {"/metrics": page("sglang_metrics.prom")}
TGI: Script = {"/metrics": page("tgi_metrics.prom"), "/info": page("tgi_info.json")}
TRITON: Script = {
    "/v2": b'{"name":"triton","version":"2.50.0","extensions":["classification"]}',
    "/v2/health/ready": page("triton_v2_health_ready.http"),
    "/v2/models/llm/ready": b"",
    (8002, "/metrics"): page("triton_metrics.prom"),
}
TENSORRT_LLM: Script = {
    "/v1/models": b'{"data":[{"id":"m","owned_by":"tensorrt_llm"}]}',
    "/health": b"",
    "/metrics": page("trtllm_metrics.json"),
}
LLAMA_CPP: Script = {
    "/v1/models": page("llamacpp_v1_models_ready.http"),
    "/props": page("llamacpp_props_ready.http"),
    "/metrics": page("llamacpp_metrics_busy.http"),
    "/slots": page("llamacpp_slots_busy.http"),
}
OLLAMA: Script = {"/api/ps": page("ollama_api_ps.json")}
KSERVE: Script = {
    "/v2": b'{"name":"mlserver","version":"1.7.0","extensions":[]}',
    "/v2/health/live": page("kserve_v2_live.json"),
    "/v2/health/ready": page("kserve_v2_ready.json"),
    "/v2/models/m/ready": page("kserve_v2_model_ready.json"),
}
TORCHSERVE: Script = {
    "/ping": page("torchserve_ping.http"),
    (8082, "/metrics"): page("torchserve_metrics.prom"),
}
NIM: Script = {
    "/v1/health/ready": page("nim_health_ready.json"),
    "/v1/metrics": page("nim_1x_metrics.prom"),
}
RAY_SERVE: Script = {"/-/healthz": b"success", (8080, "/metrics"): page("rayserve_metrics.prom")}

REPLICAS: dict[str, Script] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "tgi": TGI,
    "triton": TRITON,
    "tensorrt_llm": TENSORRT_LLM,
    "llama_cpp": LLAMA_CPP,
    "ollama": OLLAMA,
    "kserve": KSERVE,
    "torchserve": TORCHSERVE,
    "nim": NIM,
    "ray_serve": RAY_SERVE,
}
