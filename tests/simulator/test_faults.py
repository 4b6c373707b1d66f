"""Every fault does what it says, and can be taken back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from mlbalance_client.simulator.model.faults import Faults
from mlbalance_client.simulator.model.fleet import Fleet, FleetError
from mlbalance_client.simulator.model.spec import EngineSpec

from .test_server import CHAT, INFER, LONG, asked, client_of, events, holds, raw_call


@pytest.fixture(scope="module")
def _one() -> Iterator[Fleet]:
    with Fleet(1, spec=EngineSpec(max_running=1).scaled(20)) as made:
        yield made


@pytest.fixture
def one(_one: Fleet) -> Iterator[Fleet]:
    """One replica, healthy at first, that runs one call at a time."""
    _one.set_faults(0)
    _one.flush()
    yield _one
    _one.set_faults(0)


@pytest.fixture
def client(one: Fleet) -> Iterator[httpx.Client]:
    with client_of(one) as made:
        yield made


def work_s(fleet: Fleet, client: httpx.Client) -> float:
    """The engine's own seconds for one call on an empty cache."""
    fleet.flush()
    before = fleet.state(0)["work_s"]
    client.post(CHAT, json=asked(CHAT, "x" * 4000)).raise_for_status()
    return float(fleet.state(0)["work_s"] - before)


def statuses(client: httpx.Client, calls: int = 1) -> list[int]:
    return [client.post(CHAT, json=asked(CHAT)).status_code for _ in range(calls)]


def test_slow_multiplies_the_engines_times(one: Fleet, client: httpx.Client) -> None:
    usual = work_s(one, client)
    one.set_faults(0, slow=10)
    slow = work_s(one, client)
    one.set_faults(0)

    assert slow == pytest.approx(10 * usual)
    assert work_s(one, client) == pytest.approx(usual)


def test_cold_makes_only_the_first_calls_slow_and_can_be_set_again(one: Fleet, client: httpx.Client) -> None:
    usual = work_s(one, client)
    for _ in range(2):
        one.set_faults(0, cold_calls=2)

        assert [work_s(one, client) for _ in range(3)] == pytest.approx([8 * usual, 8 * usual, usual])
    one.set_faults(0, cold_calls=9)
    one.set_faults(0)
    assert work_s(one, client) == pytest.approx(usual)


def test_failing_fails_a_share_of_calls_with_its_status(one: Fleet, client: httpx.Client) -> None:
    one.set_faults(0, failing=0.5, failing_status=502)
    told = statuses(client, 30)

    assert set(told) == {200, 502}
    assert 3 < told.count(502) < 27
    one.set_faults(0, failing=1)
    assert statuses(client, 5) == [500] * 5
    one.set_faults(0)
    assert statuses(client, 5) == [200] * 5


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(("retry_after_s", "header"), [(-1, None), (0, "0"), (7, "7"), (0.25, "0.25")])
def test_a_rejection_has_its_status_and_says_when_to_come_back(
    one: Fleet, client: httpx.Client, status: int, retry_after_s: float, header: str | None
) -> None:
    before = one.state(0)
    one.set_faults(0, reject_status=status, retry_after_s=retry_after_s)
    answer = client.post(CHAT, json=asked(CHAT))

    assert answer.status_code == status
    assert answer.headers.get("retry-after") == header
    assert answer.json()["error"]["code"] == status
    assert "busy" in answer.json()["error"]["message"]
    after = one.state(0)
    assert (after["refused"], after["finished"]) == (before["refused"] + 1, before["finished"])
    one.set_faults(0)
    assert statuses(client) == [200]


def test_an_inference_is_rejected_too(one: Fleet, client: httpx.Client) -> None:
    one.set_faults(0, reject_status=429)
    assert client.post(INFER, json=asked(INFER)).status_code == 429
    one.set_faults(0)
    assert client.post(INFER, json=asked(INFER)).status_code == 200


def test_a_rejection_in_band_is_200_with_an_error_as_first_event(one: Fleet, client: httpx.Client) -> None:
    one.set_faults(0, reject_in_band=True)
    answer = client.post(CHAT, json=asked(CHAT, stream=True))

    assert answer.status_code == 200
    told = events(answer.text)
    assert json.loads(told[0][1])["error"]["code"] == 503
    assert [data for _, data in told[1:]] == ["[DONE]"]
    one.set_faults(0)
    assert "error" not in client.post(CHAT, json=asked(CHAT, stream=True)).text


def test_hanging_takes_calls_and_answers_none_until_it_is_taken_back(
    one: Fleet, client: httpx.Client
) -> None:
    before = one.state(0)
    one.set_faults(0, hanging=True)
    with raw_call(one, CHAT, asked(CHAT)) as connection:
        assert holds(one, seen=before["seen"] + 1)
        assert client.get("/health").status_code == 200
        connection.setblocking(False)
        with pytest.raises(BlockingIOError):
            connection.recv(1)
    one.set_faults(0)

    assert statuses(client) == [200]
    assert one.state(0)["finished"] == before["finished"] + 1


@pytest.mark.parametrize("path", ["/health", "/metrics", "/v1/models", "/v2/health/ready", "/nope"])
def test_loading_answers_503_on_every_route(one: Fleet, client: httpx.Client, path: str) -> None:
    usual = client.get(path).status_code
    one.set_faults(0, loading=True)
    answers = [client.get(path), client.post(CHAT, json=asked(CHAT)), client.post(INFER, json=asked(INFER))]

    assert [a.status_code for a in answers] == [503] * 3
    assert {a.json()["error"]["message"] for a in answers} == {"Loading model"}
    one.set_faults(0)
    assert client.get(path).status_code == usual


def test_a_broken_stream_ends_after_so_many_events_without_its_end(one: Fleet, client: httpx.Client) -> None:
    one.set_faults(0, break_after=2)
    got = b""
    with (
        pytest.raises(httpx.RemoteProtocolError),
        client.stream("POST", CHAT, json=asked(CHAT, output=LONG, stream=True)) as answer,
    ):
        for chunk in answer.iter_raw():
            got += chunk

    assert b'"content":"tok' in got
    assert b"[DONE]" not in got
    assert holds(one, in_flight=0, running=0)
    assert statuses(client) == [200]
    one.set_faults(0)
    assert client.post(CHAT, json=asked(CHAT, stream=True)).text.endswith("[DONE]\n\n")


def test_a_full_queue_refuses_with_vllms_503(one: Fleet, client: httpx.Client) -> None:
    one.set_faults(0, max_queue=1)
    with raw_call(one, CHAT, asked(CHAT, output=LONG)):
        assert holds(one, running=1)
        with raw_call(one, CHAT, asked(CHAT)):
            assert holds(one, waiting=1)
            answer = client.post(CHAT, json=asked(CHAT))
            assert answer.status_code == 503
            assert answer.json()["error"]["message"].startswith("The engine is currently busy")
            one.set_faults(0)
            with raw_call(one, CHAT, asked(CHAT)):
                assert holds(one, waiting=2)

    assert holds(one, in_flight=0)
    assert statuses(client) == [200]


def test_setting_faults_replaces_those_before(one: Fleet) -> None:
    one.set_faults(0, slow=5, hanging=True)
    one.set_faults(0, failing=0.25)

    assert one.state(0)["faults"] == Faults(failing=0.25).as_dict()


def test_faults_come_back_from_what_they_say_of_themselves() -> None:
    faults = Faults(slow=3, cold_calls=2, failing=0.5, reject_status=429, hanging=True, max_queue=4)

    assert Faults.of(faults.as_dict()) == faults
    assert Faults.of({}) == Faults()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sloww": 2}, "sloww"),
    ({"slow": 0}, "slow"),
    ({"slow": float("nan")}, "slow"),
    ({"slow": "2"}, "slow"),
    ({"cold_calls": "2"}, "cold_calls"),
    ({"cold_calls": -1}, "cold_calls"),
    ({"failing": 1.5}, "failing"),
    ({"failing": None}, "failing"),
    ({"failing_status": 200}, "failing_status"),
    ({"reject_status": "429"}, "reject_status"),
    ({"retry_after_s": None}, "retry_after_s"),
    ({"hanging": "no"}, "hanging"),
    ({"loading": "false"}, "loading"),
    ({"break_after": "2"}, "break_after"),
    ({"max_queue": -1}, "max_queue"),
    ({"max_queue": "many"}, "max_queue"),
]


@pytest.mark.parametrize(("given", "said"), BAD)
def test_a_fault_that_cannot_be_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Faults.of(given)


def test_an_unknown_fault_hears_which_there_are() -> None:
    with pytest.raises(ValueError, match="break_after, cold_calls.*slow"):
        Faults.of({"nope": 1})


@pytest.mark.parametrize("given", [{"cold_calls": "2"}, {"slow": 0}, {"nope": 1}])
def test_refused_faults_change_nothing_at_a_replica(
    one: Fleet, client: httpx.Client, given: dict[str, Any]
) -> None:
    one.set_faults(0, failing=0.25)
    with pytest.raises(FleetError, match=next(iter(given))):
        one.set_faults(0, **given)

    assert one.state(0)["faults"] == Faults(failing=0.25).as_dict()
