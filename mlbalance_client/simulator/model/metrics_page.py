"""The load pages of a simulated replica: vLLM's ``/metrics`` by its metric names of 0.32, SGLang's ``/v1/loads``."""

from __future__ import annotations

import time
from typing import Any

from .engine import Engine


def metrics(engine: Engine, model: str) -> str:
    """Prometheus text, values of the engine's true state.

    As in vLLM, a prompt is looked up in the prefix cache when it is admitted and counted in ``prompt_tokens``, cached
    part and all, at its first token (``IterationStats.update_from_output``).
    """
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    labels = f'engine="0",model_name="{escaped}"'
    gauges = {
        "vllm:num_requests_running": engine.running,
        "vllm:num_requests_waiting": engine.waiting,
        "vllm:kv_cache_usage_perc": engine.kv_used_tokens / engine.spec.kv_tokens,
    }
    counters = {
        "vllm:prefix_cache_queries": engine.prefix_queries_total,
        "vllm:prefix_cache_hits": engine.prefix_hits_total,
        "vllm:prompt_tokens": engine.prompt_tokens_total,
        "vllm:generation_tokens": engine.generation_tokens_total,
        "vllm:num_preemptions": engine.preemptions_total,
    }
    lines = []
    for name, value in gauges.items():
        lines += [f"# TYPE {name} gauge", f"{name}{{{labels}}} {float(value)}"]
    waiting = float(engine.waiting)
    name = "vllm:num_requests_waiting_by_reason"
    lines += [f"# TYPE {name} gauge", f'{name}{{{labels},reason="capacity"}} {waiting}']
    lines.append(f'{name}{{{labels},reason="deferred"}} 0.0')
    for name, value in counters.items():
        lines += [f"# TYPE {name}_total counter", f"{name}_total{{{labels}}} {float(value)}"]
    blocks = engine.spec.kv_tokens // 16
    lines += [
        "# TYPE vllm:cache_config_info gauge",
        f'vllm:cache_config_info{{block_size="16",engine="0",num_gpu_blocks="{blocks}"}} 1.0',
    ]
    return "\n".join(lines) + "\n"


def loads(engine: Engine) -> dict[str, Any]:
    """As SGLang's ``/v1/loads`` of 0.5.13 and later, where what waits has with it the rest of a chunked request."""
    used = engine.kv_used_tokens
    waits = engine.waiting_uncached_tokens + engine.chunked_uncached_tokens
    return {
        "timestamp": time.time(),
        "version": "0.5.23",
        "loads": [
            {
                "dp_rank": 0,
                "num_running_reqs": engine.running,
                "num_waiting_reqs": engine.waiting,
                "num_waiting_uncached_tokens": waits,
                "num_used_tokens": used,
                "num_total_tokens": used + waits,
                "max_total_num_tokens": engine.spec.kv_tokens,
                "max_running_requests": engine.spec.max_running,
                "token_usage": used / engine.spec.kv_tokens,
            }
        ],
    }
