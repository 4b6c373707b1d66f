"""What dialects with JSON requests have in common."""

from __future__ import annotations

from collections.abc import Callable

from .base import AnswerWatch, ModelCheck, Reading
from .fields import Fields, Unreadable, parse, written
from .plain import read_bytes
from .watches import AnswerForm, watch_for


class JsonDialect:
    """One endpoint, known by the end of its path. ``read``: fields to reading; may raise Unreadable.

    ``least``: the fields of the smallest call, but for its model, and about how many tokens it costs.
    """

    __slots__ = ("_form", "_least", "_read", "_suffix", "name")

    def __init__(
        self,
        name: str,
        suffix: str,
        read: Callable[[Fields], Reading],
        form: AnswerForm,
        least: tuple[Fields, int],
    ) -> None:
        self.name = name
        self._suffix = suffix
        self._read = read
        self._form = form
        self._least = least

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

    def model_check(self, path: str, model: str | None) -> ModelCheck:
        """The smallest call."""
        fields, tokens = self._least
        named = {} if model is None else {"model": model}
        return ModelCheck("POST", path, written(named | fields), tokens)
