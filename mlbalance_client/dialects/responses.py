"""OpenAI's responses, as vLLM, SGLang and others serve them."""

from __future__ import annotations

from .base import Reading, Sign
from .canonical import Canonical
from .fields import Fields, Unreadable, mapping, number, objects, text
from .json_dialect import JsonDialect
from .openai import CHAT_TOKENS, PINGS, usage
from .openai import figures as body_figures
from .watches import AnswerForm

_PREAMBLE = PINGS | {"response.created", "response.queued", "response.in_progress"}
_ENDS = frozenset({"response.completed", "response.incomplete"})
# Tools that the caller runs. All others run at the replica, where doing it twice may matter.
_CALLERS_TOOLS = frozenset({"function", "custom", "local_shell", "apply_patch", "computer_use_preview"})


def _sign(kind: str, event: Fields) -> Sign:
    kind = text(event.get("type")) or kind
    preamble = kind in _PREAMBLE or (kind.startswith("response.") and kind.endswith(".added"))
    return Sign.PREAMBLE if preamble else Sign.CONTENT


def _figures(event: Fields) -> Fields:
    return body_figures(event) or body_figures(mapping(event.get("response")))


def _ends(kind: str, event: Fields) -> bool:
    return (text(event.get("type")) or kind) in _ENDS


def _item(canonical: Canonical, item: object) -> None:
    if not isinstance(item, dict):
        raise Unreadable("an item of the input is no object")
    if "role" in item:
        canonical.message(item["role"], item.get("content"))
        return
    kind = text(item.get("type")) or "item"
    if "output" in item:
        canonical.message(kind, item["output"])
        canonical.structure("call_id", item.get("call_id"))
    else:
        canonical.structure(kind, item)


def _session(body: Fields) -> str | None:
    conversation = body.get("conversation")
    return text(mapping(conversation).get("id") or conversation) or text(body.get("prompt_cache_key"))


def _replayable(body: Fields) -> bool:
    # "store" left out counts as false: engines keep nothing unless started to, and a forgotten copy harms nobody.
    kept = any(body.get(name) for name in ("store", "background", "previous_response_id", "conversation"))
    return not kept and all(text(tool.get("type")) in _CALLERS_TOOLS for tool in objects(body.get("tools")))


def _responses(body: Fields) -> Reading:
    canonical = Canonical(body)
    canonical.structure("tools", body.get("tools"))
    if body.get("instructions"):
        canonical.message("system", body["instructions"])
    given = body.get("input")
    if isinstance(given, str):
        canonical.message("user", given)
    elif isinstance(given, list):
        for item in given:
            _item(canonical, item)
    elif not body.get("prompt"):
        raise Unreadable("there is no input")
    return canonical.reading(
        "openai.responses",
        output_limit=number(body.get("max_output_tokens")),
        streaming=body.get("stream") is True,
        replayable=_replayable(body),
        session=_session(body),
    )


DIALECT = JsonDialect(
    *("openai.responses", "/responses", _responses, AnswerForm(_sign, _figures, usage, _ends)),
    ({"input": ".", "max_output_tokens": 1, "store": False}, CHAT_TOKENS),
)
