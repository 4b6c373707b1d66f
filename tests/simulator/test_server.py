"""A simulated replica over HTTP: the answers of its APIs, aborts, errors, load pages and controls."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from mlbalance_client.simulator.model.faults import Faults
from mlbalance_client.simulator.model.fleet import Fleet, FleetError
from mlbalance_client.simulator.model.spec import EngineSpec

from ..conftest import eventually

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
RESPONSES, MESSAGES, INFER = "/v1/responses", "/v1/messages", "/v2/models/sim/infer"
GENERATING = [CHAT, COMPLETIONS, RESPONSES, MESSAGES]
OUTPUT = 3
LONG = 10_000_000  # output tokens: more than any test waits for
SAMPLE = re.compile(r'([a-zA-Z_:][\w:]*)(?:\{((?:\w+="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)')


def asked(path: str, text: str = "hello", output: int = OUTPUT, **more: Any) -> dict[str, Any]:
    """A request's body in the form of ``path``."""
    messages = [{"role": "user", "content": text}]
    forms: dict[str, dict[str, Any]] = {
        CHAT: {"messages": messages, "max_tokens": output},
        COMPLETIONS: {"prompt": text, "max_tokens": output},
        EMBEDDINGS: {"input": text},
        RESPONSES: {"input": text, "max_output_tokens": output},
        MESSAGES: {"messages": messages, "max_tokens": output},
        INFER: {"inputs": [{"name": "x", "shape": [2, 1], "datatype": "FP32", "data": [0, len(text)]}]},
    }
    return {"model": "sim", **forms[path], **more}


def text_of(path: str, answer: dict[str, Any]) -> str:
    """The text in a plain answer, or in one event of a stream."""
    found: Any = ""
    match path:
        case "/v1/chat/completions":
            choice = answer["choices"][0] if answer["choices"] else {}
            found = choice.get("message", choice.get("delta", {})).get("content", "")
        case "/v1/completions":
            found = answer["choices"][0]["text"] if answer["choices"] else ""
        case "/v1/responses":
            found = (
                answer["output"][0]["content"][0]["text"] if "output" in answer else answer.get("delta", "")
            )
        case _:
            found = (
                answer["content"][0]["text"]
                if "content" in answer
                else answer.get("delta", {}).get("text", "")
            )
    return str(found)


def cached_of(path: str, answer: dict[str, Any]) -> int:
    usage = answer["usage"]
    match path:
        case "/v1/responses":
            found = usage["input_tokens_details"]["cached_tokens"]
        case "/v1/messages":
            found = usage["cache_read_input_tokens"]
        case _:
            found = usage["prompt_tokens_details"]["cached_tokens"]
    return int(found)


def events(body: str) -> list[tuple[str | None, str]]:
    """The (event, data) pairs of a stream."""
    found = []
    for block in body.split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields.get("event"), fields["data"]))
    return found


def samples(page: str) -> dict[str, float]:
    """A Prometheus page read strictly, one value a series (name and all labels but ``engine`` and ``model_name``)."""
    found: dict[str, float] = {}
    for line in page.splitlines():
        if not line.startswith("#"):
            match = SAMPLE.fullmatch(line)
            assert match, line
            labels = sorted(re.findall(r'(\w+)="([^"]*)"', match[2] or ""))
            name = match[1] + "".join(f"|{k}={v}" for k, v in labels if k not in ("engine", "model_name"))
            assert name not in found, line
            found[name] = float(match[3])
    return found


def client_of(fleet: Fleet) -> httpx.Client:
    return httpx.Client(base_url=fleet.urls[0], trust_env=False, verify=False, timeout=20)


@pytest.fixture
def client(fleet: Fleet) -> Iterator[httpx.Client]:
    with client_of(fleet) as made:
        yield made


@pytest.fixture(scope="module")
def narrow() -> Iterator[Fleet]:
    """One replica that runs one call at a time, the others wait."""
    with Fleet(1, spec=EngineSpec(max_running=1).scaled(20)) as made:
        yield made


@contextmanager
def raw_call(fleet: Fleet, path: str, body: dict[str, Any]) -> Iterator[socket.socket]:
    """A call on a connection of its own, sent and not read; leaving it drops the connection."""
    host, port = fleet.urls[0].removeprefix("http://").split(":")
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {len(data)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head + data)
        yield connection


def holds(fleet: Fleet, **wanted: int) -> bool:
    """Whether the first replica's state comes to be this."""
    return eventually(lambda: {k: fleet.state(0)[k] for k in wanted} == wanted)


# -- plain and streamed answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GENERATING)
def test_a_plain_answer_has_the_tokens_asked_for(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json=asked(path, "x" * 400)).json()

    usage = answer["usage"]
    assert text_of(path, answer).split() == ["tok"] * OUTPUT
    assert usage.get("prompt_tokens", usage.get("input_tokens")) == 100
    assert usage.get("completion_tokens", usage.get("output_tokens")) == OUTPUT
    assert answer["model"] == "sim"


@pytest.mark.parametrize("path", GENERATING)
def test_a_stream_has_the_same_text_in_events(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json=asked(path, output=40, stream=True))

    assert answer.headers["content-type"].startswith("text/event-stream")
    told = [json.loads(data) for _, data in events(answer.text) if data != "[DONE]"]
    whole = "".join(text_of(path, event) for event in told if event.get("type") != "content_block_start")
    assert whole.split() == ["tok"] * 40


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_an_openai_stream_ends_with_done_and_with_usage_only_if_asked(
    client: httpx.Client, path: str
) -> None:
    plain = events(client.post(path, json=asked(path, stream=True)).text)
    full = events(
        client.post(path, json=asked(path, stream=True, stream_options={"include_usage": True})).text
    )

    assert plain[-1] == full[-1] == (None, "[DONE]")
    assert json.loads(plain[-2][1])["choices"][0]["finish_reason"] == "length"
    assert not any('"usage"' in data for _, data in plain)
    last = json.loads(full[-2][1])
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == OUTPUT


def test_a_chat_stream_begins_with_the_role(client: httpx.Client) -> None:
    first = events(client.post(CHAT, json=asked(CHAT, stream=True)).text)[0][1]

    assert json.loads(first)["choices"][0]["delta"] == {"role": "assistant", "content": ""}


@pytest.mark.parametrize(
    ("path", "before", "after"),
    [
        (
            RESPONSES,
            [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
            ],
            ["response.completed"],
        ),
        (
            MESSAGES,
            ["message_start", "ping", "content_block_start"],
            ["content_block_stop", "message_delta", "message_stop"],
        ),
    ],
)
def test_named_events_come_in_the_order_of_the_api(
    client: httpx.Client, path: str, before: list[str], after: list[str]
) -> None:
    told = events(client.post(path, json=asked(path, stream=True)).text)

    names = [name for name, _ in told]
    assert names[: len(before)] == before
    assert names[-len(after) :] == after
    assert all(json.loads(data)["type"] == name for name, data in told)


def test_the_parts_of_a_responses_stream_are_numbered_as_they_come(client: httpx.Client) -> None:
    told = events(client.post(RESPONSES, json=asked(RESPONSES, output=200, stream=True)).text)

    assert [json.loads(data)["sequence_number"] for _, data in told] == list(range(len(told)))


def test_an_embedding_is_a_vector_and_has_no_output(client: httpx.Client) -> None:
    answer = client.post(EMBEDDINGS, json=asked(EMBEDDINGS, "x" * 40)).json()

    assert len(answer["data"][0]["embedding"]) == 3
    assert answer["usage"] == {"prompt_tokens": 10, "total_tokens": 10}


def test_an_inference_gives_as_many_rows_as_it_got(client: httpx.Client, fleet: Fleet) -> None:
    before = fleet.state(0)["finished"]
    answer = client.post(INFER, json=asked(INFER)).json()

    assert answer["model_name"] == "sim"
    assert answer["outputs"][0]["shape"] == [2, 1]
    assert len(answer["outputs"][0]["data"]) == 2
    assert fleet.state(0)["finished"] == before + 1


@pytest.mark.parametrize("path", [*GENERATING, EMBEDDINGS])
def test_a_call_without_a_model_is_served_by_the_one_there_is(path: str, named: Fleet) -> None:
    with client_of(named) as client:
        body = asked(path)
        del body["model"]
        answer = client.post(path, json=body)

    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == 'llm "7b"\\x'


@pytest.fixture(scope="module")
def named() -> Iterator[Fleet]:
    """A replica of a model whose name needs care where it is written down."""
    with Fleet(1, spec=EngineSpec().scaled(20), model='llm "7b"\\x') as made:
        yield made


def test_a_null_limit_is_no_limit_given(client: httpx.Client) -> None:
    body = asked(CHAT, max_completion_tokens=None)

    assert client.post(CHAT, json=body).json()["usage"]["completion_tokens"] == OUTPUT


def test_calls_at_the_same_time_each_get_their_own_answer(client: httpx.Client) -> None:
    def one(number: int) -> tuple[str, int]:
        answer = client.post(CHAT, json=asked(CHAT, f"{number}" * 50, output=number)).json()
        return answer["id"], answer["usage"]["completion_tokens"]

    with ThreadPoolExecutor(8) as threads:
        told = list(threads.map(one, range(1, 25)))

    assert len({name for name, _ in told}) == 24
    assert [tokens for _, tokens in told] == list(range(1, 25))


# -- the prefix cache ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", GENERATING)
def test_a_prompt_sent_twice_is_cached_the_second_time(client: httpx.Client, fleet: Fleet, path: str) -> None:
    text = "x" * 8192 + "tail"
    before = fleet.state(0)["cached_tokens"]
    told = [cached_of(path, client.post(path, json=asked(path, text)).json()) for _ in range(2)]

    assert told == [0, 2048]
    assert fleet.state(0)["cached_tokens"] == before + 2048


def test_a_stream_tells_of_the_cache_too(client: httpx.Client) -> None:
    body = asked(CHAT, "y" * 8192, stream=True, stream_options={"include_usage": True})
    told = [json.loads(events(client.post(CHAT, json=body).text)[-2][1]) for _ in range(2)]

    assert [cached_of(CHAT, event) for event in told] == [0, 2047]


def test_only_the_shared_beginning_is_cached_and_flushing_forgets_it(
    client: httpx.Client, fleet: Fleet
) -> None:
    def cached(text: str) -> int:
        return cached_of(CHAT, client.post(CHAT, json=asked(CHAT, text)).json())

    assert cached("a" * 4096 + "b" * 4096) == 0
    assert cached("a" * 4096 + "c" * 4096) == 1024
    assert cached("d" * 4096 + "b" * 4096) == 0
    fleet.flush()
    assert cached("a" * 4096 + "c" * 4096) == 0


# -- headers, and callers that leave --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stuck() -> Iterator[Fleet]:
    """A replica that never gets to a first token."""
    with Fleet(1, faults=Faults(slow=1e5)) as made:
        yield made


@pytest.mark.parametrize("path", GENERATING)
def test_headers_come_before_the_first_token(stuck: Fleet, path: str) -> None:
    with (
        client_of(stuck) as client,
        client.stream("POST", path, json=asked(path, output=LONG, stream=True)) as answer,
    ):
        assert answer.status_code == 200
        assert holds(stuck, in_flight=1)
        with client_of(stuck) as other:
            assert samples(other.get("/metrics").text)["vllm:generation_tokens_total"] == 0


def test_leaving_a_stream_aborts_the_call(client: httpx.Client, fleet: Fleet) -> None:
    before = fleet.state(0)["aborted"]
    with client.stream("POST", CHAT, json=asked(CHAT, output=LONG, stream=True)) as answer:
        chunks = answer.iter_raw()  # kept: httpx closes the answer with its iterator
        next(chunks)
        assert fleet.state(0)["in_flight"] == 1

    assert holds(fleet, in_flight=0, running=0, waiting=0, aborted=before + 1)


@pytest.mark.parametrize("path", GENERATING)
def test_leaving_before_a_plain_answer_aborts_the_call(narrow: Fleet, path: str) -> None:
    state = narrow.state(0)
    with raw_call(narrow, path, asked(path, output=LONG)):
        assert holds(narrow, in_flight=1, running=1)

    assert holds(narrow, in_flight=0, running=0, aborted=state["aborted"] + 1, finished=state["finished"])


@pytest.mark.parametrize("path", [CHAT, EMBEDDINGS, INFER])
def test_leaving_the_queue_aborts_the_call(narrow: Fleet, path: str) -> None:
    aborted = narrow.state(0)["aborted"]
    with raw_call(narrow, CHAT, asked(CHAT, output=LONG)):
        assert holds(narrow, running=1)
        with raw_call(narrow, path, asked(path)):
            assert holds(narrow, in_flight=2, waiting=1)
        assert holds(narrow, in_flight=1, running=1, waiting=0, aborted=aborted + 1)

    assert holds(narrow, in_flight=0, running=0, aborted=aborted + 2)


def test_half_a_request_is_no_call(fleet: Fleet) -> None:
    host, port = fleet.urls[0].removeprefix("http://").split(":")
    before = fleet.state(0)
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{" % CHAT.encode())

    assert fleet.state(0) == before


# -- what is wrong with a request -----------------------------------------------------------------------------------


MESSAGE = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        (CHAT, {}, "messages"),
        (CHAT, {"messages": []}, "messages"),
        (CHAT, {"messages": "x"}, "messages"),
        (CHAT, {"messages": ["x"]}, "messages"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "text"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "text", "text": 7}]}]}, "text"),
        (CHAT, {"messages": [MESSAGE], "max_tokens": 0}, "limit"),
        (CHAT, {"messages": [MESSAGE], "max_tokens": "4"}, "limit"),
        (CHAT, {"messages": [MESSAGE], "max_tokens": True}, "limit"),
        (COMPLETIONS, {}, "prompt"),
        (COMPLETIONS, {"prompt": 7}, "prompt"),
        (COMPLETIONS, {"prompt": "x", "max_tokens": -1}, "limit"),
        (EMBEDDINGS, {}, "input"),
        (EMBEDDINGS, {"input": 7}, "input"),
        (EMBEDDINGS, {"input": {"a": "b"}}, "input"),
        (RESPONSES, {}, "input"),
        (RESPONSES, {"input": 7}, "input"),
        (RESPONSES, {"input": "x", "max_output_tokens": 1.5}, "limit"),
        (MESSAGES, {"max_tokens": 4}, "messages"),
        (MESSAGES, {"messages": [MESSAGE], "max_tokens": [], "system": "s"}, "limit"),
    ],
)
def test_a_malformed_request_gets_400_and_hears_what_is_wrong(
    client: httpx.Client, fleet: Fleet, path: str, body: dict[str, Any], said: str
) -> None:
    answer = client.post(path, json=body)

    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert said in error["message"]
    assert (error["code"], error["type"]) == (400, "BadRequestError")
    assert fleet.state(0)["in_flight"] == 0


@pytest.mark.parametrize("content", [b"", b"{nope", b"[]", b"7", b"\xff\xfe", b"[" * 50_000])
def test_a_body_that_is_no_json_object_gets_400(client: httpx.Client, content: bytes) -> None:
    answer = client.post(CHAT, content=content)

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b'{"inputs": []}',
        b'{"inputs": [{"shape": []}]}',
        b'{"inputs": [{"shape": ["x"]}]}',
        b'{"inputs": [{"shape": [-1]}]}',
        b'{"inputs": [{"shape": [10000000000000]}]}',
        b"[" * 50_000,
    ],
)
def test_an_inference_without_a_sound_shape_gets_400(client: httpx.Client, content: bytes) -> None:
    answer = client.post(INFER, content=content)

    assert answer.status_code == 400, answer.text
    assert "shape" in answer.json()["error"]


@pytest.mark.parametrize("path", [*GENERATING, EMBEDDINGS])
def test_an_unknown_model_gets_404_and_is_named(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json=asked(path, model="gpt-9"))

    assert answer.status_code == 404
    assert "`gpt-9`" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "model"


def test_an_inference_on_an_unknown_model_gets_404_and_names_it(client: httpx.Client) -> None:
    answer = client.post("/v2/models/gpt-9/infer", json=asked(INFER))

    assert answer.status_code == 404
    assert "gpt-9" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/", "/nope", "/v2/models/gpt-9/ready", "/_sim/nope"])
def test_an_unknown_path_gets_404(client: httpx.Client, path: str) -> None:
    answer = client.get(path)

    assert (answer.status_code, answer.json()) == (404, {"detail": "Not Found"})


# -- pages about the replica ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/ping", "/v2/health/live", "/v2/health/ready"])
def test_health_is_200_and_says_nothing(client: httpx.Client, path: str) -> None:
    answer = client.get(path)

    assert (answer.status_code, answer.content) == (200, b"")


def test_what_it_is(client: httpx.Client) -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", client.get("/version").json()["version"])
    assert [row["id"] for row in client.get("/v1/models").json()["data"]] == ["sim"]
    assert client.get("/is_sleeping").json() == {"is_sleeping": False}
    assert client.get("/v2/models/sim/ready").json() == {"name": "sim", "ready": True}


def test_metrics_have_vllms_names(client: httpx.Client) -> None:
    answer = client.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=")
    assert set(samples(answer.text)) >= {
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:num_requests_waiting_by_reason|reason=capacity",
        "vllm:num_requests_waiting_by_reason|reason=deferred",
        "vllm:kv_cache_usage_perc",
        "vllm:prefix_cache_queries_total",
        "vllm:prefix_cache_hits_total",
        "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total",
        "vllm:num_preemptions_total",
        "vllm:cache_config_info|block_size=16|num_gpu_blocks=62500",
    }


def test_every_metric_has_its_type_on_the_line_above_as_vllm_writes_it(client: httpx.Client) -> None:
    page = client.get("/metrics").text
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page, re.MULTILINE))

    for name in {series.split("|")[0] for series in samples(page)}:
        assert types.get(name) == ("counter" if name.endswith("_total") else "gauge"), name


def test_prometheus_own_parser_reads_the_page(client: httpx.Client) -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    families = list(parser.text_string_to_metric_families(client.get("/metrics").text))

    assert {f.type for f in families} == {"counter", "gauge"}
    assert "vllm:prefix_cache_queries" in {f.name for f in families}


def test_a_models_name_is_escaped_in_metrics(named: Fleet) -> None:
    with client_of(named) as client:
        page = client.get("/metrics").text

    assert samples(page)["vllm:num_requests_running"] == 0
    assert r'model_name="llm \"7b\"\\x"' in page


def test_metrics_count_prompt_output_and_hits(client: httpx.Client) -> None:
    names = ["prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits"]
    before = samples(client.get("/metrics").text)
    for _ in range(2):
        client.post(CHAT, json=asked(CHAT, "z" * 8192, output=5))
    after = samples(client.get("/metrics").text)

    grown = [after[f"vllm:{name}_total"] - before[f"vllm:{name}_total"] for name in names]
    assert grown == [4096, 10, 4096, 2047]


def test_all_pages_tell_of_the_same_load(narrow: Fleet) -> None:
    with client_of(narrow) as client, raw_call(narrow, CHAT, asked(CHAT, "x" * 4000, output=LONG)):
        assert holds(narrow, running=1, prefill_tokens_outstanding=0)
        with raw_call(narrow, CHAT, asked(CHAT)), raw_call(narrow, CHAT, asked(CHAT, "x" * 400)):
            assert holds(narrow, running=1, waiting=2)
            page = samples(client.get("/metrics").text)
            row = client.get("/v1/loads").json()["loads"][0]

            assert client.get("/load").json() == {"server_load": 3}
            assert page["vllm:num_requests_running"] == row["num_running_reqs"] == 1
            assert page["vllm:num_requests_waiting"] == row["num_waiting_reqs"] == 2
            assert page["vllm:num_requests_waiting_by_reason|reason=capacity"] == 2
            assert 0.001 <= page["vllm:kv_cache_usage_perc"] < 1
            assert row["num_waiting_uncached_tokens"] == 101
            assert row["max_running_requests"] == 1

    assert holds(narrow, in_flight=0, running=0, waiting=0)
    with client_of(narrow) as client:
        assert client.get("/load").json() == {"server_load": 0}
        assert samples(client.get("/metrics").text)["vllm:kv_cache_usage_perc"] == 0


# -- controls --------------------------------------------------------------------------------------------------------


def test_the_state_counts_what_was_seen(client: httpx.Client, fleet: Fleet) -> None:
    before = fleet.state(0)
    client.post(CHAT, json=asked(CHAT, "w" * 400))
    client.post(CHAT, content=b"nonsense")
    after = fleet.state(0)

    assert after["seen"] - before["seen"] == 2
    assert after["finished"] - before["finished"] == 1
    assert after["prompt_tokens"] - before["prompt_tokens"] == 100
    assert after["work_s"] > before["work_s"]
    assert len(fleet.states()) == 3


def test_a_quote_is_higher_for_a_longer_prompt_and_lower_for_a_cached_one(fleet: Fleet) -> None:
    def quote(tokens: int) -> float:
        job = {"blocks": list(range(tokens // 512)), "block_tokens": 512, "prompt_tokens": tokens}
        return float(fleet.control(1, "quote", job)["score_s"])

    assert 0 < quote(1024) < quote(8192)


@pytest.mark.parametrize(
    ("what", "body", "said"),
    [
        ("quote", {}, "blocks"),
        ("quote", {"blocks": 5, "block_tokens": 512, "prompt_tokens": 9}, "blocks"),
        ("quote", [1], "object"),
        ("faults", [1], "object"),
        ("nope", {}, "Not Found"),
    ],
)
def test_a_control_that_cannot_be_is_refused_by_name(fleet: Fleet, what: str, body: Any, said: str) -> None:
    with pytest.raises(FleetError, match=said):
        fleet.control(0, what, body)
