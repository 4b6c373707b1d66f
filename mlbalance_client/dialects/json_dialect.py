"""What dialects with JSON requests have in common."""

from __future__ import annotations

from collections.abc import Callable

from .base import AnswerWatch, Reading
from .fields import Fields, Unreadable, parse
from .plain import read_bytes
from .watches import AnswerForm, watch_for


class JsonDialect:
    """One endpoint, known by the end of its path. ``read``: fields to reading; may raise Unreadable."""

    __slots__ = ("_form", "_read", "_suffix", "name")

    def __init__(self, name: str, suffix: str, read: Callable[[Fields], Reading], form: AnswerForm) -> None:
        self.name = name
        self._suffix = suffix
        self._read = read
        self._form = form

    def matches(self, method: str, path: str) -> bool:
        """POST to a path that ends with the endpoint's."""
        return method == "POST" and path.endswith(self._suffix)

    def read(self, path: str, body: bytes) -> Reading:
        """Read a request; a body that is not of the endpoint's form is taken as plain bytes."""
        try:
            return self._read(parse(body))
        except (Unreadable, RecursionError):
            return read_bytes(body)

    def watch(self, status: int, content_type: str) -> AnswerWatch:
        """Server-sent events or one JSON body, as the answer says."""
        return watch_for(self._form, content_type)
