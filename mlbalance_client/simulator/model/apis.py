"""How calls and answers look in the APIs that a simulated replica speaks: request in, text and length out, and back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

DEFAULT_OUTPUT_TOKENS = 128
_CREATED = 1_700_000_000
_FILLER = "tok "


@dataclass(frozen=True, slots=True)
class Ask:
    """What of a request matters to the engine."""

    text: bytes
    output_tokens: int
    stream: bool
    model: str
    include_usage: bool


@dataclass(frozen=True, slots=True)
class Done:
    """How a call went, in tokens."""

    id: str
    model: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    sent: int = 0  # pieces of its stream that went before


class BadRequest(ValueError):
    """The body cannot be served; the replica answers 400 with the message."""


def filler(tokens: int) -> str:
    """Text of so many tokens."""
    return _FILLER * tokens


def sse(data: Any, event: str | None = None) -> bytes:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def _texts(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(_part(part) for part in content)
    return ""


def _part(part: Any) -> str:
    text = part.get("text", "") if isinstance(part, dict) else part
    if not isinstance(text, str):
        raise BadRequest("the text of a content part must be text")
    return text


def _messages(messages: Any) -> str:
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages must be a non-empty list")
    if not all(isinstance(message, dict) for message in messages):
        raise BadRequest("messages must be objects with a role and content")
    return "".join(_texts(message.get("content")) for message in messages)


def _ask(body: dict[str, Any], text: str, limit: Any) -> Ask:
    if limit is None:
        limit = DEFAULT_OUTPUT_TOKENS
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise BadRequest(f"the output limit must be a positive whole number, not {limit!r}")
    options = body.get("stream_options")
    return Ask(
        text=text.encode("utf-8", "replace"),
        output_tokens=limit,
        stream=body.get("stream") is True,
        model=str(body.get("model") or ""),
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
    )


def _first(body: dict[str, Any], *names: str) -> Any:
    return next((body[name] for name in names if body.get(name) is not None), None)


def openai_usage(done: Done) -> dict[str, Any]:
    """As vLLM gives it."""
    return {
        "prompt_tokens": done.prompt_tokens,
        "completion_tokens": done.output_tokens,
        "total_tokens": done.prompt_tokens + done.output_tokens,
        "prompt_tokens_details": {"cached_tokens": done.cached_tokens},
    }


@dataclass(frozen=True, slots=True)
class Api:
    """One endpoint. ``first``, ``more`` and ``last`` give a stream's bytes; ``whole`` the plain answer."""

    ask: Callable[[dict[str, Any]], Ask]
    whole: Callable[[Done], dict[str, Any]]
    first: Callable[[Done], Iterator[bytes]]
    more: Callable[[Done, str], bytes]
    last: Callable[[Done, Ask], Iterator[bytes]]


# -- OpenAI chat and completions ------------------------------------------------------------------------------------


def _chunk(done: Done, choices: list[dict[str, Any]], **more: Any) -> bytes:
    head = {"id": done.id, "object": "chat.completion.chunk", "created": _CREATED, "model": done.model}
    return sse({**head, "choices": choices, **more})


def _delta(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def _chat_last(done: Done, ask: Ask) -> Iterator[bytes]:
    yield _chunk(done, [_delta({}, "length")])
    if ask.include_usage:
        yield _chunk(done, [], usage=openai_usage(done))
    yield b"data: [DONE]\n\n"


CHAT = Api(
    ask=lambda body: _ask(
        body, _messages(body.get("messages")), _first(body, "max_completion_tokens", "max_tokens")
    ),
    whole=lambda done: {
        "id": done.id,
        "object": "chat.completion",
        "created": _CREATED,
        "model": done.model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": filler(done.output_tokens)},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": openai_usage(done),
    },
    first=lambda done: iter([_chunk(done, [_delta({"role": "assistant", "content": ""})])]),
    more=lambda done, text: _chunk(done, [_delta({"content": text})]),
    last=_chat_last,
)


def _prompt(body: dict[str, Any]) -> str:
    prompt = body.get("prompt")
    if isinstance(prompt, str) and prompt:
        return prompt
    if isinstance(prompt, list) and prompt:
        return "".join(map(str, prompt))
    raise BadRequest("prompt must be text")


def _text_chunk(done: Done, text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    head = {"id": done.id, "object": "text_completion", "created": _CREATED, "model": done.model}
    return sse({**head, "choices": [choice]})


def _completions_last(done: Done, ask: Ask) -> Iterator[bytes]:
    yield _text_chunk(done, "", "length")
    if ask.include_usage:
        yield sse({"id": done.id, "object": "text_completion", "choices": [], "usage": openai_usage(done)})
    yield b"data: [DONE]\n\n"


COMPLETIONS = Api(
    ask=lambda body: _ask(body, _prompt(body), body.get("max_tokens")),
    whole=lambda done: {
        "id": done.id,
        "object": "text_completion",
        "created": _CREATED,
        "model": done.model,
        "choices": [
            {"index": 0, "text": filler(done.output_tokens), "logprobs": None, "finish_reason": "length"}
        ],
        "usage": openai_usage(done),
    },
    first=lambda done: iter(()),
    more=_text_chunk,
    last=_completions_last,
)


# -- OpenAI embeddings ----------------------------------------------------------------------------------------------


def _embedding_ask(body: dict[str, Any]) -> Ask:
    given = body.get("input")
    if not given or not isinstance(given, str | list):
        raise BadRequest("input must be text or a list")
    text = given if isinstance(given, str) else "".join(map(str, given))
    return _ask({**body, "stream": False}, text, 1)


EMBEDDINGS = Api(
    ask=_embedding_ask,
    whole=lambda done: {
        "object": "list",
        "model": done.model,
        "data": [{"object": "embedding", "index": 0, "embedding": [0.0, 0.6, 0.8]}],
        "usage": {"prompt_tokens": done.prompt_tokens, "total_tokens": done.prompt_tokens},
    },
    first=lambda done: iter(()),
    more=lambda done, text: b"",
    last=lambda done, ask: iter(()),
)


# -- OpenAI responses -----------------------------------------------------------------------------------------------


def _response(done: Done, status: str, text: str | None) -> dict[str, Any]:
    output = []
    if text is not None:
        part = {"type": "output_text", "text": text, "annotations": []}
        output = [
            {"id": f"m{done.id}", "type": "message", "role": "assistant", "status": status, "content": [part]}
        ]
    usage = None
    if status == "completed":
        usage = {
            "input_tokens": done.prompt_tokens,
            "input_tokens_details": {"cached_tokens": done.cached_tokens},
            "output_tokens": done.output_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": done.prompt_tokens + done.output_tokens,
        }
    return {
        "id": done.id,
        "object": "response",
        "created_at": _CREATED,
        "status": status,
        "model": done.model,
        "output": output,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": usage,
    }


def _response_first(done: Done) -> Iterator[bytes]:
    head = {"item_id": f"m{done.id}", "output_index": 0}
    for number, kind in enumerate(("response.created", "response.in_progress")):
        body = {"type": kind, "sequence_number": number, "response": _response(done, "in_progress", None)}
        yield sse(body, kind)
    item = {
        "id": f"m{done.id}",
        "type": "message",
        "role": "assistant",
        "status": "in_progress",
        "content": [],
    }
    kind = "response.output_item.added"
    yield sse({"type": kind, "sequence_number": 2, "output_index": 0, "item": item}, kind)
    kind = "response.content_part.added"
    part = {"type": "output_text", "text": "", "annotations": []}
    yield sse({"type": kind, "sequence_number": 3, "content_index": 0, "part": part, **head}, kind)


def _response_more(done: Done, text: str) -> bytes:
    kind = "response.output_text.delta"
    head = {"item_id": f"m{done.id}", "output_index": 0, "content_index": 0}
    return sse({"type": kind, "sequence_number": 4 + done.sent, "delta": text, "logprobs": [], **head}, kind)


def _response_last(done: Done, ask: Ask) -> Iterator[bytes]:
    kind = "response.completed"
    whole = _response(done, "completed", filler(done.output_tokens))
    yield sse({"type": kind, "sequence_number": 5 + done.sent, "response": whole}, kind)


def _response_ask(body: dict[str, Any]) -> Ask:
    given = body.get("input")
    if not given or not isinstance(given, str | list):
        raise BadRequest("input must be text or a list of messages")
    text = given if isinstance(given, str) else _messages(given)
    return _ask(body, str(body.get("instructions") or "") + text, body.get("max_output_tokens"))


RESPONSES = Api(
    ask=_response_ask,
    whole=lambda done: _response(done, "completed", filler(done.output_tokens)),
    first=_response_first,
    more=_response_more,
    last=_response_last,
)


# -- Anthropic messages ---------------------------------------------------------------------------------------------


def _anthropic_usage(done: Done, output: int) -> dict[str, int]:
    return {
        "input_tokens": done.prompt_tokens - done.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": done.cached_tokens,
        "output_tokens": output,
    }


def _anthropic_message(
    done: Done, content: list[dict[str, Any]], stop: str | None, output: int
) -> dict[str, Any]:
    return {
        "id": done.id,
        "type": "message",
        "role": "assistant",
        "model": done.model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": _anthropic_usage(done, output),
    }


def _anthropic_first(done: Done) -> Iterator[bytes]:
    yield sse({"type": "message_start", "message": _anthropic_message(done, [], None, 0)}, "message_start")
    yield sse({"type": "ping"}, "ping")
    block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    yield sse(block, "content_block_start")


def _anthropic_more(done: Done, text: str) -> bytes:
    delta = {"type": "text_delta", "text": text}
    return sse({"type": "content_block_delta", "index": 0, "delta": delta}, "content_block_delta")


def _anthropic_last(done: Done, ask: Ask) -> Iterator[bytes]:
    yield sse({"type": "content_block_stop", "index": 0}, "content_block_stop")
    delta = {"stop_reason": "max_tokens", "stop_sequence": None}
    usage = {"output_tokens": done.output_tokens}
    yield sse({"type": "message_delta", "delta": delta, "usage": usage}, "message_delta")
    yield sse({"type": "message_stop"}, "message_stop")


MESSAGES = Api(
    ask=lambda body: _ask(
        body, _texts(body.get("system")) + _messages(body.get("messages")), body.get("max_tokens")
    ),
    whole=lambda done: _anthropic_message(
        done, [{"type": "text", "text": filler(done.output_tokens)}], "max_tokens", done.output_tokens
    ),
    first=_anthropic_first,
    more=_anthropic_more,
    last=_anthropic_last,
)

APIS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/responses": RESPONSES,
    "/v1/messages": MESSAGES,
}
