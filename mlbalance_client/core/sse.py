"""Server-sent events: forwards while they arrive in pieces, backwards from the end of a stream.

The format: HTML Living Standard, section 9.2.6. Beyond it, ``error:`` lines, which older llama.cpp servers send.
"""

from __future__ import annotations

from collections.abc import Iterator

DONE = b"[DONE]"


class EventReader:
    """Turns chunks, cut anywhere, into events: (kind, data). LF, CRLF and CR end lines. ``last_id``: the newest."""

    __slots__ = ("_after_cr", "_data", "_kind", "_rest", "last_id")

    def __init__(self) -> None:
        self.last_id: str | None = None
        self._rest = bytearray()
        self._after_cr = False
        self._kind = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[tuple[str, bytes]]:
        """The events that ``chunk`` completes."""
        if self._after_cr and chunk:
            chunk = chunk.removeprefix(b"\n")
            self._after_cr = False
        if b"\r" in chunk:
            self._after_cr = chunk.endswith(b"\r")
            chunk = _normal(chunk)
        lines = chunk.split(b"\n")
        rest = lines.pop()
        if lines and self._rest:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        self._rest += rest
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                kind, data = self._kind, b"\n".join(self._data)
                self._kind, self._data = "", []
                yield kind, data
            else:
                self._kind = ""

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value.decode("utf-8", "replace")
        elif name == b"id":
            self.last_id = value.decode("utf-8", "replace")
        elif name == b"error":
            self._kind = "error"
            self._data.append(value)


def last_events(stream: bytes) -> Iterator[tuple[str, bytes]]:
    """The events at the end of a stream, the last one first; it need not be closed by an empty line."""
    if b"\r" in stream:
        stream = _normal(stream)
    end = len(stream)
    while end >= 0:
        before = stream.rfind(b"\n\n", 0, end)
        if block := stream[before + 2 if before >= 0 else 0 : end]:
            yield from EventReader().feed(block + b"\n\n")
        end = before


def last_event_start(stream: bytes) -> int:
    """Where the last event begins, or 0 if no earlier event ends in ``stream``."""
    end = len(stream) - len("\r\n\r\n")
    start = stream.rfind(b"\n\n", 0, end)
    return max(start if start >= 0 else stream.rfind(b"\r\n\r\n", 0, end), 0)


def _normal(stream: bytes) -> bytes:
    return stream.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
