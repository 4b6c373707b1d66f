"""What vLLM's own pages say of its KV cache, asked inside the process: no socket, once."""

from __future__ import annotations

import re
import sys

import anyio

from .asgi import App, Message, Scope

_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_MOST_BYTES = 4 * 1024 * 1024
_WITHIN_S = 5.0
_NO_BODY: Message = {"type": "http.request", "body": b"", "more_body": False}


async def kv_tokens(app: App, scope: Scope) -> int | None:
    """Tokens that the KV caches of the engines behind ``app`` hold, if it is vLLM and says so.

    ``scope``: of any request that has come.
    """
    if "vllm" not in sys.modules:
        return None
    return read(await _page(app, scope, "/metrics"))


def read(page: str) -> int | None:
    """The sum over engines (data-parallel ranks) on a metrics page."""
    total = 0
    for found in _INFO.finditer(page):
        labels = dict(_LABEL.findall(found[1]))
        try:
            total += int(labels["block_size"]) * int(labels["num_gpu_blocks"])
        except (KeyError, ValueError):
            continue
    return total or None


async def _page(app: App, scope: Scope, path: str) -> str:
    pieces: list[bytes] = []

    sent, asks = anyio.Event(), iter([_NO_BODY])

    async def receive() -> Message:
        if (body := next(asks, None)) is not None:
            return body
        await sent.wait()  # who sends a stream waits here for its client to go
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            if sum(map(len, pieces)) < _MOST_BYTES:
                pieces.append(message.get("body", b""))
            if not message.get("more_body"):
                sent.set()

    path = scope.get("root_path", "") + path
    asked = {
        **scope,
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [],
    }
    try:
        with anyio.move_on_after(_WITHIN_S):
            await app(asked, receive, send)
    except Exception:
        return ""  # a page that fails tells nothing
    return b"".join(pieces).decode("utf-8", "replace")
