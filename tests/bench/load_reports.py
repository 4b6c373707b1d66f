"""What reading a load report costs, beside json.loads of a body as long."""

from __future__ import annotations

import json
import timeit
from pathlib import Path

from mlbalance_client.load_reports import vllm

SAMPLES = Path(__file__).parents[1] / "load_reports" / "samples"
PAGE_BYTES = 55_000


def main() -> None:
    """vLLM's page of 55 kB, of which few lines are wanted."""
    wanted = (SAMPLES / "vllm_metrics_busy.http").read_bytes().partition(b"\r\n\r\n")[2]
    other = b'vllm:request_latency_seconds_bucket{engine="0",le="0.5",model_name="tiny"} 4.0\n'
    page = wanted + other * ((PAGE_BYTES - len(wanted)) // len(other))
    body = json.dumps([{"content": "word " * 100}] * 110).encode()[:-1] + b"]"
    page_s = min(timeit.repeat(lambda: vllm.from_metrics(page, 1.0), number=20, repeat=9)) / 20
    body_s = min(timeit.repeat(lambda: json.loads(body), number=20, repeat=9)) / 20
    print(f"load reports: vLLM's page of {len(page):,} bytes, {page_s * 1e6:.0f} us")
    print(f"  {page_s / body_s:.1f} times json.loads of a body of {len(body):,} bytes")
