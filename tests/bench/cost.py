"""CPU a call costs the client, beside the same wire without balancing and beside bare libraries, in one run."""

from __future__ import annotations

import asyncio
import gc
import importlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from itertools import count
from statistics import median
from typing import Any

import httpx

import mlbalance_client as mlb
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.dialects import find
from mlbalance_client.wire import Origin, Timeouts, Wire, WireAnswer, WireOptions, WireRequest

from .answering import replicas
from .text import conversations

# With one in flight a machine that is not quiet makes single rounds differ by a half.
ALTERNATIONS = {1: 11, 64: 5, 500: 5}
CALLS = {1: 800, 64: 960, 500: 2000}
DELAY_MS = {1: 0, 64: 50, 500: 50}
STREAM_CALLS = {1: 60, 64: 384, 500: 1500}
STREAM_DELAY_MS = {1: 1, 64: 10, 500: 10}
# For all alike: on a busy machine a round takes longer than connections live by default, and whoever loads replicas
# unevenly would pay for new ones, by the machine's clock and not by the call.
KEEPALIVE_S = 60.0


class _Passing(httpx.AsyncByteStream):
    def __init__(self, answer: WireAnswer) -> None:
        self._answer = answer

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._answer)

    async def aclose(self) -> None:
        await self._answer.aclose()


class SameWire(httpx.AsyncBaseTransport):
    """Our connections, a pool a replica, round robin; nothing else of ours. Nothing tends them: each read and write
    has a timer of its own, as in httpcore."""

    def __init__(self, urls: Sequence[str]) -> None:
        self._wire = Wire(WireOptions(keepalive_expiry_s=KEEPALIVE_S))
        self._origins = [(Origin.from_url(url), url.removeprefix("http://").encode()) for url in urls]
        self._turn = count()
        self._timeouts = Timeouts(5.0, 600.0, 60.0)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        stream = request.stream
        assert isinstance(stream, httpx.ByteStream)
        origin, authority = self._origins[next(self._turn) % len(self._origins)]
        headers = [
            (b"Host", authority),
            *(pair for pair in request.headers.raw if pair[0].lower() != b"host"),
        ]
        answer = await self._wire.open(
            origin,
            WireRequest(
                request.method.encode(), request.url.raw_path, headers, b"".join(stream), self._timeouts, {}
            ),
        )
        return httpx.Response(
            answer.status, headers=answer.headers, stream=_Passing(answer), extensions=answer.extensions
        )

    async def aclose(self) -> None:
        await self._wire.aclose()


class PromptRead(SameWire):
    """And the least that any placing by prefix costs: the prompt is read and its blocks hashed."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        fingerprint(find("POST", request.url.path).read(request.url.path, request.content).prompt)
        return await super().handle_async_request(request)


@dataclass(frozen=True)
class Contestant:
    """``make``: the client; ``spread``: whether its URLs must name the replicas in turn."""

    name: str
    make: Callable[[Sequence[str]], Any]
    spread: bool = False


def _bare(library: Any, **options: Any) -> Any:
    limits = library.Limits(
        max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S
    )
    return library.AsyncClient(timeout=600.0, limits=limits, **options)


def _over(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=transport, base_url="http://fleet", timeout=600.0)


def _balanced(urls: Sequence[str], policy: str = "prefix_tokens") -> mlb.AsyncClient:
    return mlb.AsyncClient(
        mlb.BalancerConfig.model_validate(
            {
                "discovery": {"kind": "static", "replicas": list(urls)},
                "picking": {"policy": policy},
                "http": {"keepalive_expiry_s": KEEPALIVE_S},
            }
        )
    )


def contestants() -> list[Contestant]:
    """Those whose libraries are installed."""
    found = [
        Contestant("ours", _balanced),
        Contestant("same wire", lambda urls: _over(SameWire(urls))),
        Contestant("it, prompt read", lambda urls: _over(PromptRead(urls))),
        Contestant("bare httpx", lambda urls: _bare(httpx), spread=True),
    ]
    for name, make in (("bare httpx2", _bare_httpx2), ("httpx-aiohttp", _httpx_aiohttp)):
        module = {"bare httpx2": "httpx2", "httpx-aiohttp": "httpx_aiohttp"}[name]
        try:
            importlib.import_module(module)
        except ImportError:
            print(f"  ({name}: not installed)")
        else:
            found.append(Contestant(name, make, spread=True))
    return found


def _bare_httpx2(urls: Sequence[str]) -> Any:
    return _bare(importlib.import_module("httpx2"))


def _httpx_aiohttp(urls: Sequence[str]) -> Any:
    transport = importlib.import_module("httpx_aiohttp").AiohttpTransport
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S)
    return httpx.AsyncClient(transport=transport(limits=limits), timeout=600.0)


async def _measure(
    contestant: Contestant,
    urls: Sequence[str],
    bodies: Sequence[bytes],
    in_flight: int,
    calls: int,
    path: str,
) -> float:
    """CPU microseconds a call; before it as many calls that do not count, for open connections and warm tables."""
    numbers = count()
    headers = {"content-type": "application/json"}
    streaming = b'"stream":true' in bodies[0]

    async def work(client: Any, last: int) -> None:
        while (number := next(numbers)) < last:
            body = bodies[number % len(bodies)]
            url = (urls[number % len(urls)] if contestant.spread else "") + path
            if streaming:
                async with client.stream("POST", url, content=body, headers=headers) as response:
                    async for _ in response.aiter_bytes():
                        pass
            else:
                response = await client.post(url, content=body, headers=headers)
            if response.status_code != 200:
                raise RuntimeError(f"{contestant.name}: {response.status_code}")

    async def run(client: Any, last: int) -> None:
        async with asyncio.TaskGroup() as workers:
            for _ in range(in_flight):
                workers.create_task(work(client, last))

    async with contestant.make(urls) as client:
        await run(client, calls)
        numbers = count()
        gc.collect()
        began = time.process_time()
        await run(client, calls)
        return (time.process_time() - began) / calls * 1e6


def _try(contestant: Contestant, *run: Any) -> float | None:
    """As ``_measure``; None where a contestant other than ours and its wire fails calls (bare httpx does at 500)."""
    try:
        return asyncio.run(_measure(contestant, *run))
    except ExceptionGroup as failures:
        expected = failures.subgroup(httpx.TransportError)
        if not contestant.spread or expected is None or len(expected.exceptions) < len(failures.exceptions):
            raise
        return None


def _cell(ours: Sequence[float | None], theirs: Sequence[float | None]) -> str:
    """Their median, and the median of the ratios within each alternation: a machine is as fast for both then."""
    done = [each for each in theirs if each is not None]
    if not done:
        return f"{'failed':>24}"
    ratio = median(mine / other for mine, other in zip(ours, theirs, strict=True) if mine and other)
    failed = f"{len(theirs) - len(done)} failed, " if len(done) < len(theirs) else ""
    return f"{failed}{median(done):.0f} (x{ratio:5.2f})".rjust(24)


def main() -> None:
    """Print medians, and ratios to ours."""
    print("cost: CPU us a call in the client, medians over alternations, 8 replicas, 32 KB prompts")
    field = contestants()
    print(f"  {'':24}" + "".join(f"{each.name:>24}" for each in field))
    with replicas() as urls:
        for streaming in (False, True):
            bodies = conversations(256, 32 * 1024, stream=streaming)
            for in_flight in CALLS:
                calls = (STREAM_CALLS if streaming else CALLS)[in_flight]
                delay_ms = (STREAM_DELAY_MS if streaming else DELAY_MS)[in_flight]
                path = f"/{delay_ms}/v1/chat/completions"
                times: dict[str, list[float | None]] = {each.name: [] for each in field}
                for _ in range(ALTERNATIONS[in_flight]):
                    for each in field:
                        times[each.name].append(_try(each, urls, bodies, in_flight, calls, path))
                label = f"{'streaming' if streaming else 'whole'}, {in_flight} in flight"
                cells = (_cell(times["ours"], times[each.name]) for each in field)
                print(f"  {label:24}" + "".join(cells), flush=True)
    print(
        "  in brackets: ours / theirs, side by side. Targets: same wire at most x1.35; bare httpx at 64 at most x0.50"
    )
    print("  whole, x0.77 streaming, at 1 at most x1.25")
