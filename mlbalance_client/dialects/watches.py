"""Watching answers go by: whole JSON bodies and streams of server-sent events."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

from pydantic_core import from_json

from mlbalance_client.core.model import Usage

from .base import Ending, InBandError, Sign

COMMIT_BYTES = 64 * 1024
_TAIL_BYTES = 16 * 1024
_BODY_BYTES = 256 * 1024

UsageOf = Callable[[dict[str, Any]], Usage | None]
Classify = Callable[[str, dict[str, Any]], Sign]
Finished = Callable[[dict[str, Any]], bool]


def parse(data: bytes) -> dict[str, Any]:
    """A JSON object, or an empty one if it is none."""
    try:
        value = from_json(data)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def error_in(event: dict[str, Any]) -> InBandError | None:
    """The error that a JSON object of an engine carries, in any of the shapes that engines give it."""
    error = event.get("error")
    if error is None and event.get("type") == "response.failed":
        response = event.get("response")
        error = response.get("error") if isinstance(response, dict) else event
    if error is None and (event.get("type") == "error" or event.get("object") == "error"):
        error = event
    if not error:
        return None
    if not isinstance(error, dict):
        return InBandError(_status(event.get("code")), str(error))
    kind = str(error.get("type") or error.get("code") or "")
    status = 529 if kind == "overloaded_error" else _status(error.get("code"))
    return InBandError(status, str(error.get("message") or kind or error))


def _status(code: Any) -> int:
    try:
        status = int(code)
    except (TypeError, ValueError):
        return 500
    return status if 400 <= status <= 599 else 500


class WholeWatch:
    """An answer that comes in one piece: committed at its first byte, parsed at its end."""

    def __init__(self, usage_of: UsageOf | None) -> None:
        self.error: InBandError | None = None
        self._usage_of = usage_of
        self._chunks: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Sign:
        """The first byte is the commit point."""
        self.passed(chunk)
        return Sign.CONTENT

    def passed(self, chunk: bytes) -> None:
        """Keep the body by reference, up to 256 KiB."""
        self._size += len(chunk)
        if self._usage_of is not None and self._size <= _BODY_BYTES:
            self._chunks.append(chunk)

    def end(self) -> Ending:
        """Usage figures, if the body was kept and has any."""
        if self._usage_of is None or self._size > _BODY_BYTES:
            return Ending(None, None, complete=True)
        body = parse(b"".join(self._chunks))
        return Ending(self._usage_of(body), error_in(body), complete=bool(body))


class EventWatch:
    """A stream of server-sent events."""

    def __init__(self, classify: Classify, usage_of: UsageOf, finished: Finished) -> None:
        self.error: InBandError | None = None
        self._classify = classify
        self._usage_of = usage_of
        self._finished = finished
        self._pending = b""
        self._fed = 0
        self._usage: Usage | None = None
        self._tail: deque[bytes] = deque()
        self._tail_size = 0

    def feed(self, chunk: bytes) -> Sign:
        """Look at whole events until one is content or an error, or too much has come."""
        self.passed(chunk)
        self._fed += len(chunk)
        self._pending += chunk
        events, self._pending = _split(self._pending)
        for name, data in events:
            event = parse(data)
            self._note_usage(event)
            if (error := error_in(event)) is not None:
                self.error = error
                return Sign.ERROR
            if self._classify(name, event) is not Sign.PREAMBLE:
                return Sign.CONTENT
        return Sign.CONTENT if self._fed >= COMMIT_BYTES else Sign.PREAMBLE

    def passed(self, chunk: bytes) -> None:
        """Keep the last 16 KiB by reference."""
        tail = self._tail
        tail.append(chunk)
        self._tail_size += len(chunk)
        while self._tail_size - len(tail[0]) >= _TAIL_BYTES:
            self._tail_size -= len(tail.popleft())

    def end(self) -> Ending:
        """Read the kept tail: usage, an error at the very end, the mark of completeness."""
        events, rest = _split(b"".join(self._tail))
        error, complete = self.error, False
        for _, data in [*events, *_unended(rest)]:
            if data == b"[DONE]":
                complete = complete or error is None
                continue
            event = parse(data)
            self._note_usage(event)
            error = error_in(event) or error
            complete = complete or self._finished(event)
        return Ending(self._usage, error, complete and error is None)

    def _note_usage(self, event: dict[str, Any]) -> None:
        usage = self._usage_of(event) if event else None
        if usage is not None:
            self._usage = usage if self._usage is None else _merged(self._usage, usage)


def _merged(before: Usage, after: Usage) -> Usage:
    return Usage(
        before.prompt_tokens if after.prompt_tokens is None else after.prompt_tokens,
        before.cached_tokens if after.cached_tokens is None else after.cached_tokens,
        before.output_tokens if after.output_tokens is None else after.output_tokens,
    )


def _split(buffer: bytes) -> tuple[list[tuple[str, bytes]], bytes]:
    """The whole events (name, data) in a buffer, and what is left. LF, CRLF and CR end lines."""
    if b"\r" in buffer:
        held_back = b"\r" if buffer.endswith(b"\r") else b""
        buffer = buffer.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n") + held_back
    *blocks, rest = buffer.split(b"\n\n")
    return [event for block in blocks for event in _unended(block)], rest


def _unended(block: bytes) -> Iterator[tuple[str, bytes]]:
    name, data = "", []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.strip().decode("utf-8", "replace")
    if data:
        yield name, b"\n".join(data)
