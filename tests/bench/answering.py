"""Eight replicas that answer at once and think nothing, in a process of their own: what is measured is the client.

As a program: ``python -m tests.bench.answering`` prints its ports, and ends when its standard input does.
A request's path says how it is answered: ``/{delay_ms}/v1/chat/completions``; bodies with ``"stream":true`` get
events, ``delay_ms`` apart. All else is not there: they tell nothing of their load.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

EVENTS = 20
_WHOLE = (
    b'{"id":"b","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":'
    b'"assistant","content":"' + b"word " * 30 + b'"},"finish_reason":"stop"}],"usage":{"prompt_tokens":8000,'
    b'"completion_tokens":30,"total_tokens":8030,"prompt_tokens_details":{"cached_tokens":4096}}}'
)
_EVENT = (
    b'data: {"id":"b","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
    b'{"content":"word "},"logprobs":null,"finish_reason":null}]}\n\n'
)
_LAST = b"data: [DONE]\n\n"


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


_ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_WHOLE) + _WHOLE
)
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
_NOT_THERE = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"
_CHUNK, _END = _chunked(_EVENT), _chunked(_LAST) + b"0\r\n\r\n"


class _Answering(asyncio.Protocol):
    def __init__(self) -> None:
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, found, body = self._received.partition(b"\r\n\r\n")
        if not found:
            return
        if not head.startswith(b"POST "):
            self._received = b""
            self._transport.write(_NOT_THERE)
            return
        lower = head.lower()
        length = int(lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(body) < length:
            return
        self._received = b""
        delay_s = int(head.split(b"/", 2)[1]) / 1000
        loop = asyncio.get_running_loop()
        if b'"stream":true' in body:
            self._transport.write(_HEAD)
            loop.call_later(delay_s, self._event, delay_s, 1)
        elif delay_s:
            loop.call_later(delay_s, self._transport.write, _ANSWER)
        else:
            self._transport.write(_ANSWER)

    def _event(self, delay_s: float, number: int) -> None:
        if self._transport.is_closing():
            return
        if number > EVENTS:
            self._transport.write(_END)
            return
        self._transport.write(_CHUNK)
        asyncio.get_running_loop().call_later(delay_s, self._event, delay_s, number + 1)


async def _serve(replicas: int) -> None:
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(_Answering, "127.0.0.1", 0, backlog=1024) for _ in range(replicas)]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


@contextmanager
def replicas() -> Iterator[list[str]]:
    """The URLs of eight replicas that run while the block does."""
    command = [sys.executable, "-m", __name__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        ports = process.stdout.readline().split()
        yield [f"http://127.0.0.1:{port}" for port in ports]
        process.communicate()


if __name__ == "__main__":
    asyncio.run(_serve(8))
