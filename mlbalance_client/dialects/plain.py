"""Anything else: placed by its bytes, or read by a caller's own function."""

from __future__ import annotations

from collections.abc import Callable

from mlbalance_client.calls import Call

from .base import AnswerWatch, Reading
from .watches import WholeWatch


class BytesDialect:
    """A body of unknown form: its bytes are the prompt, its first answered byte the commit point."""

    name = "bytes"

    def matches(self, method: str, path: str) -> bool:
        """Always."""
        return True

    def read(self, path: str, body: bytes) -> Reading:
        """The body's bytes."""
        return Reading(self.name, prompt=body, prompt_bytes=len(body), token_work=False)

    def watch(self, reading: Reading, status: int, content_type: str) -> AnswerWatch:
        """Nothing is read from the answer."""
        return WholeWatch(None)


class FunctionDialect(BytesDialect):
    """A caller's own reading of bodies under paths that end with ``suffix``."""

    def __init__(self, name: str, suffix: str, read: Callable[[bytes], Reading]) -> None:
        self.name = name
        self._suffix = suffix
        self._read = read

    def matches(self, method: str, path: str) -> bool:
        """By the path's end."""
        return path.endswith(self._suffix)

    def read(self, path: str, body: bytes) -> Reading:
        """What the caller's function says."""
        return self._read(body)


def reading_of(call: Call) -> Reading:
    """The reading of a call that is described rather than sent."""
    text = call.prompt.encode("utf-8", "surrogatepass") if isinstance(call.prompt, str) else call.prompt
    head = b"" if call.model is None else b"model\n" + call.model.encode("utf-8", "surrogatepass") + b"\n"
    return Reading(
        "call",
        model=call.model,
        prompt=head + b"prompt\n" + text + b"\n" if text else b"",
        prompt_bytes=len(text),
        output_limit=call.max_output_tokens,
        streaming=call.streaming,
    )
