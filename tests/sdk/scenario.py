"""Runs inside an environment with a real SDK: every way out of a call leaves nothing behind.

usage: scenario.py openai|anthropic httpx|httpx2. The fleet is in MLBALANCE_TARGET. Exits with 0 if all held.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import sys
import urllib.request
from collections.abc import Callable
from typing import Any

import mlbalance_client as mlb

REPLICAS = os.environ["MLBALANCE_TARGET"].removeprefix("static://").split(",")
MESSAGES = [{"role": "user", "content": "Tell me a long story. " * 50}]


def total(name: str) -> int:
    """A counter, over all replicas."""
    return sum(
        json.load(urllib.request.urlopen(f"http://{replica}/_sim/state"))[name] for replica in REPLICAS
    )


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(500):
        # What an SDK drops hangs in cycles of generators, one inside the other: each pass frees the next.
        gc.collect()
        if await asyncio.to_thread(condition):
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"never: {what}")


class OpenAI:
    """The SDK's calls."""

    def __init__(self, http_client: Any) -> None:
        import openai

        self.timeout = openai.APITimeoutError
        self.sdk = openai.AsyncOpenAI(
            base_url="http://fleet/v1", api_key="none", http_client=http_client, max_retries=0
        )

    async def plain(self, **more: Any) -> str:
        made = await self.sdk.chat.completions.create(model="sim", messages=MESSAGES, max_tokens=4, **more)
        return made.choices[0].message.content

    async def stream(self, tokens: int) -> Any:
        return await self.sdk.chat.completions.create(
            model="sim", messages=MESSAGES, max_tokens=tokens, stream=True
        )


class Anthropic:
    """The SDK's calls."""

    def __init__(self, http_client: Any) -> None:
        import anthropic

        self.timeout = anthropic.APITimeoutError
        self.sdk = anthropic.AsyncAnthropic(
            base_url="http://fleet", api_key="none", http_client=http_client, max_retries=0
        )

    async def plain(self, **more: Any) -> str:
        made = await self.sdk.messages.create(model="sim", messages=MESSAGES, max_tokens=4, **more)
        return made.content[0].text

    async def stream(self, tokens: int) -> Any:
        return await self.sdk.messages.create(model="sim", messages=MESSAGES, max_tokens=tokens, stream=True)


async def main(sdk: str, library: str) -> None:
    face = importlib.import_module(
        {"httpx": "mlbalance_client.client", "httpx2": "mlbalance_client.httpx2"}[library]
    )
    config = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": [f"http://{r}" for r in REPLICAS]},
        picking={"residual_s": 0.0},
    )
    http_client = face.AsyncClient(config)
    engine = http_client.balancer.engine
    calls = {"openai": OpenAI, "anthropic": Anthropic}[sdk](http_client)

    async def clean(aborts: int, what: str) -> None:
        await until(lambda: total("aborted") >= aborts, f"{what}: the replica sees the abort")
        await until(lambda: total("in_flight") == 0, f"{what}: the replica is idle")
        await until(lambda: engine.open_streams == 0 and engine.wire.counts()[1] == 0, f"{what}: all closed")
        assert engine.snapshot().outstanding_tokens == 0, what
        print("ok:", what)

    aborts = total("aborted")
    assert "tok" in await calls.plain()
    await clean(aborts, "plain")

    events = [event async for event in await calls.stream(8)]
    assert len(events) > 3
    await clean(aborts, "streamed to the end")

    async with await calls.stream(100_000) as stream:
        async for _ in stream:
            break
    await clean(aborts + 1, "left early")

    stream = await calls.stream(100_000)
    async for _ in stream:
        break
    del stream
    await clean(aborts + 2, "dropped")

    async def read_all() -> None:
        async for _ in await calls.stream(100_000):
            started.set()

    started = asyncio.Event()
    reading = asyncio.create_task(read_all())
    await started.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    del reading
    await clean(aborts + 3, "cancelled")

    for number in range(len(REPLICAS)):
        set_faults(number, hanging=True)
    try:
        await calls.plain(timeout=0.2)
    except calls.timeout:
        print("ok: timed out as the SDK does")
    else:
        raise AssertionError("no timeout")
    for number in range(len(REPLICAS)):
        set_faults(number)
    await clean(aborts + 3, "timed out")

    assert "tok" in await calls.plain()
    await calls.sdk.close()
    assert engine.wire.counts() == (0, 0)
    left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    assert not left, left
    print("ok: no task, no connection left")


def set_faults(number: int, **faults: Any) -> None:
    request = urllib.request.Request(
        f"http://{REPLICAS[number]}/_sim/faults", data=json.dumps(faults).encode()
    )
    urllib.request.urlopen(request).close()


asyncio.run(main(*sys.argv[1:]))
