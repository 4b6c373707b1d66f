"""The load board by itself, its clock in hand: counts, beliefs, states, grants."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.load.format import decode_header, decode_load, decode_prefixes
from mlbalance_client.core.load.prefix_delta import Hashing
from mlbalance_client.core.load.report import State
from mlbalance_client.core.load.room import Turns, part
from mlbalance_client.dialects import find
from mlbalance_client.dialects.plain import reading_of
from mlbalance_client.errors import ConfigError
from mlbalance_client.reporter import BoardCall, LoadBoard, ReporterSettings, snapshot
from mlbalance_client.reporter.acks import Acks
from mlbalance_client.reporter.grants import Grants
from mlbalance_client.reporter.subscriber import Subscriber


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def board_of(clock: Clock | None = None, **given: Any) -> LoadBoard:
    return LoadBoard(
        ReporterSettings(**{"gpu": False, **given}), clock=clock or Clock(), epoch="e", first_seq=100
    )


def load(board: LoadBoard, client: str | None = None) -> Any:
    board.clock.now += 1  # type: ignore[attr-defined] # past what a report is shared for
    return decode_load(snapshot(board, client), at=0.0, client=client)


def test_a_call_is_counted_in_and_out() -> None:
    board = board_of()
    call = board.begin(prompt_tokens=1000, max_output_tokens=50)

    report = load(board)
    assert (report.running, report.waiting, report.prefill_tokens, report.decode_tokens) == (1, 0, 1000, 50)

    call.first_content()
    call.progress(20)
    report = load(board)
    assert (report.running, report.prefill_tokens, report.decode_tokens) == (1, 0, 30)

    call.succeed(output_tokens=20)
    report = load(board)
    assert (report.running, report.waiting, report.prefill_tokens, report.decode_tokens) == (0, 0, 0, 0)


def test_the_oldest_prompts_within_one_step_run_and_the_rest_wait() -> None:
    board = board_of(step_tokens=1000)
    decoding = board.begin(prompt_tokens=5000)
    decoding.first_content()
    for _ in range(4):
        board.begin(prompt_tokens=600)

    report = load(board)
    assert (report.running, report.waiting) == (3, 2)


def test_no_more_run_than_the_batch_holds() -> None:
    board = board_of(batch_limit=2)
    for _ in range(5):
        board.begin(prompt_tokens=10)

    report = load(board)
    assert (report.running, report.waiting, report.free_requests) == (2, 3, 0)


def test_rates_are_learned_and_the_oldest_prompt_drains() -> None:
    clock = Clock()
    board = board_of(clock, wait_target_s=2.0)
    first = board.begin(prompt_tokens=10_000, max_output_tokens=2000)
    clock.now += 1
    first.first_content()
    first.progress(2000)
    clock.now += 4
    first.succeed(output_tokens=2000)
    assert load(board).prefill_tokens_per_s == 10_000
    assert load(board).decode_tokens_per_s == 500
    assert load(board).free_tokens == 20_000

    board.begin(prompt_tokens=30_000)
    report = load(board)
    assert report.prefill_tokens == 20_000
    assert report.expected_wait_s == 2.0
    assert report.free_tokens == 0


def test_tokens_of_prompts_begun_together_do_not_look_infinitely_fast() -> None:
    clock = Clock()
    board = board_of(clock)
    calls = [board.begin(prompt_tokens=1000) for _ in range(4)]
    clock.now += 1
    for call in calls:
        call.first_content()

    assert load(board).prefill_tokens_per_s == pytest.approx(4000, rel=0.1)


def test_whole_answers_pass_their_prefill_by_time() -> None:
    clock = Clock()
    board = board_of(clock, step_tokens=1)
    seen = board.begin(prompt_tokens=10_000)
    clock.now += 1
    seen.first_content()
    board.begin(prompt_tokens=5000, max_output_tokens=10, streaming=False)
    board.begin(prompt_tokens=20_000, max_output_tokens=10, streaming=False)

    assert load(board).prefill_tokens == 15_000  # 0.5 s for the one, 0.5 s of 2 s for the other
    assert load(board).prefill_tokens == 5000


def test_bytes_a_token_and_outputs_are_learned_from_usage() -> None:
    board = board_of()
    for _ in range(40):
        board.begin(prompt="x" * 60_000, max_output_tokens=5000).succeed(
            prompt_tokens=30_000, output_tokens=7
        )
    board.begin(prompt="y" * 60_000, max_output_tokens=5000)

    report = load(board)
    assert report.prefill_tokens == pytest.approx(30_000, rel=0.05)
    assert report.decode_tokens == 7


def test_a_request_over_http_is_read_as_clients_read_it() -> None:
    board, path = board_of(), "/v1/chat/completions"
    text = "Once upon a time. " * 1000
    body = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 50}).encode()
    call = board.begin_request(path, body, "client.7")
    assert load(board, "client").acked == 7
    assert load(board).decode_tokens == 50
    call.succeed()

    asked = find("POST", path).read(path, body).prompt
    assert set(fingerprint(asked).chain) <= held(board)


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/predict"])
def test_a_body_that_is_not_understood_counts_by_its_size(path: str) -> None:
    board = board_of()
    board.begin_request(path, b"{" * 40_000)
    report = load(board)
    assert report.prefill_tokens == 10_000
    assert not report.decode_tokens


def prefixes(board: LoadBoard, number: int | None = None) -> Any:
    _, found = board.publisher.prefixes(number)
    return [decode_prefixes(event.partition(b"data: ")[2].strip()) for event in found]


def held(board: LoadBoard) -> set[int]:
    load(board)  # seals a page
    return set(prefixes(board)[0].add)


def chain(prompt: str) -> tuple[int, ...]:
    class Described:
        model = max_output_tokens = None
        streaming = True

        def __init__(self) -> None:
            self.prompt = prompt

    return fingerprint(reading_of(Described()).prompt).chain


def test_chains_are_those_of_the_clients_and_what_is_cached_is_not_computed_again() -> None:
    board = board_of()
    prompt = "a" * 40_960
    board.begin(prompt=prompt).succeed()
    assert held(board) == set(chain(prompt))

    board.begin(prompt=prompt + "b" * 4096)
    assert load(board).prefill_tokens < 2000


def test_hashes_are_keyed_by_a_secret() -> None:
    board = board_of(secret="s" * 64)
    board.begin(prompt="a" * 4096).succeed()
    load(board)

    delta = prefixes(board)[0]
    assert delta.hashing == Hashing.by(b"s" * 64)
    assert delta.hashing.scheme == "blake2b-64/1024/1"
    assert set(delta.add).isdisjoint(chain("a" * 4096))


def test_what_was_never_computed_is_not_held() -> None:
    board = board_of()
    board.begin(prompt="a" * 4096).fail()
    assert held(board) == set()

    call = board.begin(prompt="a" * 4096)
    call.first_content()
    call.fail()
    assert held(board) == set(chain("a" * 4096))


def test_no_more_is_held_than_the_cache_holds_the_oldest_goes_first() -> None:
    board = board_of(kv_tokens=1024)  # 4 blocks at 4 bytes a token
    board.begin(prompt="a" * 3072).succeed()
    board.begin(prompt="b" * 3072).succeed()

    assert held(board) == {*chain("b" * 3072), *chain("a" * 3072)[:1]} or len(held(board)) == 4
    assert set(chain("b" * 3072)) <= held(board)


def test_an_engine_that_says_less_was_cached_corrects_what_is_believed() -> None:
    board = board_of()
    old, lost, fresh = "o" * 8192, "l" * 8192, "f" * 8192
    for prompt in (old, lost, fresh):
        board.begin(prompt=prompt).succeed()
    board.begin(prompt=lost).succeed(cached_tokens=0)

    assert held(board) == {*chain(lost), *chain(fresh)}  # what was older than what was lost is lost too


def test_an_engine_that_caches_nothing_holds_nothing() -> None:
    board = board_of()
    for _ in range(20):
        board.begin(prompt="a" * 8192).succeed(cached_tokens=0)

    assert held(board) == set()


def test_states_from_starting_to_draining() -> None:
    board = board_of()
    states = [load(board).state]
    board.starting()
    states.append(load(board).state)
    board.starting(False)
    board.refused()
    states.append(load(board).state)
    board.begin(model="m").succeed()
    states.append(load(board).state)
    board.refused()
    states.append(load(board).state)
    board.clock.now += 2  # type: ignore[attr-defined]
    states.append(load(board).state)
    board.drain()
    states.append(load(board).state)

    assert states == [
        State.WARMING, State.STARTING, State.STARTING, State.READY, State.OVERLOADED, State.READY, State.DRAINING,
    ]  # fmt: skip
    assert load(board).models == {"m": "ready"}
    assert load(board).free_tokens == 0


def test_a_success_that_came_before_the_refusal_does_not_end_it() -> None:
    board = board_of(overloaded_s=60)
    board.begin().succeed()
    before = board.begin()
    board.clock.now += 1  # type: ignore[attr-defined]
    board.refused()
    before.succeed()
    assert load(board).state is State.OVERLOADED

    board.begin().succeed()
    assert load(board).state is State.READY


def test_models_are_bounded_and_only_those_that_served() -> None:
    board = board_of()
    board.begin(model="never").fail()
    for number in range(100):
        board.begin(model=f"m{number}").succeed()

    assert len(load(board).models) == 64
    assert "never" not in load(board).models


def test_names_that_clients_choose_are_cut() -> None:
    board = board_of()
    board.begin(model="m" * 10_000).succeed()

    assert load(board).models == {"m" * 256: "ready"}


def test_a_client_is_told_which_of_its_calls_are_counted() -> None:
    board = board_of()
    assert load(board, "c").acked is None
    board.begin(call_id="c.7")
    board.begin(call_id="c.5")
    board.begin(call_id="other.9")

    assert load(board, "c").acked == 7
    assert load(board, "other").acked == 9
    assert load(board, "nobody").acked is None


def test_a_call_is_acknowledged_only_by_a_report_that_counts_it() -> None:
    board = board_of()
    board.begin(call_id="c.1")
    first = load(board, "c")
    board.begin(call_id="c.2")
    header = board.publisher.header(
        "c", board.clock()
    )  # in the same moment: the report of before serves again

    assert decode_header(header, at=0.0) == replace(first, source="answer", models={})
    assert (first.running, first.acked) == (1, 1)
    assert load(board, "c").acked == 2


@pytest.mark.parametrize(
    "call_id", ["", "c", "c.", ".1", "c.-1", "c.1x", "a b.1", "c.1" + "0" * 20, "x" * 99 + ".1"]
)
def test_what_is_no_call_id_is_ignored(call_id: str) -> None:
    board = board_of()
    board.begin(call_id=call_id).succeed()

    assert len(board.acks) == 0


def test_clients_are_bounded_the_most_recent_stay() -> None:
    acks = Acks(most_clients=10)
    for number in range(100):
        acks.count(f"c{number}.1", 0)

    assert len(acks) == 10
    assert acks.acked("c99", 1) == 1
    assert acks.acked("c0", 1) is None


@given(
    st.lists(st.integers(0, 50), min_size=1, max_size=40),
    st.integers(0, 10_000),
    st.integers(1, 5_000),
    st.lists(st.floats(0.1, 5), max_size=5),
)
def test_what_subscribers_are_granted_adds_up_to_the_room_in_whole_calls(
    calls: list[int], room: int, unit: int, steps: list[float]
) -> None:
    acks = Acks()
    grants = Grants(acks)
    places = [grants.admit(f"c{number}") for number in range(len(calls))]
    now = 0.0
    for step in [0.0, *steps]:
        now += step
        for number, count in enumerate(calls):
            for call in range(count):
                acks.count(f"c{number}.{call}", 0)
        shares = [grants.share(place, room, now, unit) for place in places]

        assert all(share >= 0 and share % unit == 0 for share in shares)
        assert abs(sum(shares) - room) < unit
        assert sum(grants.share(place, room, now) for place in places) == room


def test_tokens_are_not_negative() -> None:
    board = board_of()
    with pytest.raises(ValueError, match="prompt_tokens is -4, and may not be negative"):
        board.begin(prompt_tokens=-4)
    with pytest.raises(ValueError, match="max_output_tokens is -4, and may not be negative"):
        board.begin(max_output_tokens=-4)

    assert board.report(0.0).running == 0


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"prompt": 3}, "prompt is 3, and must be str or bytes"),
        ({"prompt": None}, "prompt is None, and must be str or bytes"),
        ({"prompt_tokens": "x"}, "prompt_tokens is 'x', and must be a whole number of tokens"),
        ({"prompt_tokens": 1.5}, "prompt_tokens is 1.5, and must be a whole number of tokens"),
        ({"prompt_tokens": True}, "prompt_tokens is True, and must be a whole number of tokens"),
        ({"max_output_tokens": True}, "max_output_tokens is True, and must be a whole number of tokens"),
        ({"model": 4}, "model is 4, and must be str"),
        ({"call_id": b"c.1"}, "call_id is b'c.1', and must be str"),
    ],
)
def test_what_is_of_another_type_is_refused_and_not_counted(what: dict[str, Any], said: str) -> None:
    board = board_of()
    with pytest.raises(TypeError, match=f"^{re.escape(said)}$"):
        board.begin(**what)

    assert board.report(0.0).running == 0


def test_a_model_is_said_to_be_in_a_state_that_there_is() -> None:
    board = board_of()
    board.set_model("llama", State.WARMING)
    board.set_model("qwen", "asleep")
    said = "^state is 'snoring'; known: starting, warming, ready, draining, overloaded, asleep$"
    with pytest.raises(ValueError, match=said):
        board.set_model("llama", "snoring")
    with pytest.raises(ValueError, match="state is None; known"):
        board.set_model("llama", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="model is 4, and must be str"):
        board.set_model(4, "ready")  # type: ignore[arg-type]

    assert load(board).models == {"llama": "warming", "qwen": "asleep"}


def test_calls_count_while_the_server_ends() -> None:
    board = board_of()
    board.close()
    with board.begin(prompt_tokens=100):
        assert (load(board).running, load(board).state) == (1, State.DRAINING)
    assert load(board).running == 0


def test_a_room_for_less_than_a_call_is_granted_as_often_as_there_is_one() -> None:
    grants = Grants(Acks())
    places = [grants.admit(f"c{number}") for number in range(20)]

    granted = [grants.share(place, 1_000, tick * 0.13, 4_000) for tick in range(2_000) for place in places]

    assert set(granted) == {0, 4_000}
    assert sum(granted) == pytest.approx(2_000 * 1_000, rel=0.1)
    assert all(any(granted[number::20]) for number in range(20)), "everybody's turn comes"


@pytest.mark.parametrize("period_s", [0.1, 0.5, 1.3, 1.9])
def test_a_turn_comes_at_whatever_period_a_client_hears(period_s: float) -> None:
    turns = Turns(seed=1)
    waited = longest = 0
    for report in range(1_000):
        waited = 0 if part(4_000, 0.5, 0.5 + 1 / 16, turns.cuts(report * period_s), 4_000) else waited + 1
        longest = max(longest, waited)

    assert longest < 150, "16 clients: 16 reports on average"


def test_boards_take_turns_apart() -> None:
    own = [[Turns(seed).cuts(tick / 10) for tick in range(10)] for seed in range(20)]

    assert len({tuple(cuts) for cuts in own}) == 20


@pytest.mark.parametrize(("standing", "whole"), [(1, False), (3, True)])
def test_room_comes_in_slivers_until_half_the_target_stands_then_in_calls(standing: int, whole: bool) -> None:
    clock = Clock()
    board = board_of(clock, wait_target_s=5.0)
    for _ in range(20):  # 1,000 tokens a second
        call = board.begin(prompt_tokens=1_000, max_output_tokens=1)
        clock.now += 1.0
        call.first_content()
        call.succeed(output_tokens=1)
    for _ in range(standing):
        board.begin(prompt_tokens=1_000, max_output_tokens=1)
    grants = board.publisher.grants
    places = [grants.admit(f"c{number}") for number in range(8)]

    told = board.publisher.newest(clock.now)
    free = [
        json.loads(board.publisher.load(told, place.client, place, clock.now))["free"]["tokens"]
        for place in places
    ]

    assert sum(free) == pytest.approx(5_000 - 1_000 * standing, abs=1_000 if whole else 300)
    assert all(tokens % 1_000 == 0 for tokens in free) is whole


def test_who_sends_more_is_granted_more_and_a_small_room_goes_round() -> None:
    acks = Acks()
    grants = Grants(acks)
    places = [grants.admit(f"c{number}") for number in range(10)]
    got = [0] * 10
    for second in range(200):
        for call in range(9):
            acks.count(f"c0.{call}", 0)
        for number, place in enumerate(places):
            got[number] += grants.share(place, 3, second * 1.1)

    assert got[0] > 2 * max(got[1:])
    assert min(got) > 0


def test_settings_come_from_the_environment() -> None:
    env = {
        "MLBALANCE_REPORTER_REPLICA": "llm-7",
        "MLBALANCE_REPORTER_KV_TOKENS": "300000",
        "MLBALANCE_REPORTER_PATHS": "/predict, /score",
        "MLBALANCE_REPORTER_TOKEN": "",
        "MLBALANCE_TARGET": "static://x",
    }
    found = ReporterSettings.from_env(env, kv_tokens=7)

    assert (found.replica, found.kv_tokens, found.paths, found.token) == (
        "llm-7",
        7,
        ("/predict", "/score"),
        None,
    )


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"MLBALANCE_REPORTER_KV_TOKENS": "many"}, "MLBALANCE_REPORTER_KV_TOKENS"),
        ({"MLBALANCE_REPORTER_KV": "1"}, "no such setting"),
        ({"MLBALANCE_REPORTER_SECRET": "s" * 65}, "1 to 64 bytes"),
    ],
)
def test_wrong_settings_are_named_without_secrets(env: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        ReporterSettings.from_env(env)

    assert "s" * 65 not in str(caught.value)


def test_an_empty_token_is_refused_for_nobody_could_give_it() -> None:
    with pytest.raises(ConfigError, match="token: is empty; leave it out where none is demanded"):
        ReporterSettings.from_env({}, token="")


def test_a_token_with_its_word_is_refused_for_clients_put_the_word_before_it() -> None:
    with pytest.raises(ConfigError, match="MLBALANCE_REPORTER_TOKEN: begins with the word Bearer"):
        ReporterSettings.from_env({"MLBALANCE_REPORTER_TOKEN": "Bearer s3cret"})


@pytest.mark.parametrize("token", [" ", " s3cret", "s3cret\n"])
def test_a_token_with_white_space_around_it_is_refused_for_no_header_bears_it(token: str) -> None:
    with pytest.raises(
        ConfigError, match="MLBALANCE_REPORTER_TOKEN: begins or ends with white space"
    ) as caught:
        ReporterSettings.from_env({"MLBALANCE_REPORTER_TOKEN": token})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("token", ["schlüssel", "s3\ncret"])
def test_a_token_that_cannot_be_in_a_header_is_refused(token: str) -> None:
    with pytest.raises(ConfigError, match="token: has characters that cannot be in a header") as caught:
        ReporterSettings.from_env({}, token=token)
    assert token not in str(caught.value)


def test_every_setting_is_on_its_page() -> None:
    page = (Path(__file__).parents[2] / "docs/reporter.md").read_text()

    assert [name for name in ReporterSettings.model_fields if f"`{name}`" not in page] == []


class Board(RuleBasedStateMachine):
    """Any order of anything: what is reported follows from the calls that are there, and nothing is left over."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.board = board_of(self.clock, kv_tokens=4096)
        self.calls: list[BoardCall] = []

    @rule(
        tokens=st.none() | st.integers(0, 50_000),
        prompt=st.sampled_from(["", "a" * 5000, "a" * 9000, "b" * 3000]),
        limit=st.none() | st.integers(0, 1000),
        streaming=st.booleans(),
        call_id=st.none() | st.text(max_size=8),
    )
    def begin(self, **given: Any) -> None:
        given["prompt_tokens"] = given.pop("tokens")
        given["max_output_tokens"] = given.pop("limit")
        self.calls.append(self.board.begin(**given))

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), tokens=st.integers(0, 500))
    def advance(self, data: st.DataObject, tokens: int) -> None:
        call = data.draw(st.sampled_from(self.calls))
        call.first_content()
        call.progress(tokens)

    @precondition(lambda self: self.calls)
    @rule(
        data=st.data(),
        figures=st.fixed_dictionaries(
            {
                n: st.none() | st.integers(0, 10**9)
                for n in ("prompt_tokens", "cached_tokens", "output_tokens")
            }
        ),
        served=st.booleans(),
        again=st.booleans(),
    )
    def end(self, data: st.DataObject, figures: dict[str, Any], served: bool, again: bool) -> None:
        call = data.draw(st.sampled_from(self.calls))
        if not again:
            self.calls.remove(call)
        for _ in range(1 + again):
            call.succeed(**figures) if served else call.fail()
        if again:
            self.calls.remove(call)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def refuse(self) -> None:
        self.board.refused()

    @invariant()
    def reports_hold(self) -> None:
        report = load(self.board)

        assert report.running + report.waiting == len(self.calls)
        assert report == report.sane()
        assert 0 <= report.kv_used <= 1
        assert len(self.board.chains) <= self.board.chains.capacity
        if not self.calls:
            assert (report.prefill_tokens, report.decode_tokens, report.expected_wait_s) == (0, 0, 0.0)


TestBoard = Board.TestCase
TestBoard.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


class _Waiter:
    def __init__(self) -> None:
        self.woken = 0

    def wake(self, foreign: bool, in_s: float = 0.0) -> None:
        self.woken += 1

    def give_up(self) -> None:
        raise AssertionError


def _told(board: LoadBoard) -> tuple[Subscriber, _Waiter]:
    """A subscriber that has been told of the board as it is, and waits."""
    waiter = _Waiter()
    subscriber = board.publisher.subscribe(None, None, waiter)
    assert subscriber.next()
    return subscriber, waiter


def _told_and_waits(board: LoadBoard) -> tuple[Subscriber, _Waiter]:
    subscriber, waiter = _told(board)
    subscriber.pause()
    return subscriber, waiter


def _granted(subscriber: Subscriber) -> int:
    """How many requests it is told of now, if anything."""
    for line in (subscriber.next() or b"").splitlines():
        if line.startswith(b"data: {") and b'"free"' in line:
            return int(json.loads(line[6:])["free"]["requests"])
    return 0


def test_a_small_change_waits_and_a_large_one_is_told_at_once() -> None:
    clock = Clock()
    board = board_of(clock)
    subscriber, waiter = _told(board)
    wait_s, wakeable = subscriber.pause()
    assert (wait_s, wakeable) == (0.5, True)

    clock.now += 0.1
    board.begin(prompt_tokens=500)
    assert waiter.woken == 0

    board.begin(prompt_tokens=5000)
    assert waiter.woken == 1
    assert b'"running":2' in (subscriber.next() or b"")


def test_small_changes_that_add_up_are_a_large_one() -> None:
    clock = Clock()
    board = board_of(clock)
    subscriber, waiter = _told(board)
    subscriber.pause()
    clock.now += 0.1
    for _ in range(10):
        board.begin(prompt_tokens=500)

    assert waiter.woken == 1


def test_any_change_is_told_at_once_when_nothing_was_for_long() -> None:
    clock = Clock()
    board = board_of(clock)
    subscriber, waiter = _told(board)
    subscriber.pause()
    clock.now += 0.6
    assert subscriber.next() is None
    assert subscriber.pause() == (pytest.approx(1.3), True)

    board.begin(prompt_tokens=10)
    assert waiter.woken == 1
    assert subscriber.next()


def test_news_that_comes_while_it_sends_waits_for_the_spacing_only() -> None:
    clock = Clock()
    board = board_of(clock)
    subscriber, waiter = _told(board)
    board.begin(prompt_tokens=5000)
    assert subscriber.pause() == (0.05, False)
    clock.now += 0.06

    assert subscriber.next()
    assert waiter.woken == 0


@pytest.mark.parametrize(("batch_limit", "woken"), [(100, 0), (10, 1)])
def test_requests_are_news_at_once_where_room_is_scarce(batch_limit: int, woken: int) -> None:
    clock = Clock()
    board = board_of(clock, batch_limit=batch_limit)
    board.begin(prompt_tokens=10).succeed()
    calls = [board.begin(prompt_tokens=10) for _ in range(9)]
    subscriber, waiter = _told(board)
    subscriber.pause()
    clock.now += 0.1
    for call in calls[:6]:
        call.succeed()

    assert waiter.woken == woken


@pytest.mark.parametrize(("batch_limit", "come", "woken"), [(1, 1, 1), (3, 2, 0), (3, 3, 1), (40, 4, 0)])
def test_that_the_last_place_is_taken_is_told_at_once(batch_limit: int, come: int, woken: int) -> None:
    clock = Clock()
    board = board_of(clock, batch_limit=batch_limit)
    board.begin(prompt_tokens=10).succeed()
    _, waiter = _told_and_waits(board)
    clock.now += 0.1
    for _ in range(come):
        board.begin(prompt_tokens=10, max_output_tokens=1)

    assert waiter.woken == woken


@pytest.mark.parametrize(
    ("of", "freed", "woken"), [(8, 1, 1), (10, 1, 1), (20, 1, 0), (20, 2, 1), (64, 4, 0)]
)
def test_places_that_come_free_in_a_batch_that_is_nearly_full_are_told_at_once(
    of: int, freed: int, woken: int
) -> None:
    clock = Clock()
    board = board_of(clock, batch_limit=of)
    board.begin(prompt_tokens=10).succeed()
    calls = [board.begin(prompt_tokens=10, max_output_tokens=1) for _ in range(of - 1)]
    _, waiter = _told_and_waits(board)
    clock.now += 0.1
    for call in calls[:freed]:
        call.succeed()

    assert waiter.woken == woken


def test_who_was_told_of_no_place_hears_when_its_turn_comes() -> None:
    """Of one place that is free each of sixteen has it for a tenth of a second; else they would hear after two."""
    clock = Clock()
    board = board_of(clock, batch_limit=2)
    board.begin(prompt_tokens=10).succeed()
    board.begin(prompt_tokens=10)
    first = [board.publisher.subscribe(f"c{number}", None, _Waiter()) for number in range(16)]
    told: Counter[Subscriber] = Counter()
    due: dict[Subscriber, float] = {}
    for subscriber in first:
        told[subscriber] += _granted(subscriber)
        due[subscriber] = clock.now + subscriber.pause()[0]
    assert told.total() == 1

    ends, looks = clock.now + 1.8, 0
    while min(due.values()) < ends:
        clock.now = min(due.values())
        for subscriber in first:
            if due[subscriber] <= clock.now:
                looks += 1
                told[subscriber] += _granted(subscriber)
                due[subscriber] = clock.now + subscriber.pause()[0]

    assert len(+told) >= 8
    assert max(told.values()) == 1, "and not at each turn of its own"
    assert looks <= 64


def test_a_change_of_state_is_told_at_once() -> None:
    clock = Clock()
    board = board_of(clock)
    call = board.begin(prompt_tokens=10)
    subscriber, waiter = _told(board)
    subscriber.pause()
    clock.now += 0.1
    call.succeed()

    assert waiter.woken == 1
    assert b'"state":"ready"' in (subscriber.next() or b"")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4000), st.integers(0, 9)), max_size=60))
def test_who_is_not_woken_has_missed_little(steps: list[tuple[int, int, int]]) -> None:
    """Work of 10,000 tokens a second is assumed: 2,000 are a large change, of which half may pass without a look."""
    clock = Clock()
    board = board_of(clock)
    board.begin(prompt_tokens=10).succeed()
    subscriber, waiter = _told(board)
    subscriber.pause()
    calls: list[BoardCall] = []
    clock.now += 0.1
    for step, tokens, which in steps:
        if step == 0 or not calls:
            calls.append(board.begin(prompt_tokens=tokens))
        elif step == 1:
            calls[which % len(calls)].first_content()
        else:
            calls.pop(which % len(calls)).fail()
        stands = sum(call.prompt_tokens for call in calls if not call.work.decoding)
        if waiter.woken:
            return
        assert stands <= 3_000


def test_a_kv_cache_that_turns_out_small_breaks_no_call() -> None:
    clock = Clock()
    board = board_of(clock)
    for number in range(60):
        clock.now += 0.2
        board.begin(prompt=f"{number:05}" * 205 * 64, prompt_tokens=16_384, max_output_tokens=1).succeed()
        load(board)
    board.set_kv_tokens(30_000)

    call = board.begin(prompt_tokens=5000)
    assert load(board).running == 1
    call.succeed()
    assert load(board).running == 0


def _at_8000_a_second(clock: Clock) -> LoadBoard:
    board = board_of(clock)
    for _ in range(40):
        call = board.begin(prompt_tokens=4000, max_output_tokens=10)
        clock.now += 0.5
        call.first_content()
        call.succeed()
    return board


@pytest.mark.parametrize("refuses", [False, True])
def test_a_prompt_that_is_not_seen_to_begin_stands_no_longer_than_it_takes(refuses: bool) -> None:
    clock = Clock()
    board = _at_8000_a_second(clock)
    board.begin(prompt_tokens=8000, max_output_tokens=2000, streaming=False)
    for _ in range(20):
        clock.now += 0.2
        call = board.begin(prompt_tokens=80, max_output_tokens=10)
        if refuses:
            call.fail()
        else:
            call.first_content()
            call.succeed()

    assert board.report(clock.now).prefill_tokens == 0


def test_refusals_say_nothing_of_the_rate() -> None:
    clock = Clock()
    board = _at_8000_a_second(clock)
    board.begin(prompt_tokens=16_000, max_output_tokens=10)
    for _ in range(400):
        clock.now += 0.005
        board.begin(prompt_tokens=1000, max_output_tokens=10).fail()

    assert load(board).prefill_tokens_per_s == pytest.approx(8000.0)
