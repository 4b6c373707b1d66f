"""What dialects read of requests: canonical bytes literally, sizes, limits, what may go twice; and of rubbish."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_hexdigest

from mlbalance_client.calls import Call
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.dialects import Reading, find
from mlbalance_client.dialects.plain import reading_of

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES = "/v1/responses", "/v1/messages"
INFER, GENERATE = "/v2/models/bert/infer", "/v2/models/gpt/generate_stream"
PATHS = [CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES, MESSAGES, INFER, GENERATE]
PIXEL = "data:image/png;base64," + "A" * 4000


def read(path: str, body: Any) -> Reading:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return find("POST", path).read(path, data)


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def hashed(payload: str) -> str:
    return xxh3_64_hexdigest(payload.encode())


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
GOLDEN = [
    (CHAT, {"messages": [turn("user", "hi")]}, "user\nhi\n"),
    (CHAT, {"messages": [turn("user", "hé")], "model": "m"}, "model\nm\nuser\nhé\n"),
    (
        CHAT,
        {
            "model": "m",
            "cache_salt": "s",
            "lora_path": "l",
            "messages": [turn("system", "a"), turn("user", "b")],
        },
        "model\nm\nadapter\nl\ncache_salt\ns\nsystem\na\nuser\nb\n",
    ),
    (
        CHAT,
        {"tools": [{"b": 1, "a": "é"}], "messages": [turn("user", "x")]},
        'tools\n[{"a":"é","b":1}]\nuser\nx\n',
    ),
    (
        CHAT,
        {"messages": [turn("assistant", None, tool_calls=[CALL]), turn("tool", "42", tool_call_id="c1")]},
        (
            'assistant\ntool_calls\n[{"function":{"arguments":"{}","name":"f"},"id":"c1","type":"function"}]\n'
            'tool\n42\ntool_call_id\n"c1"\n'
        ),
    ),
    (
        CHAT,
        {
            "messages": [
                turn(
                    "user",
                    [{"type": "text", "text": "see"}, {"type": "image_url", "image_url": {"url": PIXEL}}],
                )
            ]
        },
        f"user\nsee\nimage_url\n{hashed(PIXEL)}\n",
    ),
    (COMPLETIONS, {"prompt": "once", "suffix": "end"}, 'prompt\nonce\nsuffix\n"end"\n'),
    (COMPLETIONS, {"prompt": ["a", "b"]}, "prompt\na\nprompt\nb\n"),
    (COMPLETIONS, {"prompt": [1, 2, 3]}, "prompt\n[1,2,3]\n"),
    (EMBEDDINGS, {"model": "e", "input": ["a", [7, 8]]}, "model\ne\ninput\na\ninput\n[7,8]\n"),
    (RESPONSES, {"instructions": "be brief", "input": "hi"}, "system\nbe brief\nuser\nhi\n"),
    (
        RESPONSES,
        {
            "input": [
                turn("user", [{"type": "input_text", "text": "hi"}]),
                {"type": "function_call_output", "output": "4", "call_id": "c"},
            ]
        },
        'user\nhi\nfunction_call_output\n4\ncall_id\n"c"\n',
    ),
    (
        MESSAGES,
        {
            "tools": [{"name": "t", "cache_control": {"type": "ephemeral"}}],
            "system": [{"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}}],
            "messages": [
                turn("user", "q"),
                turn("user", [{"type": "tool_result", "tool_use_id": "u", "content": "r"}]),
            ],
        },
        'tools\n[{"name":"t"}]\nsystem\ns\nuser\nq\nuser\ntool_result\nr\ntool_use_id\n"u"\n',
    ),
    (GENERATE, {"text_input": "go", "max_tokens": 9}, "model\ngpt\nprompt\ngo\n"),
    (
        INFER,
        {"inputs": [{"name": "t", "shape": [2], "datatype": "BYTES", "data": ["a", "b"]}]},
        "model\nbert\nt\na\nt\nb\n",
    ),
]


@pytest.mark.parametrize(("path", "body", "canonical"), GOLDEN)
def test_canonical_bytes_are_those_of_the_page(path: str, body: Any, canonical: str) -> None:
    assert read(path, body).prompt.decode() == canonical


def test_how_json_is_written_does_not_matter() -> None:
    body = {"model": "m", "tools": [{"x": 1, "y": 2}], "messages": [turn("user", "größer, 言葉")]}
    backwards = {"messages": [turn("user", "größer, 言葉")], "tools": [{"y": 2, "x": 1}], "model": "m"}
    spaced = json.dumps(backwards, indent=3).encode()
    unescaped = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()

    assert read(CHAT, spaced).prompt == read(CHAT, unescaped).prompt


def test_turns_of_one_conversation_share_their_chain() -> None:
    history = [turn("system", "s" * 3000), turn("user", "u" * 3000), turn("assistant", "a" * 3000)]
    one = fingerprint(read(CHAT, {"messages": history}).prompt).chain
    two = fingerprint(read(CHAT, {"messages": [*history, turn("user", "more" * 500)]}).prompt).chain

    assert len(two) > len(one) > 5
    assert two[: len(one)] == one


def test_a_wandering_cache_mark_changes_nothing() -> None:
    mark = {"cache_control": {"type": "ephemeral"}}
    image = {"type": "image", "source": {"type": "base64", "data": "QUJD"}}

    plain = read(MESSAGES, {"messages": [turn("user", [image])]})
    assert read(MESSAGES, {"messages": [turn("user", [image | mark])]}).prompt == plain.prompt


def test_a_binary_tensor_is_read_like_its_json() -> None:
    raw = b"".join(len(word).to_bytes(4, "little") + word for word in (b"a", b"bc"))
    tensor = {"name": "t", "shape": [2], "datatype": "BYTES", "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [tensor]}).encode()

    assert read(INFER, head + raw).prompt == b"model\nbert\nt\na\nt\nbc\n"


def test_numbers_have_a_size_and_no_prefix() -> None:
    tensor = {"name": "x", "shape": [3, 224, 224], "datatype": "FP32", "data": []}
    reading = read(INFER, {"inputs": [tensor]})

    assert reading.prompt_bytes == 3 * 224 * 224 * 4
    assert reading.prompt.startswith(b"model\nbert\nbody\n")


def test_images_count_by_their_size() -> None:
    def tokens(url: str, **more: Any) -> int:
        part = {"type": "image_url", "image_url": {"url": url, **more}}
        return read(CHAT, {"messages": [turn("user", [part])]}).extra_tokens

    large = "data:image/png;base64," + "A" * 400_000
    assert tokens(PIXEL) == 85 <= tokens("https://x/y.png") == 765 < tokens(large) == 1600
    assert tokens(large, detail="low") == 85


@pytest.mark.parametrize(
    ("path", "body", "limit"),
    [
        (CHAT, {"max_tokens": 7}, 7),
        (CHAT, {"max_completion_tokens": 8, "max_tokens": 7}, 8),
        (CHAT, {"max_completion_tokens": None, "max_tokens": 7}, 7),
        (CHAT, {"max_tokens": 7, "n": 3}, 21),
        (CHAT, {"max_tokens": "many"}, None),
        (CHAT, {"max_tokens": True}, None),
        (CHAT, {}, None),
        (MESSAGES, {"max_tokens": 16.0}, 16),
        (EMBEDDINGS, {"input": "x"}, 0),
    ],
)
def test_output_limits(path: str, body: dict[str, Any], limit: int | None) -> None:
    assert read(path, {"messages": [turn("user", "x")], **body}).output_limit == limit


@pytest.mark.parametrize(
    ("path", "body", "replayable"),
    [
        (CHAT, {}, True),
        (CHAT, {"store": True}, False),
        (CHAT, {"web_search_options": {"a": 1}}, False),
        (RESPONSES, {"input": "x"}, True),
        (RESPONSES, {"input": "x", "store": True}, False),
        (RESPONSES, {"input": "x", "background": True}, False),
        (RESPONSES, {"input": "x", "previous_response_id": "r"}, False),
        (RESPONSES, {"input": "x", "tools": [{"type": "function"}]}, True),
        (RESPONSES, {"input": "x", "tools": [{"type": "web_search"}]}, False),
        (MESSAGES, {"tools": [{"name": "mine"}, {"type": "bash_20250124"}]}, True),
        (MESSAGES, {"tools": [{"type": "web_search_20250305"}]}, False),
        (MESSAGES, {"mcp_servers": [{"url": "x"}]}, False),
        (GENERATE, {"text_input": "x"}, True),
        (GENERATE, {"text_input": "x", "sequence_id": 4}, False),
        (RESPONSES, {"input": "x", "conversation": "c"}, False),
        (RESPONSES, {"input": "x", "tools": [{"type": "mcp"}]}, False),
        (MESSAGES, {"container": "c"}, False),
        (f"{MESSAGES}/batches", {}, False),
        (f"{RESPONSES}/r1/cancel", {}, False),
        ("/v1/batches", {}, False),
        ("/v1/fine_tuning/jobs", {}, False),
        ("/v1/conversations", {}, False),
        ("/anything", {}, False),
    ],
)
def test_what_may_be_sent_twice(path: str, body: dict[str, Any], replayable: bool) -> None:
    assert read(path, {"messages": [turn("user", "x")], **body}).replayable is replayable


def test_methods_that_repeat_nothing_may_be_sent_twice() -> None:
    assert find("GET", "/v1/models").read("/v1/models", b"").replayable
    assert not find("POST", "/v1/files").read("/v1/files", b"").replayable


def test_sessions_that_bodies_name() -> None:
    assert read(CHAT, {"messages": [turn("user", "x")], "prompt_cache_key": "k"}).session == "k"
    assert read(RESPONSES, {"input": "x", "conversation": {"id": "c"}}).session == "c"
    assert read(GENERATE, {"text_input": "x", "sequence_id": 4}).session == "4"


@pytest.mark.parametrize("path", PATHS)
def test_a_prefix_before_the_path_does_not_matter(path: str) -> None:
    assert find("POST", "/tenant/a" + path).name == find("POST", path).name != "bytes"
    assert find("GET", path).name == "bytes"


def test_a_described_call_is_placed_like_a_completion() -> None:
    described = reading_of(Call(prompt="once upon", model="m"))

    assert described.prompt == read(COMPLETIONS, {"model": "m", "prompt": "once upon"}).prompt


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body", [b"", b"null", b"[1]", b'{"messages": []}', b"\xff\xfe", b"{" * 100_000, b"[" * 5000]
)
def test_what_is_not_of_the_form_is_taken_as_bytes(path: str, body: bytes) -> None:
    reading = read(path, body)

    assert reading.prompt == body
    assert reading.prompt_bytes == len(body)
    assert not reading.replayable


def test_half_an_emoji_is_read() -> None:
    assert read(CHAT, b'{"messages":[{"role":"user","content":"\\ud83d"}]}').prompt == b"user\n\xed\xa0\xbd\n"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)
_NAMES = (
    "model messages prompt input tools system max_tokens n best_of stream store text_input inputs shape datatype data "
    "parameters binary_data_size sequence_id role content type text image_url url tool_calls output cache_salt "
    "conversation prompt_cache_key lora_path name instructions"
)
_KEYS = st.sampled_from(_NAMES.split())
_BODY = st.recursive(
    _JSON,
    lambda inner: st.dictionaries(_KEYS, inner, max_size=5) | st.lists(inner, max_size=3),
    max_leaves=25,
)


@given(st.sampled_from(PATHS), st.dictionaries(_KEYS, _BODY, max_size=8) | _BODY)
def test_any_json_is_borne(path: str, body: Any) -> None:
    data = json.dumps(body).encode()
    reading = read(path, data)

    assert 0 <= reading.prompt_bytes <= 1 << 40
    assert reading.extra_tokens >= 0
    assert reading.output_limit is None or reading.output_limit >= 0
    assert fingerprint(reading.prompt) == fingerprint(read(path, data).prompt)


@given(st.sampled_from(PATHS), st.binary(max_size=200))
def test_any_bytes_are_borne(path: str, data: bytes) -> None:
    assert isinstance(read(path, data).prompt, bytes)
