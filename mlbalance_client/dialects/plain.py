"""Anything else: placed by its bytes, or read by a caller's own function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .base import AnswerWatch, Dialect, Reading
from .canonical import Canonical
from .watches import watch_for


def read_bytes(body: bytes, *, replayable: bool = False) -> Reading:
    """A body whose form is unknown. What it would do twice is unknown too, so nothing is replayed unasked."""
    return Reading("bytes", prompt=body, prompt_bytes=len(body), replayable=replayable)


class BytesDialect:
    """A body of unknown form: its bytes are the prompt, the answer's head is the commit point.

    ``idempotent``: for methods that may be repeated whatever the body (RFC 9110, section 9.2.2).
    """

    name = "bytes"

    def __init__(self, *, idempotent: bool = False) -> None:
        self._idempotent = idempotent

    def matches(self, method: str, path: str) -> bool:
        """Always."""
        return True

    def read(self, path: str, body: bytes) -> Reading:
        """The body's bytes."""
        return read_bytes(body, replayable=self._idempotent)

    def watch(self, status: int, content_type: str) -> AnswerWatch:
        """Nothing is read from the answer."""
        return watch_for(None, content_type)


class FunctionDialect:
    """A caller's own reading of bodies under paths that end with ``suffix``.

    ``read``: body to Reading; what it raises reaches the caller. ``answers``: the dialect whose answers these are
    like (``find("POST", "/chat/completions")``, say); without one the head is the commit point.
    """

    def __init__(
        self, name: str, suffix: str, read: Callable[[bytes], Reading], *, answers: Dialect | None = None
    ) -> None:
        self.name = name
        self._suffix = suffix
        self._read = read
        self._answers = answers or BytesDialect()

    def matches(self, method: str, path: str) -> bool:
        """By the path's end."""
        return path.endswith(self._suffix)

    def read(self, path: str, body: bytes) -> Reading:
        """What the caller's function says."""
        return self._read(body)

    def watch(self, status: int, content_type: str) -> AnswerWatch:
        """A watch of the dialect that the answers are like."""
        return self._answers.watch(status, content_type)


class Described(Protocol):
    """A call that is described rather than sent."""

    @property
    def prompt(self) -> str | bytes: ...
    @property
    def model(self) -> str | None: ...
    @property
    def max_output_tokens(self) -> int | None: ...
    @property
    def streaming(self) -> bool: ...


def reading_of(call: Described) -> Reading:
    """The reading of a described call; its canonical bytes are those of a completion with this prompt."""
    prompt = call.prompt
    string = prompt if isinstance(prompt, str) else prompt.decode("utf-8", "surrogateescape")
    canonical = Canonical({}, call.model)
    if string:
        canonical.text("prompt", string)
    return canonical.reading("call", output_limit=call.max_output_tokens, streaming=call.streaming)
