"""The omniscient router over HTTP, real or virtual: it asks every replica for the truth and knows faults at once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol, Self

import anyio
import httpcore

from .apis import CHAT
from .http_replay import PATH
from .spec import Job
from .traces import TraceCall, job_of_text

_HEADERS = [("content-type", "application/json")]
_AGAIN_S = 0.25


class Quotes(Protocol):
    """Asks a replica for its true score of a job, in seconds; None if it does not serve calls now."""

    async def __call__(self, number: int, job: Job) -> float | None: ...


class Judge:
    """Sends calls where the omniscient router would. A call that has seen no content when its replica fails goes on."""

    def __init__(
        self,
        urls: Sequence[str],
        quotes: Quotes | None = None,
        *,
        network: httpcore.AsyncNetworkBackend | None = None,
        sees_cold: bool = True,
    ) -> None:
        self._urls = urls
        self._quotes = quotes or self._asked
        self._sees_cold = sees_cold
        self._stack = AsyncExitStack()
        self._pools = [
            httpcore.AsyncConnectionPool(max_connections=None, network_backend=network, keepalive_expiry=4.0)
            for _ in urls
        ]

    async def __aenter__(self) -> Self:
        for pool in self._pools:
            await self._stack.enter_async_context(pool)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    @asynccontextmanager
    async def send(self, call: TraceCall, body: bytes) -> AsyncIterator[AsyncIterator[bytes]]:
        """One call, as a Sender of the replay."""
        ask = CHAT.ask(json.loads(body))
        job = job_of_text(ask.text, ask.output_tokens, "quote")
        while True:
            async with AsyncExitStack() as stack:
                try:
                    number = await self._best(job)
                    if number is None:
                        await anyio.sleep(_AGAIN_S)
                        continue
                    url = self._urls[number] + PATH
                    response = await stack.enter_async_context(
                        self._pools[number].stream("POST", url, headers=_HEADERS, content=body)
                    )
                    chunks = aiter(response.aiter_stream())
                    first = await anext(chunks)
                    if response.status >= 400:
                        continue
                except (httpcore.NetworkError, httpcore.ProtocolError, StopAsyncIteration):
                    continue
                yield _joined(first, chunks)
                return

    async def _best(self, job: Job) -> int | None:
        scores: dict[int, float] = {}

        async def ask(number: int) -> None:
            score = await self._quotes(number, job)
            if score is not None:
                scores[number] = score

        async with anyio.create_task_group() as tasks:
            for number in range(len(self._urls)):
                tasks.start_soon(ask, number)
        return min(scores, key=scores.__getitem__, default=None)

    async def _asked(self, number: int, job: Job) -> float | None:
        question = {
            "blocks": job.blocks,
            "block_tokens": job.block_tokens,
            "prompt_tokens": job.prompt_tokens,
            "sees_cold": self._sees_cold,
        }
        try:
            answer = await self._pools[number].request(
                "POST", f"{self._urls[number]}/_sim/quote", content=json.dumps(question).encode()
            )
            found: Mapping[str, float | None] = json.loads(answer.content)
        except (httpcore.NetworkError, httpcore.ProtocolError, ValueError):
            return None
        return found["score_s"]


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk
