"""The shipped traces, and files of the same form."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.simulator.model.traces import (
    TraceCall,
    TraceError,
    job_of,
    job_of_text,
    load,
    prompt_text,
)


def test_the_shipped_traces_are_what_their_readme_says() -> None:
    conversation, code = load("conversation"), load("code")

    assert [c.index for c in conversation.calls] == list(range(2000, 5500))
    assert len({c.blocks[0] for c in conversation.calls if c.blocks}) == 1
    assert len(code.calls) == 8000
    assert all(c.blocks is None for c in code.calls)


def test_a_window_starts_at_zero_and_a_rate_shortens_it() -> None:
    window = load("conversation").window(3000, 3100)

    assert window.calls[0].t_s == 0
    assert len(window.calls) == 100
    assert window.at_rate(2).duration_s == pytest.approx(window.duration_s / 2)


def test_text_has_the_recorded_size_and_shares_what_the_blocks_share() -> None:
    first, second = load("conversation").calls[:2]
    texts = prompt_text(first), prompt_text(second)

    assert [len(t) for t in texts] == [4 * first.prompt_tokens, 4 * second.prompt_tokens]
    assert texts[0][:2048] == texts[1][:2048]
    assert texts[0][2048:4096] != texts[1][2048:4096]


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), max_size=6))
def test_a_replica_finds_the_same_shared_blocks_in_the_text(one: list[int], two: list[int]) -> None:
    def depth(a: tuple[int, ...], b: tuple[int, ...]) -> int:
        return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    calls = [TraceCall(i, 0.0, 512 * len(ids) + 100, 5, tuple(ids)) for i, ids in enumerate((one, two))]
    by_id = [job_of(call, "j").blocks for call in calls]
    by_text = [job_of_text(prompt_text(call).encode(), 5, "j").blocks for call in calls]

    assert depth(*by_id) == depth(*by_text)
    assert [len(b) for b in by_id] == [len(b) for b in by_text]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1"),
        ("[]", "JSON object"),
        ('{"t": -1, "in": 1, "out": 1}', "'t'"),
        ('{"t": 0, "in": 0, "out": 1}', "'in'"),
        ('{"t": 0, "in": 1, "out": "x"}', "'out'"),
        ('{"t": 0, "in": 1, "out": 1, "blocks": ["a"]}', "'blocks'"),
        ("", "no calls"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "t.jsonl").write_text(line)

    with pytest.raises(TraceError, match=said):
        load(tmp_path / "t.jsonl")


def test_a_missing_file_names_the_shipped_ones(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="conversation, code"):
        load(tmp_path / "none")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_trace_or_a_trace_error(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("t") / "x"
    path.write_bytes(data)
    with contextlib.suppress(TraceError):
        load(path)
