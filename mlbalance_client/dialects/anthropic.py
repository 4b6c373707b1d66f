"""Anthropic's messages, as vLLM, SGLang and llama.cpp serve them too."""

from __future__ import annotations

from mlbalance_client.core.model import Usage

from .base import Reading, Sign
from .canonical import Canonical, without_marks
from .fields import Fields, Unreadable, mapping, number, objects, text
from .json_dialect import JsonDialect
from .openai import CHAT_TOKENS, LEAST_MESSAGE
from .watches import AnswerForm

# message_stop says nothing that message_delta, with its stop reason, has not said.
_PREAMBLE = frozenset({"message_start", "ping", "content_block_start", "content_block_stop", "message_stop"})
# Tools of Anthropic's definition that the caller runs; versions end with a date.
_CALLERS_TOOLS = ("custom", "bash_", "text_editor_", "computer_", "memory_")


def _sign(kind: str, event: Fields) -> Sign:
    return Sign.PREAMBLE if (text(event.get("type")) or kind) in _PREAMBLE else Sign.CONTENT


def _figures(event: Fields) -> Fields:
    usage = mapping(event.get("usage")) or mapping(mapping(event.get("message")).get("usage"))
    return {name: value for name, value in usage.items() if value is not None}


def _usage(found: Fields) -> Usage | None:
    """Input tokens here leave out what the cache gave and took; ours are the whole prompt."""
    fresh, output = number(found.get("input_tokens")), number(found.get("output_tokens"))
    cached = number(found.get("cache_read_input_tokens"))
    written = number(found.get("cache_creation_input_tokens"))
    prompt = None if fresh is None else fresh + (cached or 0) + (written or 0)
    return None if prompt is None and output is None else Usage(prompt, cached, output)


def _ends(kind: str, event: Fields) -> bool:
    return "message_stop" in (event.get("type"), kind)


def _callers(tool: Fields) -> bool:
    kind = tool.get("type")
    return kind is None or (isinstance(kind, str) and kind.startswith(_CALLERS_TOOLS))


def _messages(body: Fields) -> Reading:
    canonical = Canonical(body)
    tools, messages = objects(body.get("tools")), body.get("messages")
    canonical.structure("tools", [without_marks(tool) for tool in tools])
    if body.get("system"):
        canonical.message("system", body["system"])
    if not isinstance(messages, list) or not messages:
        raise Unreadable("there are no messages")
    for message in messages:
        canonical.message(mapping(message).get("role"), mapping(message).get("content"))
    elsewhere = body.get("mcp_servers") or body.get("container")
    return canonical.reading(
        "anthropic.messages",
        output_limit=number(body.get("max_tokens")),
        streaming=body.get("stream") is True,
        replayable=not elsewhere and all(map(_callers, tools)),
    )


DIALECT = JsonDialect(
    *("anthropic.messages", "/v1/messages", _messages, AnswerForm(_sign, _figures, _usage, _ends)),
    ({"messages": [LEAST_MESSAGE], "max_tokens": 1}, CHAT_TOKENS),
)
