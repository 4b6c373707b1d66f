"""What the load reporter costs a server: its CPU at 50 calls a second, with and without, side by side.

Two simulated replicas run at once, one bare and one with the middleware, and get the same calls at the same times;
a third process holds the subscribers and reads what they are sent. A simulated replica does next to nothing: what a
real server spends on such a call is measured beside it, where ``make test-engines`` has installed vLLM.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from statistics import median

import httpx

from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.spec import EngineSpec

from ..engines import install
from ..engines.engine import MODEL, Vllm
from .text import conversations

CALLS_PER_S, SECONDS, ALTERNATIONS = 50, 10, 3
TARGETS = {0: 3, 64: 5, 256: 10}
REAL_CALLS, REAL_AT_ONCE, REAL_PROMPT_BYTES, READY_WITHIN_S = 40, 4, 8 * 1024, 600
MIDDLEWARE = "mlbalance_client.reporter.LoadReporter"
_TICKS = os.sysconf("SC_CLK_TCK")
_KINDS = {
    "chat, 8 KB prompts, streams of 64 tokens": (8 * 1024, True),
    "chat, 32 KB prompts, whole answers": (32 * 1024, False),
}


def _cpu_s(server: Fleet | Vllm) -> float:
    process = server._processes[0] if isinstance(server, Fleet) else server._process
    assert process is not None
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def _calls(urls: list[str], bodies: list[bytes], seconds: float) -> None:
    # Shorter than the 5 s after which uvicorn closes an idle connection, so that hardly a call races with the closing.
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2.0)
    headers = {"content-type": "application/json"}

    async def call(client: httpx.AsyncClient, url: str, number: int) -> None:
        body = bodies[number % len(bodies)]
        marked = {**headers, "x-mlbalance-call": f"c{number % 16}.{number}"}
        try:
            await read(client, f"{url}/v1/chat/completions", body, marked)
        except httpx.TransportError as error:
            print(f"    (call {number} to the {('bare', 'reporting')[urls.index(url)]} replica: {error!r})")

    async def read(client: httpx.AsyncClient, url: str, body: bytes, marked: dict[str, str]) -> None:
        async with AsyncExitStack() as stack:
            asked = partial(client.stream, "POST", url, content=body, headers=marked)
            try:
                answer = await stack.enter_async_context(asked())
            except (httpx.ReadError, httpx.RemoteProtocolError):
                # On a busy machine seconds pass from taking a connection to writing, and it is closed by then.
                answer = await stack.enter_async_context(asked())
            if answer.status_code != 200:
                raise RuntimeError(f"{url}: {answer.status_code}")
            async for _ in answer.aiter_raw():
                pass

    async with httpx.AsyncClient(timeout=60, limits=limits) as client, asyncio.TaskGroup() as calls:
        began = time.monotonic()
        for number in range(int(seconds * CALLS_PER_S)):
            await asyncio.sleep(max(0.0, began + number / CALLS_PER_S - time.monotonic()))
            for url in urls:
                calls.create_task(call(client, url, number))


class _Reading(asyncio.Protocol):
    def __init__(self, number: int) -> None:
        self._number = number
        self.read = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(
            b"GET /mlbalance/v1/load HTTP/1.1\r\nhost: r\r\naccept: text/event-stream\r\n"
            b"x-mlbalance-client: c%d\r\n\r\n" % self._number
        )

    def data_received(self, data: bytes) -> None:
        self.read += data.count(b"event: load")


async def _subscribe(port: int, count: int) -> None:
    loop = asyncio.get_running_loop()
    held = [
        (await loop.create_connection(lambda n=n: _Reading(n), "127.0.0.1", port))[1] for n in range(count)
    ]
    print("there", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print(sum(each.read for each in held), flush=True)


@contextmanager
def _subscribers(url: str, count: int) -> Iterator[list[int]]:
    """``count`` subscribers of a replica; after the block, how many events they have read."""
    command = [sys.executable, "-m", __name__, url.rpartition(":")[2], str(count)]
    read: list[int] = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield read
        finally:
            said, _ = process.communicate()
        read.append(int(said))


def _compare(bodies: list[bytes], subscribers: int, seconds: float) -> tuple[float, float, float]:
    """CPU seconds a second of the bare server and of the other, and events a second and subscriber."""
    spec = EngineSpec().scaled(4)
    with Fleet(1, spec=spec) as bare, Fleet(1, spec=spec, middleware=[MIDDLEWARE]) as reporting:
        urls = [bare.urls[0], reporting.urls[0]]
        asyncio.run(_calls(urls, bodies, 2.0))
        with _subscribers(urls[1], subscribers) as read:
            before = [_cpu_s(fleet) for fleet in (bare, reporting)]
            began = time.monotonic()
            asyncio.run(_calls(urls, bodies, seconds))
            took_s = time.monotonic() - began
            without, with_it = (
                (_cpu_s(fleet) - cpu) / took_s for fleet, cpu in zip((bare, reporting), before, strict=True)
            )
    return without, with_it, read[0] / took_s / max(1, subscribers)


def _until_ready(engine: Vllm) -> None:
    until = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < until and engine.runs:
        try:
            if httpx.get(f"{engine.url}/health", trust_env=False, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1.0)
    raise RuntimeError(f"vLLM is not ready: {engine.said()}")


async def _real_calls(url: str, bodies: list[bytes]) -> None:
    async with httpx.AsyncClient(timeout=READY_WITHIN_S, trust_env=False) as client:
        at_once = asyncio.Semaphore(REAL_AT_ONCE)
        headers = {"content-type": "application/json"}
        asked = partial(client.stream, "POST", f"{url}/v1/chat/completions", headers=headers)

        async def call(body: bytes) -> None:
            async with at_once, asked(content=body) as answer:
                lines = [line async for line in answer.aiter_lines() if line]
            end = "data: [DONE]" if "".join(lines[:1]).startswith("data:") else '"usage"'
            if answer.status_code != 200 or end not in "".join(lines[-1:]):
                raise RuntimeError(f"{url}: {answer.status_code}, {lines[-1:]}")

        await asyncio.gather(*map(call, bodies))


def _of_a_real_server(added_s: dict[str, dict[int, float]], alternations: int) -> None:
    """``added_s``: by kind of call and subscribers, what the reporter adds to a call.

    vLLM's prompts are short for either kind: what it spends on the long ones is not less.
    """
    if not (install.ENGINES / "vllm").exists():
        print("  vLLM is not there to compare with: make test-engines installs it")
        return
    wishes = {"model": MODEL, "max_tokens": 64, "ignore_eos": True}
    bodies = {
        kind: [
            json.dumps(json.loads(body) | wishes).encode()
            for body in conversations(REAL_CALLS, REAL_PROMPT_BYTES, stream=stream)
        ]
        for kind, (_, stream) in _KINDS.items()
    }
    spent_s: dict[tuple[str, str], float] = {}
    engine = Vllm()
    try:
        for name, reporter in (("without", ""), ("with", "bench")):
            engine.start(reporter=reporter)
            _until_ready(engine)
            for kind, its in bodies.items():
                asyncio.run(_real_calls(engine.url, its[: 2 * REAL_AT_ONCE]))
                runs = []
                for _ in range(alternations):
                    before_s = _cpu_s(engine)
                    asyncio.run(_real_calls(engine.url, its))
                    runs.append((_cpu_s(engine) - before_s) / REAL_CALLS)
                spent_s[kind, name] = median(runs)
                print(
                    f"  vLLM {install.VLLM}'s API server {name} the reporter, {kind.rpartition(', ')[2]}, "
                    f"{REAL_PROMPT_BYTES // 1024} KB prompts, {REAL_AT_ONCE} at once: "
                    f"{', '.join(f'{run * 1e3:.1f}' for run in runs)} ms of CPU a call",
                    flush=True,
                )
            engine.kill()
    finally:
        engine.close()
    for kind, by_subscribers in added_s.items():
        print(f"  what the reporter adds to {kind}, of what that server spends without it")
        for subscribers, target in TARGETS.items():
            share = by_subscribers[subscribers] / spent_s[kind, "without"]
            met = "met" if share <= target / 100 else "NOT MET"
            print(f"    {subscribers:4} subscribers: {share:5.1%} (at most {target} %: {met})")


def main(alternations: int = ALTERNATIONS, seconds: float = SECONDS) -> None:
    """Print medians; calls that fail on the way are named."""
    added_s: dict[str, dict[int, float]] = {kind: {} for kind in _KINDS}
    print(
        f"reporter: CPU of a simulated replica at {CALLS_PER_S} calls/s, median of {alternations} runs side by side"
    )
    for kind, (size, stream) in _KINDS.items():
        bodies = conversations(256, size, stream=stream)
        bodies = [body.replace(b'"model":"m"', b'"model":"sim"') for body in bodies]
        print(f"  {kind}")
        for subscribers, target in TARGETS.items():
            runs = [_compare(bodies, subscribers, seconds) for _ in range(alternations)]
            without, with_it = median(run[0] for run in runs), median(run[1] for run in runs)
            added = median(run[1] / run[0] - 1 for run in runs)
            rate = median(run[2] for run in runs)
            added_s[kind][subscribers] = (with_it - without) / CALLS_PER_S
            met = "met" if with_it - without <= target / 100 else "NOT MET"
            print(
                f"    {subscribers:4} subscribers: {without:6.1%} of a core without, {with_it:6.1%} with: "
                f"{with_it - without:+.1%} of a core (at most {target} %: {met}), {added:+.1%} of this server's, "
                f"{(with_it - without) / CALLS_PER_S * 1e6:+.0f} us a call; {rate:.1f} events/s each",
                flush=True,
            )
    _of_a_real_server(added_s, alternations)


if __name__ == "__main__":
    asyncio.run(_subscribe(int(sys.argv[1]), int(sys.argv[2])))
