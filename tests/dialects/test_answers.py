"""What dialects see in answers: the commit point, errors inside a 200, usage at the end; cut anywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.core.model import Usage
from mlbalance_client.dialects import Ending, Lacks, Sign, find

SAMPLES = Path(__file__).parent / "samples"
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
EVENTS, JSON = "text/event-stream; charset=utf-8", "application/json"


def events(*data: Any, end: str = "\n\n") -> bytes:
    return "".join(
        f"data: {each if isinstance(each, str) else json.dumps(each)}{end}" for each in data
    ).encode()


def kinds(*pairs: tuple[str, Any]) -> bytes:
    return "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in pairs).encode()


def watched(path: str, chunks: list[bytes], content_type: str = EVENTS) -> tuple[Sign, int, Ending]:
    """The sign at the commit point, the bytes that had come before the deciding chunk, and the ending."""
    watch = find("POST", path).watch(200, content_type)
    sign, before = Sign.PREAMBLE, 0
    for chunk in chunks:
        if sign is Sign.PREAMBLE:
            sign = watch.feed(chunk)
            before += len(chunk) if sign is Sign.PREAMBLE else 0
        else:
            watch.passed(chunk)
    return sign, before, watch.end()


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


ROLE = delta(role="assistant", content="")
USAGE = {
    "choices": [],
    "usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}},
}
FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
ANTHROPIC = kinds(
    (
        "message_start",
        {
            "type": "message_start",
            "message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 40, "output_tokens": 1}},
        },
    ),
    ("content_block_start", {"type": "content_block_start", "index": 0}),
    ("ping", {"type": "ping"}),
    ("content_block_delta", {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "hi"}}),
    ("message_delta", {"type": "message_delta", "usage": {"output_tokens": 7}}),
    ("message_stop", {"type": "message_stop"}),
)
RESPONSE = kinds(
    ("response.created", {"type": "response.created", "response": {"usage": None}}),
    ("response.output_item.added", {"type": "response.output_item.added", "item": {}}),
    ("response.output_text.delta", {"type": "response.output_text.delta", "delta": "hi"}),
    (
        "response.completed",
        {
            "type": "response.completed",
            "response": {
                "output": [{"text": "x" * 20_000}],
                "usage": {
                    "input_tokens": 9,
                    "output_tokens": 4,
                    "input_tokens_details": {"cached_tokens": 8},
                },
            },
        },
    ),
)
STREAMS = [
    pytest.param(CHAT, (SAMPLES / "vllm_stream.sse").read_bytes(), Usage(89, None, 16), id="vllm"),
    pytest.param(CHAT, (SAMPLES / "llamacpp_stream.sse").read_bytes(), Usage(29, 24, 32), id="llama.cpp"),
    pytest.param(
        CHAT, events(ROLE, delta(content="a"), FINISH, USAGE, "[DONE]"), Usage(9, 8, 4), id="usage last"
    ),
    pytest.param(CHAT, events(ROLE, delta(content="a"), FINISH, "[DONE]"), None, id="no usage"),
    pytest.param(MESSAGES, ANTHROPIC, Usage(43, 40, 7), id="anthropic"),
    pytest.param(RESPONSES, RESPONSE, Usage(9, 8, 4), id="responses"),
]


@pytest.mark.parametrize(("path", "stream", "usage"), STREAMS)
def test_a_whole_stream_is_complete_and_tells_its_usage(
    path: str, stream: bytes, usage: Usage | None
) -> None:
    sign, _, ending = watched(path, [stream])

    assert sign is Sign.CONTENT
    assert ending == Ending(usage, None, complete=True)


@pytest.mark.parametrize(("path", "stream", "usage"), STREAMS)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_where_a_stream_is_cut_does_not_matter(
    path: str, stream: bytes, usage: Usage | None, data: st.DataObject
) -> None:
    ends = data.draw(st.sampled_from([b"\n", b"\r\n"]))
    stream = stream.replace(b"\n", ends)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(stream) - 1), max_size=30)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    watch = find("POST", path).watch(200, EVENTS)
    first = next(n for n in range(1, len(stream) + 1) if watch.feed(stream[n - 1 : n]) is not Sign.PREAMBLE)

    sign, before, ending = watched(path, chunks)

    assert ending == Ending(usage, None, complete=True)
    assert sign is Sign.CONTENT
    deciding = next(chunk for chunk, end in zip(chunks, [*cuts, len(stream)], strict=True) if end >= first)
    assert before == stream.index(deciding) or before <= first <= before + len(deciding)


@pytest.mark.parametrize(
    "first",
    [
        delta(content="a"), delta(reasoning_content="a"), delta(reasoning="a"), delta(refusal="no"),
        delta(tool_calls=[{"index": 0}]), FINISH, {"choices": [{"index": 0, "text": "a"}]},
    ],
)  # fmt: skip
def test_anything_beyond_a_role_is_content(first: Any) -> None:
    assert watched(CHAT, [events(ROLE)])[0] is Sign.PREAMBLE
    assert watched(CHAT, [events(ROLE), events(first)])[:2] == (Sign.CONTENT, len(events(ROLE)))


@pytest.mark.parametrize(
    ("path", "stream", "status"),
    [
        (CHAT, (SAMPLES / "vllm_overloaded.sse").read_bytes(), 503),
        (CHAT, events(ROLE, {"error": {"message": "x", "code": "429"}}), 429),
        (CHAT, events({"error": "Model is overloaded", "error_type": "overloaded"}), 429),
        (CHAT, events({"object": "error", "message": "x", "code": 400}), 400),
        (CHAT, b'error: {"code":503,"message":"Loading model","type":"unavailable_error"}\n\n', 503),
        (CHAT, events({"error": {"message": "no code at all"}}), 500),
        (MESSAGES, kinds(("error", {"type": "error", "error": {"type": "overloaded_error"}})), 529),
        (
            RESPONSES,
            kinds(
                (
                    "response.failed",
                    {"type": "response.failed", "response": {"error": {"code": "rate_limit_exceeded"}}},
                )
            ),
            429,
        ),
    ],
)
def test_an_error_in_place_of_content_is_one(path: str, stream: bytes, status: int) -> None:
    watch = find("POST", path).watch(200, EVENTS)

    assert watch.feed(stream) is Sign.ERROR
    assert watch.error is not None
    assert watch.error.status == status


INFER = "/v2/models/double/infer"


@pytest.mark.parametrize(
    ("path", "status", "body", "lacks"),
    [
        (INFER, 404, {"error": "Model double not found"}, Lacks.MODEL),  # MLServer
        (INFER, 400, {"error": "Model double with version 2 is not ready yet."}, Lacks.MODEL),
        (INFER, 404, {"error": "Model with name double does not exist."}, Lacks.MODEL),  # KServe
        (INFER, 404, {"error": "Request for unknown model: 'double' is not found"}, Lacks.MODEL),  # Triton
        (
            CHAT,
            404,
            {"error": {"message": "The model `m` does not exist.", "code": 404}},
            Lacks.MODEL,
        ),  # vLLM
        (CHAT, 404, {"error": {"message": "model 'm' not found"}}, Lacks.MODEL),  # Ollama
        (CHAT, 404, {"error": {"message": "?", "code": "model_not_found"}}, Lacks.MODEL),  # OpenAI
        (
            CHAT,
            400,
            {
                "object": "error",
                "message": "The following requested LoRA adapters are not loaded: a",
                "code": 400,
            },
            Lacks.ADAPTER,  # SGLang
        ),
        (INFER, 422, {"error": "Model double not found"}, None),
        (INFER, 400, {"error": "unexpected input 'the model m does not exist'"}, None),
        (CHAT, 404, {"error": {"message": "File Not Found", "type": "not_found_error", "code": 404}}, None),
        (CHAT, 404, {"detail": "Not Found"}, None),
    ],
)
def test_an_error_tells_whether_a_model_or_an_adapter_is_missing(
    path: str, status: int, body: dict[str, Any], lacks: Lacks | None
) -> None:
    watch = find("POST", path).watch(status, JSON)
    watch.passed(json.dumps(body).encode())
    error = watch.end().error

    assert (error.lacks(status) if error else None) is lacks


@pytest.mark.parametrize(
    ("path", "body", "busy"),
    [
        (CHAT, {"error": {"message": "The engine is currently busy and cannot accept new requests."}}, True),
        (CHAT, {"object": "error", "message": "The request queue is full.", "code": 503}, True),
        (CHAT, {"error": "server busy, please try again.  maximum pending requests exceeded"}, True),
        (CHAT, {"error": "Model is overloaded", "error_type": "overloaded"}, True),
        (CHAT, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}, False),
        (INFER, {"error": "Model with name double is not ready."}, False),
    ],
)
def test_an_error_tells_whether_the_engine_has_too_much_to_do(
    path: str, body: dict[str, Any], busy: bool
) -> None:
    watch = find("POST", path).watch(503, JSON)
    watch.passed(json.dumps(body).encode())
    error = watch.end().error

    assert error is not None
    assert error.busy is busy


def test_an_error_after_content_spoils_the_end() -> None:
    _, _, ending = watched(
        CHAT,
        [events(ROLE, delta(content="a")), events({"error": {"message": "died", "code": 500}}, "[DONE]")],
    )

    assert ending.error is not None
    assert (ending.error.message, ending.complete) == ("died", False)


def test_a_stream_that_just_stops_is_not_complete() -> None:
    assert not watched(CHAT, [events(ROLE, delta(content="a"))])[2].complete


def test_a_long_stream_keeps_only_its_end() -> None:
    many = [events(delta(content="word"))] * 20_000
    sign, _, ending = watched(CHAT, [events(ROLE), *many, events(FINISH, USAGE, "[DONE]")])

    assert (sign, ending) == (Sign.CONTENT, Ending(Usage(9, 8, 4), None, complete=True))


def test_a_preamble_without_end_is_committed() -> None:
    comments = b": waiting\n\n" * 6_000

    assert watched(CHAT, [comments[: 32 * 1024], comments[32 * 1024 :]])[0] is Sign.CONTENT


@pytest.mark.parametrize(
    ("body", "ending"),
    [
        ({"choices": [{}], "usage": USAGE["usage"]}, Ending(Usage(9, 8, 4), None, complete=True)),
        ({"choices": [{}]}, Ending(None, None, complete=True)),
        (
            {"choices": [{}], "usage": {"prompt_tokens": -1, "completion_tokens": "x"}},
            Ending(None, None, complete=True),
        ),
    ],
)
def test_a_whole_body(body: dict[str, Any], ending: Ending) -> None:
    data = json.dumps(body).encode()

    assert watched(CHAT, [data[:5], data[5:]], JSON) == (Sign.CONTENT, 0, ending)


def test_a_huge_body_is_not_kept() -> None:
    chunks = [b'{"data":"' + b"x" * 100_000, *[b"x" * 100_000] * 9, b'"}']

    assert watched("/v1/embeddings", chunks, JSON)[2] == Ending(None, None, complete=True)
    assert not watched("/v1/embeddings", chunks[:-1], JSON)[2].complete


def test_an_unknown_answer_is_committed_at_its_head() -> None:
    assert find("POST", "/predict").watch(200, EVENTS).commits_at_head
    assert not find("POST", CHAT).watch(200, JSON).commits_at_head


@given(st.sampled_from([CHAT, RESPONSES, MESSAGES]), st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_are_borne(path: str, chunks: list[bytes]) -> None:
    _, _, ending = watched(path, chunks)

    assert ending.usage is None or isinstance(ending.usage, Usage)


_NAMES = (
    "choices delta usage error type message response code prompt_tokens prompt_tokens_details cached_tokens timings "
    "finish_reason object"
)


@given(
    st.sampled_from([CHAT, RESPONSES, MESSAGES]),
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(_NAMES.split()),
                inner,
                max_size=4,
            )
        ),
    ),
)
def test_any_event_is_borne(path: str, event: Any) -> None:
    for content_type, data in ((EVENTS, events(event, "[DONE]")), (JSON, json.dumps(event).encode())):
        watched(path, [data], content_type)
