"""Errors that engines put inside an answer whose status said 200."""

from __future__ import annotations

import re

from .base import InBandError, Lacks
from .fields import Fields, mapping

_MESSAGE_CHARS = 500
_CODE_FIELDS = ("code", "http_status_code", "status_code", "status")
# Where the code is absent or a word: Anthropic's documented types; TGI's error_type and llama.cpp's type with the
# status that each sends with them; OpenAI's codes.
_STATUS_BY_TYPE = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "timeout_error": 504,
    "overloaded_error": 529,
    "overloaded": 429, "validation": 422, "generation": 424, "unhealthy": 503,
    "unavailable_error": 503, "exceed_context_size_error": 400,
    "rate_limit_exceeded": 429, "invalid_prompt": 400, "Service Unavailable": 503,
}  # fmt: skip

# As MLServer, KServe, Triton, vLLM and Ollama say it of a model, and SGLang of an adapter. Only from the beginning on:
# further on a caller's own words may be quoted.
_NO_MODEL = re.compile(
    r"(?:the )?model\b.{1,300}?(?:not found|does not exist|is not ready)|request for unknown model",
    re.IGNORECASE | re.DOTALL,
)
_NO_ADAPTER = re.compile(r"(?:the following requested )?lora adapters? are not loaded", re.IGNORECASE)

# vLLM's, SGLang's, Ollama's and TGI's words. None of the first three says when to come again.
_BUSY = re.compile(r"\bbusy\b|\bqueue is full\b|\boverloaded\b", re.IGNORECASE)


def error_in(kind: str, event: Fields) -> InBandError | None:
    """The error in an event of this kind, or in a whole body, in any of the shapes that engines give it.

    ``{"error": {"message", "code" | "type"}}``: OpenAI, vLLM, SGLang, llama.cpp, Ollama, Anthropic;
    ``{"error": text, "error_type"}``: TGI, Triton; ``{"object": "error", ...}``: vLLM, SGLang;
    ``response.failed`` and a bare ``error`` event: OpenAI's responses.
    """
    error = event.get("error") or _elsewhere((event.get("type"), kind), event)
    if not error:
        return None
    fields = mapping(error)
    message = fields.get("message") or (error if isinstance(error, str) else None)
    named = fields.get("type"), fields.get("code"), event.get("error_type")
    said = message or next(filter(None, named), "an error without a message")
    words = str(said)[:_MESSAGE_CHARS]
    busy = _BUSY.search(words) is not None
    return InBandError(_status(fields, event, named), words, _missing(words, named), busy)


def _missing(words: str, named: tuple[object, ...]) -> Lacks | None:
    if "model_not_found" in named or _NO_MODEL.match(words):
        return Lacks.MODEL
    return Lacks.ADAPTER if _NO_ADAPTER.match(words) else None


def _elsewhere(kinds: tuple[object, str], event: Fields) -> object:
    if "response.failed" in kinds:
        return mapping(event.get("response")).get("error") or event
    return event if "error" in kinds or event.get("object") == "error" else None


def _status(fields: Fields, event: Fields, named: tuple[object, ...]) -> int:
    for name in _CODE_FIELDS:
        for code in (fields.get(name), event.get(name)):
            if (status := _as_status(code)) is not None:
                return status
    return next((_STATUS_BY_TYPE[n] for n in named if isinstance(n, str) and n in _STATUS_BY_TYPE), 500)


def _as_status(code: object) -> int | None:
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        code = int(code)
    return code if isinstance(code, int) and 400 <= code <= 599 else None
