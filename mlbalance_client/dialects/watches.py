"""Watching answers go by: whole bodies, and streams of server-sent events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mlbalance_client.core.model import Usage
from mlbalance_client.core.sse import DONE, EventReader, last_event_start, last_events

from .base import AnswerWatch, Ending, InBandError, Sign
from .fields import Fields, parse
from .inband import error_in

COMMIT_BYTES = 64 * 1024
_TAIL_BYTES = 8 * 1024
_KEPT_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class AnswerForm:
    """How a dialect's answers are read. An event is its kind (the ``event:`` line, or empty) and its JSON object.

    sign:    whether an event that is no error is preamble or content
    figures: the usage figures in an event or a whole body, as they stand there; later ones replace earlier ones
    usage:   what the figures of a whole answer say
    ends:    whether an event is the mark of a whole answer (``[DONE]`` always is)
    """

    sign: Callable[[str, Fields], Sign]
    figures: Callable[[Fields], Fields]
    usage: Callable[[Fields], Usage | None]
    ends: Callable[[str, Fields], bool]


def watch_for(form: AnswerForm | None, content_type: str) -> AnswerWatch:
    """The watch for an answer of this content type; ``form``: None if nothing is to be read from answers."""
    if form is None:
        return BlindWatch()
    kind = _media_type(content_type)
    if kind == "text/event-stream":
        return EventWatch(form)
    return BodyWatch(form, has_mark=kind == "application/json")


@lru_cache(maxsize=64)
def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


class BlindWatch:
    """An answer of unknown form: committed at its head, whole when HTTP says so."""

    __slots__ = ("error", "has_mark")
    commits_at_head = True

    def __init__(self) -> None:
        self.error: InBandError | None = None
        self.has_mark = False

    def feed(self, chunk: bytes) -> Sign:
        """Anything is content."""
        return Sign.CONTENT

    def passed(self, chunk: bytes) -> None:
        """Of no interest."""

    def end(self) -> Ending:
        """Nothing is known but that it has ended."""
        return Ending(None, None, complete=True)


class BodyWatch:
    """An answer in one piece: committed at its first bytes, kept by reference up to 256 KiB, parsed at its end."""

    __slots__ = ("_chunks", "_form", "_last", "_size", "error", "has_mark")
    commits_at_head = False

    def __init__(self, form: AnswerForm, *, has_mark: bool = True) -> None:
        self.error: InBandError | None = None
        self.has_mark = has_mark
        self._form = form
        self._chunks: list[bytes] = []
        self._size = 0
        self._last = b""

    def feed(self, chunk: bytes) -> Sign:
        """The first bytes are the commit point."""
        self.passed(chunk)
        return Sign.CONTENT

    def passed(self, chunk: bytes) -> None:
        """Keep the chunk, while there is room."""
        self._size += len(chunk)
        if self._size <= _KEPT_BYTES:
            self._chunks.append(chunk)
        else:
            self._chunks.clear()
            self._last = (self._last + chunk[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def end(self) -> Ending:
        """A body too large to keep is whole if it ends as JSON does."""
        if self._size > _KEPT_BYTES:
            return Ending(None, None, complete=self._last.rstrip().endswith(b"}"))
        body = parse(b"".join(self._chunks))
        self.error = error_in("", body)
        usage = self._form.usage(self._form.figures(body))
        return Ending(usage, self.error, complete=bool(body) and self.error is None)


class EventWatch:
    """A stream of server-sent events: read up to the commit point, then only its end is kept."""

    __slots__ = ("_events", "_fed", "_figures", "_form", "_room", "_tail", "error", "has_mark")
    commits_at_head = False

    def __init__(self, form: AnswerForm) -> None:
        self.error: InBandError | None = None
        self.has_mark = True
        self._form = form
        self._events = EventReader()
        self._fed = 0
        self._figures: Fields = {}
        self._tail: list[bytes] = []
        self._room = 2 * _TAIL_BYTES

    def feed(self, chunk: bytes) -> Sign:
        """Look at whole events until one is content or an error, or 64 KiB have come."""
        self.passed(chunk)
        self._fed += len(chunk)
        for kind, data in self._events.feed(chunk):
            if data == DONE:
                continue
            event = parse(data)
            if (error := error_in(kind, event)) is not None:
                self.error = error
                return Sign.ERROR
            self._figures |= self._form.figures(event)
            if self._form.sign(kind, event) is Sign.CONTENT:
                return Sign.CONTENT
        return Sign.CONTENT if self._fed >= COMMIT_BYTES else Sign.PREAMBLE

    def passed(self, chunk: bytes) -> None:
        """Keep the end of the stream."""
        self._tail.append(chunk)
        self._room -= len(chunk)
        if self._room < 0:
            self._trim()

    def _trim(self) -> None:
        # A closing event may repeat the whole answer (OpenAI's responses): never cut into the last one.
        tail = b"".join(self._tail)
        cut = len(tail) - _TAIL_BYTES
        start = last_event_start(tail)
        if len(tail) - start <= _KEPT_BYTES:
            cut = min(cut, start)
        self._tail[:] = (tail[cut:],)
        self._room = _TAIL_BYTES

    def end(self) -> Ending:
        """Read backwards to the last content: errors, usage and the mark of completeness come after or with it."""
        form, complete, figures = self._form, False, self._figures
        last: Fields = {}
        for kind, data in last_events(b"".join(self._tail)):
            if data == DONE:
                complete = True
                continue
            event = parse(data)
            if (error := error_in(kind, event)) is not None:
                self.error = self.error or error
                continue
            last = form.figures(event) | last
            complete = complete or form.ends(kind, event)
            if form.sign(kind, event) is Sign.CONTENT:
                break
        return Ending(form.usage(figures | last), self.error, complete and self.error is None)
