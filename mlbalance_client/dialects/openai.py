"""OpenAI's chat, completions and embeddings, as vLLM, SGLang, TGI, llama.cpp, Ollama and many others serve them."""

from __future__ import annotations

from mlbalance_client.core.model import Usage

from .base import Reading, Sign
from .canonical import Canonical
from .fields import Fields, Unreadable, mapping, number, objects, text
from .json_dialect import JsonDialect
from .watches import AnswerForm

PINGS = frozenset({"ping", "keepalive"})


def figures(body: Fields) -> Fields:
    """``usage``, and llama.cpp's ``timings``, of an event or body."""
    found: Fields = {}
    if usage := mapping(body.get("usage")):
        found = {name: value for name, value in usage.items() if value is not None}
    if timings := mapping(body.get("timings")):
        found["timings"] = timings
    return found


def usage(found: Fields) -> Usage | None:
    """Both spellings of OpenAI's figures; llama.cpp's timings tell what they leave out."""
    if not found:
        return None
    timings = mapping(found.get("timings"))
    details = mapping(found.get("prompt_tokens_details")) or mapping(found.get("input_tokens_details"))
    prompt = number(found.get("prompt_tokens", found.get("input_tokens")))
    output = number(found.get("completion_tokens", found.get("output_tokens")))
    cached = number(details.get("cached_tokens"))
    if cached is None:
        cached = number(timings.get("cache_n"))
    if prompt is None and (fresh := number(timings.get("prompt_n"))) is not None:
        prompt = fresh + (cached or 0)
    if output is None:
        output = number(timings.get("predicted_n"))
    return None if prompt is None and output is None else Usage(prompt, cached, output)


def _sign(kind: str, event: Fields) -> Sign:
    choices = event.get("choices")
    if isinstance(choices, list):
        return Sign.CONTENT if any(map(_speaks, objects(choices))) else Sign.PREAMBLE
    return Sign.PREAMBLE if kind in PINGS or text(event.get("type")) in PINGS else Sign.CONTENT


def _speaks(choice: Fields) -> bool:
    """Whether a choice carries more than a role; an empty finish is content."""
    if choice.get("finish_reason") is not None or choice.get("text"):
        return True
    return any(value for name, value in mapping(choice.get("delta")).items() if name != "role")


def _ends(kind: str, event: Fields) -> bool:
    return any(choice.get("finish_reason") for choice in objects(event.get("choices")))


CHUNKS = AnswerForm(_sign, figures, usage, _ends)


def output_limit(body: Fields, *names: str, prompts: int = 1) -> int | None:
    """The first limit given, times the number of outputs; ``best_of`` computes more than it returns."""
    for name in names:
        limit = number(body.get(name))
        if limit is not None:
            outputs = max(1, number(body.get("n")) or 1, number(body.get("best_of")) or 1)
            return limit * outputs * prompts
    return None


def chat_messages(canonical: Canonical, messages: object) -> None:
    """Messages in order, each followed by the structure that is prefilled with it. Raises Unreadable."""
    if not isinstance(messages, list) or not messages:
        raise Unreadable("there are no messages")
    for message in messages:
        if not isinstance(message, dict):
            raise Unreadable("a message is no object")
        canonical.message(message.get("role"), message.get("content"))
        if len(message) > 2 or "content" not in message:
            for name in ("tool_calls", "tool_call_id", "name", "function_call"):
                canonical.structure(name, message.get(name))


def _chat(body: Fields) -> Reading:
    canonical = Canonical(body)
    canonical.structure("tools", body.get("tools") or body.get("functions"))
    chat_messages(canonical, body.get("messages"))
    return canonical.reading(
        "openai.chat",
        output_limit=output_limit(body, "max_completion_tokens", "max_tokens"),
        streaming=body.get("stream") is True,
        replayable=not body.get("store") and not body.get("web_search_options"),
        session=text(body.get("prompt_cache_key")),
    )


def _inputs(canonical: Canonical, header: str, given: object) -> int:
    """Texts or lists of token ids, one or many; their number. Raises Unreadable."""
    many = isinstance(given, list) and bool(given) and not isinstance(given[0], int)
    inputs = given if many and isinstance(given, list) else [given]
    for each in inputs:
        if isinstance(each, str):
            canonical.text(header, each)
        elif isinstance(each, list) and each and isinstance(each[0], int):
            canonical.token_ids(header, each)
        elif isinstance(each, dict):
            canonical.structure(header, each)
        else:
            raise Unreadable(f"{header} is neither text nor token ids")
    return len(inputs)


def _completions(body: Fields) -> Reading:
    canonical = Canonical(body)
    prompts = _inputs(canonical, "prompt", body.get("prompt"))
    canonical.structure("suffix", body.get("suffix"))
    return canonical.reading(
        "openai.completions",
        output_limit=output_limit(body, "max_tokens", prompts=prompts),
        streaming=body.get("stream") is True,
        session=text(body.get("prompt_cache_key")),
    )


def _embeddings(body: Fields) -> Reading:
    canonical = Canonical(body)
    if "messages" in body:
        chat_messages(canonical, body["messages"])
    else:
        _inputs(canonical, "input", body.get("input"))
    return canonical.reading("openai.embeddings", output_limit=0)


LEAST_MESSAGE: Fields = {"role": "user", "content": "."}
CHAT_TOKENS = 32
_ONE: Fields = {"max_tokens": 1}

DIALECTS = (
    JsonDialect(
        *("openai.chat", "/chat/completions", _chat, CHUNKS),
        ({"messages": [LEAST_MESSAGE], **_ONE}, CHAT_TOKENS),
    ),
    JsonDialect("openai.completions", "/completions", _completions, CHUNKS, ({"prompt": ".", **_ONE}, 3)),
    JsonDialect("openai.embeddings", "/embeddings", _embeddings, CHUNKS, ({"input": "."}, 3)),
)
