"""Open-loop replay over HTTP by the event loop's clock: calls go out when the trace says, whatever became of others."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import anyio

from .measures import CallRecord
from .traces import Trace, TraceCall, prompt_text

PATH = "/v1/chat/completions"
_CONTENT = b'"content":"tok'
_CACHED = re.compile(rb'"cached_tokens":(\d+)')
_TAIL_BYTES = 1024


class Sender(Protocol):
    """Sends one call; entering gives the answer's bytes as they come."""

    def __call__(self, call: TraceCall, body: bytes) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


def chat_body(call: TraceCall, model: str = "sim") -> bytes:
    """The call as a streamed OpenAI chat request of the recorded size."""
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": prompt_text(call)}],
        "max_tokens": call.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body).encode()


async def replay_http(
    trace: Trace, send: Sender, *, on_progress: Callable[[int, int], object] | None = None
) -> tuple[list[CallRecord], float]:
    """Replay all of ``trace``; on asyncio and trio.

    ``on_progress`` hears (calls sent, calls ended). Returns one record a call and by how many seconds the replay
    itself was late at worst: where that is not small against the times measured, they mean nothing.
    """
    records = [CallRecord(call.index, call.prompt_tokens, call.output_tokens) for call in trace.calls]
    bodies = {call.index: chat_body(call) for call in trace.calls[:1]}
    start = anyio.current_time()
    late_s = 0.0
    sent = ended = 0

    async def one(call: TraceCall, record: CallRecord, body: bytes, due: float) -> None:
        nonlocal ended
        try:
            async with send(call, body) as chunks:
                await _watch(chunks, record, due)
        except Exception as error:
            record.error = f"{type(error).__name__}: {error}"
        ended += 1
        if on_progress is not None:
            on_progress(sent, ended)

    async with anyio.create_task_group() as tasks:
        for call, record in zip(trace.calls, records, strict=True):
            body = bodies.pop(call.index, None) or chat_body(call)
            due = start + call.t_s
            await anyio.sleep(max(0.0, due - anyio.current_time()))
            late_s = max(late_s, anyio.current_time() - due)
            sent += 1
            tasks.start_soon(one, call, record, body, due)
    return records, late_s


async def _watch(chunks: AsyncIterator[bytes], record: CallRecord, due: float) -> None:
    tail = b""
    async for chunk in chunks:
        seen = tail + chunk
        if record.ttft_s is None and _CONTENT in seen:
            record.ttft_s = anyio.current_time() - due
        tail = seen[-_TAIL_BYTES:]
    if record.ttft_s is None:
        record.error = f"no content came: {tail[:200].decode('utf-8', 'replace')}"
        return
    if (error := tail.find(b'data: {"error"')) >= 0:
        record.error = f"broke off: {tail[error : error + 200].decode('utf-8', 'replace')}"
        return
    record.total_s = anyio.current_time() - due
    if found := _CACHED.search(tail):
        record.cached_tokens = int(found[1])
