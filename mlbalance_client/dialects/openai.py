"""The OpenAI family, as vLLM, SGLang, TGI, llama.cpp, Ollama and many others serve it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mlbalance_client.core.model import Usage

from .base import AnswerWatch, Reading, Sign
from .canonical import Canonical, canonical_json
from .plain import BytesDialect
from .watches import EventWatch, WholeWatch, parse

_SERVER_SIDE_TOOLS = frozenset(
    {"web_search", "web_search_preview", "code_interpreter", "file_search", "computer_use_preview", "mcp",
     "image_generation", "local_shell"}
)  # fmt: skip
_DELTA_CONTENT = (
    "content",
    "reasoning_content",
    "reasoning",
    "tool_calls",
    "refusal",
    "function_call",
    "audio",
)
_RESPONSES_PREAMBLE = frozenset(
    {"response.created", "response.queued", "response.in_progress", "response.output_item.added",
     "response.content_part.added", "response.reasoning_summary_part.added", "ping", "keepalive"}
)  # fmt: skip


def number(value: Any) -> int | None:
    """A count as engines give it, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _details(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    details = usage.get(name)
    return details if isinstance(details, dict) else {}


def usage_of(body: dict[str, Any]) -> Usage | None:
    """``usage`` of an answer or of a stream's event; llama.cpp's ``timings`` tell what was cached if it does not."""
    response = body.get("response")
    usage = body.get("usage") or (response.get("usage") if isinstance(response, dict) else None)
    timings = body.get("timings")
    if not isinstance(usage, dict):
        if not isinstance(timings, dict) or number(timings.get("prompt_n")) is None:
            return None
        cached = number(timings.get("cache_n"))
        return Usage(timings["prompt_n"] + (cached or 0), cached, number(timings.get("predicted_n")))
    prompt = number(usage.get("prompt_tokens", usage.get("input_tokens")))
    output = number(usage.get("completion_tokens", usage.get("output_tokens")))
    details = _details(usage, "prompt_tokens_details") or _details(usage, "input_tokens_details")
    cached = number(details.get("cached_tokens"))
    if cached is None and isinstance(timings, dict):
        cached = number(timings.get("cache_n"))
    return None if prompt is None and output is None else Usage(prompt, cached, output)


def _classify_chunk(name: str, event: dict[str, Any]) -> Sign:
    choices = event.get("choices")
    if not isinstance(choices, list):
        return Sign.PREAMBLE
    for choice in choices:
        if not isinstance(choice, dict):
            continue
        delta = choice.get("delta")
        has_delta = isinstance(delta, dict) and any(delta.get(field) for field in _DELTA_CONTENT)
        if has_delta or choice.get("text") or choice.get("finish_reason") is not None:
            return Sign.CONTENT
    return Sign.PREAMBLE


def _finished_chunk(event: dict[str, Any]) -> bool:
    choices = event.get("choices")
    return isinstance(choices, list) and any(isinstance(c, dict) and c.get("finish_reason") for c in choices)


def _classify_response(name: str, event: dict[str, Any]) -> Sign:
    kind = event.get("type") or name
    return Sign.PREAMBLE if not kind or kind in _RESPONSES_PREAMBLE else Sign.CONTENT


def _finished_response(event: dict[str, Any]) -> bool:
    return event.get("type") in ("response.completed", "response.incomplete")


def _limit(body: Mapping[str, Any], *names: str) -> int | None:
    cap = next((n for n in map(number, map(body.get, names)) if n is not None), None)
    return None if cap is None else cap * max(1, number(body.get("n")) or 1)


def messages_into(canonical: Canonical, messages: Any) -> None:
    """Add messages, and what of them is prefilled besides their content."""
    for message in messages if isinstance(messages, list) else [messages]:
        if not isinstance(message, Mapping):
            canonical.json("message", message)
            continue
        role = message.get("role")
        canonical.message(
            role if isinstance(role, str) else str(message.get("type", "")), message.get("content")
        )
        for name in ("name", "tool_call_id", "tool_calls", "function_call"):
            canonical.json(name, message.get(name))


def _chat(body: dict[str, Any], canonical: Canonical) -> dict[str, Any]:
    canonical.json("tools", body.get("tools") or body.get("functions"))
    messages_into(canonical, body.get("messages"))
    return {
        "output_limit": _limit(body, "max_completion_tokens", "max_tokens"),
        "replayable": not body.get("store"),
    }


def _completions(body: dict[str, Any], canonical: Canonical) -> dict[str, Any]:
    prompt = body.get("prompt")
    prompts = prompt if isinstance(prompt, list) and all(isinstance(p, str) for p in prompt) else [prompt]
    for text in prompts:
        canonical.text("prompt", text if isinstance(text, str) else canonical_json(text))
    return {"output_limit": _limit(body, "max_tokens")}


def _embeddings(body: dict[str, Any], canonical: Canonical) -> dict[str, Any]:
    given = body.get("input")
    for text in given if isinstance(given, list) and all(isinstance(t, str) for t in given) else [given]:
        canonical.text("input", text if isinstance(text, str) else canonical_json(text))
    return {"output_limit": 0, "streaming": False}


def _responses(body: dict[str, Any], canonical: Canonical) -> dict[str, Any]:
    tools = body.get("tools")
    canonical.json("tools", tools)
    if body.get("instructions"):
        canonical.message("system", body["instructions"])
    given = body.get("input")
    if isinstance(given, str):
        canonical.message("user", given)
    elif isinstance(given, list):
        for item in given:
            plain = isinstance(item, Mapping) and "content" in item
            messages_into(canonical, [item]) if plain else canonical.json("item", item)
    kinds = [t.get("type") for t in tools if isinstance(t, Mapping)] if isinstance(tools, list) else []
    elsewhere = body.get("store") is True or body.get("background") or body.get("previous_response_id")
    return {
        "output_limit": _limit(body, "max_output_tokens"),
        "replayable": not elsewhere and _SERVER_SIDE_TOOLS.isdisjoint(k for k in kinds if isinstance(k, str)),
        "session": body.get("previous_response_id") or body.get("prompt_cache_key"),
    }


_Facts = Callable[[dict[str, Any], Canonical], dict[str, Any]]


class OpenAIDialect:
    """One endpoint of the family."""

    def __init__(self, name: str, suffix: str, facts: _Facts, *, responses: bool = False) -> None:
        self.name = name
        self.suffix = suffix
        self._facts = facts
        self._classify = _classify_response if responses else _classify_chunk
        self._finished = _finished_response if responses else _finished_chunk

    def matches(self, method: str, path: str) -> bool:
        """POST to a path that ends with the endpoint's."""
        return method == "POST" and path.endswith(self.suffix)

    def read(self, path: str, body: bytes) -> Reading:
        """Read a request; a body that is no JSON object of the expected form is taken as plain bytes."""
        fields = parse(body)
        if not fields:
            return BytesDialect().read(path, body)
        try:
            canonical = Canonical(fields)
            facts = self._facts(fields, canonical)
        except (TypeError, ValueError, RecursionError):
            return BytesDialect().read(path, body)
        session = facts.pop("session", fields.get("prompt_cache_key"))
        model = fields.get("model")
        return Reading(
            dialect=self.name,
            model=model if isinstance(model, str) else None,
            prompt=canonical.data(),
            prompt_bytes=canonical.text_bytes,
            extra_tokens=canonical.extra_tokens,
            session=session if isinstance(session, str) else None,
            **{"streaming": fields.get("stream") is True, **facts},
        )

    def watch(self, reading: Reading, status: int, content_type: str) -> AnswerWatch:
        """Server-sent events or one JSON body, as the answer says."""
        if content_type.startswith("text/event-stream"):
            return EventWatch(self._classify, usage_of, self._finished)
        return WholeWatch(usage_of)


DIALECTS = (
    OpenAIDialect("openai.chat", "/chat/completions", _chat),
    OpenAIDialect("openai.completions", "/completions", _completions),
    OpenAIDialect("openai.embeddings", "/embeddings", _embeddings),
    OpenAIDialect("openai.responses", "/responses", _responses, responses=True),
)
