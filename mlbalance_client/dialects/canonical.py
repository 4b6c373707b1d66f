"""Canonical bytes: the prompt in the order in which engines prefill it, alike for all clients.

A part is ``<header> LF <text> LF`` in UTF-8. The rules, byte by byte, are in docs/dialects.md and binding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from xxhash import xxh3_64_hexdigest

from .base import Reading
from .fields import Fields, Unreadable, text
from .sizes import tokens_of

# Where engines take an adapter from the body: SGLang, llama.cpp, TGI. The others name it in "model".
_ADAPTER_FIELDS = ("lora_path", "lora", "adapter_id")
_TEXT_FIELDS = ("text", "refusal", "thinking")
_PAYLOAD_FIELDS = (
    "url", "data", "image_url", "input_audio", "audio_url", "video_url", "source", "file", "file_data", "file_url",
    "file_id",
)  # fmt: skip


def canonical_json(value: object) -> str:
    """Sorted keys, no spaces, characters as they are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def encoded(string: str) -> bytes:
    """UTF-8; a lone surrogate, which JSON can carry, as three bytes."""
    return string.encode("utf-8", "surrogatepass")


def without_marks(part: Fields) -> Fields:
    """An object without its cache mark, which wanders from turn to turn and is not prefilled."""
    return {name: value for name, value in part.items() if name != "cache_control"}


class Canonical:
    """Collects the parts of one prompt in order, and counts what of them becomes tokens."""

    __slots__ = ("_model", "_pieces", "extra_tokens", "text_bytes")

    def __init__(self, body: Fields, model: str | None = None) -> None:
        """Begin with the model (the body's, unless given), the adapter and the cache salt."""
        self._pieces: list[bytes] = []
        self.text_bytes = 0
        self.extra_tokens = 0
        self._model = model or text(body.get("model"))
        self._head("model", self._model)
        self._head("adapter", next((body[name] for name in _ADAPTER_FIELDS if body.get(name)), None))
        self._head("cache_salt", body.get("cache_salt"))

    def reading(
        self,
        dialect: str,
        *,
        output_limit: int | None = None,
        streaming: bool = False,
        replayable: bool = True,
        session: str | None = None,
    ) -> Reading:
        """The reading of a request with the parts so far."""
        return Reading(
            dialect, self._model, b"".join(self._pieces), self.text_bytes, self.extra_tokens,
            output_limit, streaming, replayable, session,
        )  # fmt: skip

    def text(self, header: str, string: str) -> None:
        """A part of text."""
        self._pieces += (encoded(header), b"\n")
        self._line(string)

    def structure(self, header: str, value: object) -> None:
        """A part that is structure, if there is any."""
        if value not in (None, "", [], {}):
            self.text(header, canonical_json(value))

    def token_ids(self, header: str, ids: Sequence[int]) -> None:
        """A part that is token ids already: their number needs no estimate. Raises Unreadable."""
        if not all(type(id_) is int for id_ in ids):
            raise Unreadable(f"{header} is neither text nor token ids")
        self._pieces += (encoded(header), b"\n", canonical_json(ids).encode("ascii"), b"\n")
        self.extra_tokens += len(ids)

    def message(self, role: object, content: object) -> None:
        """A message: its role, then its content, which is text, a list of parts, or nothing. Raises Unreadable."""
        if not isinstance(role, str):
            raise Unreadable("a message has no role")
        self._pieces += (encoded(role), b"\n")
        if isinstance(content, str):
            self._line(content)
        elif isinstance(content, list):
            for part in content:
                self._part(part)
        elif content is not None:
            raise Unreadable("a message's content is neither text nor a list")

    def hashed(self, kind: str, payload: bytes) -> None:
        """A part of other matter, by its hash."""
        self._pieces += (encoded(kind), b"\n", xxh3_64_hexdigest(payload).encode("ascii"), b"\n")

    def _head(self, header: str, value: Any) -> None:
        if value is not None and value != "":
            string = value if isinstance(value, str) else canonical_json(value)
            self._pieces += (encoded(header), b"\n", encoded(string), b"\n")

    def _line(self, string: str) -> None:
        line = encoded(string)
        self.text_bytes += len(line)
        self._pieces += (line, b"\n")

    def _part(self, part: object) -> None:
        if isinstance(part, str):
            self._line(part)
            return
        if not isinstance(part, dict):
            raise Unreadable("a part of a message is neither text nor an object")
        for field in _TEXT_FIELDS:
            string = part.get(field)
            if isinstance(string, str):
                self._line(string)
                return
        kind = text(part.get("type"))
        if kind is None:
            raise Unreadable("a part of a message has no type")
        self._other_part(kind, without_marks(part))

    def _other_part(self, kind: str, part: Fields) -> None:
        if "content" in part:
            self.message(kind, part["content"])
            self.structure("tool_use_id", part.get("tool_use_id"))
        elif kind.endswith("tool_use"):
            self.structure(kind, part)
        else:
            payload = _payload(part)
            self.extra_tokens += tokens_of(kind, payload or "", _detail(part))
            self.hashed(kind, encoded(canonical_json(part) if payload is None else payload))


def _payload(part: Fields) -> str | None:
    """The URL, base64 text or file id that a part is about, in the part itself or one level down at a time."""
    for name in _PAYLOAD_FIELDS:
        inner = part.get(name)
        if isinstance(inner, dict):
            inner = _payload(inner)
        if isinstance(inner, str):
            return inner
    return None


def _detail(part: Fields) -> object:
    inner = part.get("image_url")
    return inner.get("detail") if isinstance(inner, dict) else part.get("detail")
