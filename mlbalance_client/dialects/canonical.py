"""Canonical bytes: the prompt in the order in which engines prefill it, alike for all clients.

A part is ``<header> LF <text> LF`` in UTF-8. The rules, byte by byte, are in docs/dialects.md and binding.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from xxhash import xxh3_64_hexdigest

_ADAPTER_FIELDS = ("adapter", "lora", "lora_name")
_TOKENS_LOW_DETAIL = 85
_BASE64_BYTES_PER_TOKEN = 400
_TOKENS_IMAGE_URL = 765
_SURROGATES = "surrogatepass"


def canonical_json(value: Any) -> str:
    """Sorted keys, no spaces, characters as they are."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class Canonical:
    """Collects the parts of one prompt, and counts what of them becomes tokens."""

    __slots__ = ("_pieces", "extra_tokens", "text_bytes")

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._pieces: list[bytes] = []
        self.text_bytes = 0
        self.extra_tokens = 0
        self._head("model", body.get("model"))
        self._head("adapter", next((body[name] for name in _ADAPTER_FIELDS if body.get(name)), None))
        self._head("cache_salt", body.get("cache_salt"))

    def data(self) -> bytes:
        """All parts so far."""
        return b"".join(self._pieces)

    def text(self, header: str, text: str) -> None:
        """A part of text."""
        encoded = text.encode("utf-8", _SURROGATES)
        self.text_bytes += len(encoded)
        self._pieces += (header.encode("utf-8", _SURROGATES), b"\n", encoded, b"\n")

    def json(self, header: str, value: Any) -> None:
        """A part that is structure, if there is any."""
        if value:
            self.text(header, canonical_json(value))

    def message(self, role: str, content: Any) -> None:
        """A message: its role, then its content, which is text, a list of parts, or nothing."""
        if isinstance(content, str):
            self.text(role, content)
            return
        self._pieces += (role.encode("utf-8", _SURROGATES), b"\n")
        if isinstance(content, list):
            for part in content:
                self._part(part)
        elif content is not None:
            self._plain(canonical_json(content))

    def _head(self, header: str, value: Any) -> None:
        if value is not None and value != "":
            text = value if isinstance(value, str) else canonical_json(value)
            self._pieces += (header.encode(), b"\n", text.encode("utf-8", _SURROGATES), b"\n")

    def _plain(self, text: str) -> None:
        encoded = text.encode("utf-8", _SURROGATES)
        self.text_bytes += len(encoded)
        self._pieces += (encoded, b"\n")

    def _part(self, part: Any) -> None:
        if isinstance(part, str):
            self._plain(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            self._plain(part["text"])
        elif isinstance(part, Mapping) and isinstance(part.get("type"), str):
            data = _payload(part)
            self.extra_tokens += _size(part, data)
            digest = xxh3_64_hexdigest(data.encode("utf-8", _SURROGATES))
            self._pieces += (part["type"].encode("utf-8", _SURROGATES), b"\n", digest.encode(), b"\n")
        else:
            self._plain(canonical_json(part))


def _payload(part: Mapping[str, Any]) -> str:
    """The bytes that a part stands for: its URL or base64 text, else the whole part."""
    for name in ("image_url", "input_audio", "file", "video_url", "audio_url", "source", part["type"]):
        inner = part.get(name)
        if isinstance(inner, str):
            return inner
        if isinstance(inner, Mapping):
            found = _first_text(inner, ("url", "data", "file_data", "file_id"))
            if found is not None:
                return found
    return canonical_json(part)


def _first_text(mapping: Mapping[str, Any], names: Iterable[str]) -> str | None:
    return next((mapping[name] for name in names if isinstance(mapping.get(name), str)), None)


def _size(part: Mapping[str, Any], data: str) -> int:
    inner = part.get("image_url")
    detail = inner.get("detail") if isinstance(inner, Mapping) else part.get("detail")
    if detail == "low":
        return _TOKENS_LOW_DETAIL
    if data.startswith(("http://", "https://")):
        return _TOKENS_IMAGE_URL
    return max(_TOKENS_LOW_DETAIL, len(data) // _BASE64_BYTES_PER_TOKEN)
