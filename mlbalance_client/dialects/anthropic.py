"""Anthropic's messages, as vLLM, SGLang and llama.cpp serve it too."""

from __future__ import annotations

from typing import Any

from mlbalance_client.core.model import Usage

from .base import AnswerWatch, Reading, Sign
from .canonical import Canonical
from .openai import messages_into, number
from .plain import BytesDialect
from .watches import EventWatch, WholeWatch, parse

_PREAMBLE = frozenset({"message_start", "ping", "content_block_start"})


def usage_of(body: dict[str, Any]) -> Usage | None:
    """Input tokens here exclude what was read from the cache; ours include it."""
    message = body.get("message")
    usage = body.get("usage") or (message.get("usage") if isinstance(message, dict) else None)
    if not isinstance(usage, dict):
        return None
    fresh, output = number(usage.get("input_tokens")), number(usage.get("output_tokens"))
    cached, written = (
        number(usage.get("cache_read_input_tokens")),
        number(usage.get("cache_creation_input_tokens")),
    )
    prompt = None if fresh is None else fresh + (cached or 0) + (written or 0)
    return None if prompt is None and output is None else Usage(prompt, cached, output)


def _classify(name: str, event: dict[str, Any]) -> Sign:
    kind = event.get("type") or name
    return Sign.PREAMBLE if not kind or kind in _PREAMBLE else Sign.CONTENT


def _finished(event: dict[str, Any]) -> bool:
    return event.get("type") == "message_stop"


class AnthropicDialect:
    """POST to a path that ends with ``/messages``."""

    name = "anthropic.messages"

    def matches(self, method: str, path: str) -> bool:
        """By the path's end."""
        return method == "POST" and path.endswith("/messages")

    def read(self, path: str, body: bytes) -> Reading:
        """Read a request; a body that is no JSON object of the expected form is taken as plain bytes."""
        fields = parse(body)
        if not fields:
            return BytesDialect().read(path, body)
        try:
            canonical = Canonical(fields)
            canonical.json("tools", fields.get("tools"))
            if fields.get("system"):
                canonical.message("system", fields["system"])
            messages_into(canonical, fields.get("messages"))
        except (TypeError, ValueError, RecursionError):
            return BytesDialect().read(path, body)
        model = fields.get("model")
        return Reading(
            dialect=self.name,
            model=model if isinstance(model, str) else None,
            prompt=canonical.data(),
            prompt_bytes=canonical.text_bytes,
            extra_tokens=canonical.extra_tokens,
            output_limit=number(fields.get("max_tokens")),
            streaming=fields.get("stream") is True,
        )

    def watch(self, reading: Reading, status: int, content_type: str) -> AnswerWatch:
        """Server-sent events or one JSON body, as the answer says."""
        if content_type.startswith("text/event-stream"):
            return EventWatch(_classify, usage_of, _finished)
        return WholeWatch(usage_of)
