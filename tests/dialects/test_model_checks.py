"""The smallest call of each API: of that API, for that model, of one token, and cheap."""

from __future__ import annotations

import json

import pytest

from mlbalance_client.dialects import ChecksModels, find


@pytest.mark.parametrize("model", ["m", "a/b", None])
@pytest.mark.parametrize("prefix", ["", "/openai"])
@pytest.mark.parametrize(
    ("path", "most_output"),
    [
        ("/v1/chat/completions", 1),
        ("/v1/completions", 1),
        ("/v1/embeddings", 0),
        ("/v1/responses", 1),
        ("/v1/messages", 1),
    ],
)
def test_a_check_is_the_smallest_call_of_its_api(
    prefix: str, path: str, most_output: int, model: str | None
) -> None:
    dialect = find("POST", prefix + path)
    assert isinstance(dialect, ChecksModels)
    check = dialect.model_check(prefix + path, model)
    assert check is not None
    reading = dialect.read(check.path, check.body)

    assert (check.method, check.path) == ("POST", prefix + path)
    assert reading.dialect == dialect.name
    assert (reading.model, reading.output_limit, reading.streaming) == (model, most_output, False)
    assert reading.replayable
    assert reading.prompt_bytes <= check.tokens <= 50
    assert ("model" in json.loads(check.body)) is (model is not None)


@pytest.mark.parametrize("verb", ["infer", "versions/3/infer", "generate", "generate_stream"])
def test_of_the_open_inference_protocol_it_is_the_models_readiness(verb: str) -> None:
    dialect = find("POST", f"/p/v2/models/m/{verb}")
    assert isinstance(dialect, ChecksModels)
    check = dialect.model_check(f"/p/v2/models/m/{verb}", "m")
    assert check is not None
    assert (check.method, check.path, check.body, check.tokens) == ("GET", "/p/v2/models/m/ready", b"", 0)


def test_what_is_unknown_has_none() -> None:
    assert not isinstance(find("POST", "/predict"), ChecksModels)
