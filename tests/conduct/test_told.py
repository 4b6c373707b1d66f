"""What callers and listeners are told of calls that one replica did not serve at once, in virtual time."""

from __future__ import annotations

import contextlib
import logging
from math import inf
from typing import Any

import anyio
import httpcore
import pytest

import mlbalance_client as mlb
from mlbalance_client.conduct.engine import Engine
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.errors import ClientClosed, DeadlineExceeded
from mlbalance_client.events import (
    AttemptEnded,
    Event,
    FailedOver,
    GivenUp,
    Interrupted,
    Pulled,
    Queued,
    ReplicaEjected,
    ReplicaReturned,
    Settled,
    Shed,
)

from ..test_client import OVERLOADED, PATH, ROLE, WORD
from .virtual import (
    BREAK,
    DONE,
    HANG,
    HEAD,
    REFUSE,
    STREAM,
    WHOLE,
    Connection,
    Network,
    Step,
    after,
    answer,
    anyio_backend,
    chunk,
    engine_of,
    nothing_is_left,
    read,
    request,
    rest,
)

__all__ = ["anyio_backend"]

pytestmark = pytest.mark.anyio

PATIENT = {"hedging": {"enabled": False}, "health_checks": {"enabled": False}}
BUSY = b'{"error": {"message": "busy", "code": 503}}'


async def test_an_explanation_says_where_a_call_was_and_why_it_left() -> None:
    network = Network([REFUSE], [answer(503, BUSY)], [BREAK], STREAM)
    engine = engine_of(network, replicas=4, retries={"max_attempts": 4}, **PATIENT)
    got = await engine.send(request(stream=True))
    explained = got.report.explain()
    one, two, three, four = (attempt.replica for attempt in got.report.attempts)

    assert explained.tried == (
        f"first sent to {one}, which could not be reached (refused); "
        f"then to {two}, which answered with status 503 (busy); "
        f"then to {three}, which broke the connection (reset); "
        f"then to {four}, whose answer this is"
    )
    assert explained.tried in str(explained)
    assert explained.as_dict()["tried"] == explained.tried
    assert explained.replica == four
    await read(got)
    again = await engine.send(request(stream=True))
    assert again.report.explain().tried == ""
    await read(again)
    await nothing_is_left(engine, network)


async def test_an_answer_that_was_held_is_told_of_who_gave_it() -> None:
    engine = engine_of(network := Network([answer(503, BUSY)], [BREAK]), replicas=2, **PATIENT)
    got = await engine.send(request())
    report = got.report
    one, two = (attempt.replica for attempt in report.attempts)

    assert (got.status, report.replica, report.explain().replica) == (503, one, one)
    assert report.url == report.attempts[0].url
    assert report.explain().tried == (
        f"first sent to {one}, whose answer this is; then to {two}, which broke the connection (reset)"
    )
    await read(got)
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(
    ("sections", "options", "busy_s", "said"),
    [
        ({"hedging": {"enabled": False}}, {}, 0.0, "that is switched off (hedging.enabled)"),
        ({}, {"hedge": False}, 0.0, "its caller forbids it"),
        ({}, {"replayable": False}, 0.0, "it may not be sent twice"),
        ({"hedging": {"max_prefill_tokens": 1}}, {}, 0.0, "the other would have had too much to prefill"),
        ({"hedging": {"reserve_tokens": 0, "budget_ratio": 0.0}}, {}, 0.0, "the budget for it was used up"),
        ({"replicas": 1}, {}, 0.0, "no other replica that it had not been sent to took calls and had room"),
        ({"hedging": {"saturated_at": 1e-9}}, {}, 0.6, "too much work stood everywhere"),
        ({}, {}, 20.0, "no other was expected to begin within the time that it had stood"),
    ],
)
async def test_an_explanation_says_why_a_slow_call_was_not_hedged(
    sections: dict[str, Any], options: dict[str, Any], busy_s: float, said: str
) -> None:
    async def all_are_busy() -> None:
        for replica in engine.fleet.replicas if busy_s else ():
            told = LoadReport(source="vllm", at=anyio.current_time(), expected_wait_s=busy_s)
            engine.fleet.hear(replica.id, told)

    network = Network([all_are_busy, after(2.0), *STREAM])
    engine = engine_of(network, **{"replicas": 2, "admission": {"engine_queue_s": 60.0}, **sections})
    got = await engine.send(request("word " * 20, mlb.CallOptions(**options), stream=True))
    report = got.report
    await read(got)

    assert not report.hedged
    assert said in report.not_hedged
    assert (
        report.explain().hedge == f"it was slow to begin, but no other was asked as well: {report.not_hedged}"
    )
    await nothing_is_left(engine, network)


async def test_a_call_that_was_not_slow_has_nothing_to_say_of_hedging() -> None:
    engine = engine_of(network := Network(STREAM, [HANG], STREAM), replicas=2)
    quick = await engine.send(request(stream=True))
    await read(quick)
    hedged = await engine.send(request(stream=True))
    await read(hedged)

    assert (quick.report.not_hedged, quick.report.explain().hedge) == ("", "")
    assert (hedged.report.hedged, hedged.report.not_hedged) == (True, "")
    await nothing_is_left(engine, network)


async def test_an_explanation_of_a_hedged_call_names_both() -> None:
    engine = engine_of(network := Network([HANG], [after(0.1), *STREAM]), replicas=2)
    got = await engine.send(request(stream=True))
    one, two = (attempt.replica for attempt in got.report.attempts)

    assert got.report.explain().tried == (
        f"first sent to {one}, which had not begun to answer (attempt 2 answered first); "
        f"meanwhile to {two}, whose answer this is"
    )
    await read(got)
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(
    ("streaming", "failing", "good"),
    [
        (True, [HEAD + chunk(OVERLOADED) + b"0\r\n\r\n"], STREAM),
        (True, [HEAD + chunk(OVERLOADED.removesuffix(DONE)), HANG], STREAM),
        (False, [answer(200, BUSY)], [WHOLE]),
    ],
)
async def test_an_error_inside_of_a_200_is_told_as_what_it_says(
    streaming: bool, failing: list[Step], good: list[Step]
) -> None:
    heard: list[Event] = []
    engine = engine_of(network := Network(failing, good), replicas=2, **PATIENT)
    engine.events.subscribe(heard.append)
    got = await engine.send(request(stream=streaming))
    first, second = got.report.attempts

    assert (first.status, first.failure, first.detail) == (503, mlb.FailureKind.IN_BAND, "busy")
    assert (second.status, second.failure, second.detail) == (200, None, "")
    assert str(first).endswith("error 503 inside of a 200: busy")
    assert "which answered with an error 503 inside of a 200 (busy)" in str(got.report.explain())
    (moved,) = [event for event in heard if isinstance(event, FailedOver)]
    assert (moved.why, moved.detail) == ("in_band 503", "busy")
    ended = [event for event in heard if isinstance(event, AttemptEnded)]
    assert [(event.status, event.failure, event.detail) for event in ended] == [
        (503, "in_band", "busy"),
        (200, None, ""),
    ]
    await read(got)
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(("streaming", "script"), [(True, STREAM), (False, [WHOLE])])
async def test_the_time_to_the_first_content_is_the_same_in_report_and_event(
    streaming: bool, script: list[Step]
) -> None:
    heard: list[Event] = []
    engine = engine_of(network := Network([after(2.0), *script]), replicas=1)
    engine.events.subscribe(heard.append)
    got = await engine.send(request(stream=streaming))
    await read(got)
    await rest()

    (settled,) = [event for event in heard if isinstance(event, Settled)]
    assert settled.ttft_s == got.report.ttft_s == pytest.approx(2.0, abs=0.01)
    await nothing_is_left(engine, network)


@pytest.mark.parametrize("streaming", [True, False])
async def test_who_did_not_answer_has_no_time_to_the_first_content(streaming: bool) -> None:
    heard: list[Event] = []
    good = STREAM if streaming else [WHOLE]
    engine = engine_of(network := Network([HANG], [after(1.0), *good]), replicas=2)
    engine.events.subscribe(heard.append)
    got = await engine.send(request(stream=streaming))
    await read(got)
    await rest()

    told = {event.replica: event.ttft_s for event in heard if isinstance(event, Settled)}
    loser, winner = (attempt.replica for attempt in got.report.attempts)
    assert told == {loser: None, winner: got.report.ttft_s}
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(
    ("scripts", "sections", "said"),
    [
        ([[HANG]], PATIENT, "sent to {0}, which had not begun to answer"),
        (
            [[REFUSE], [HANG]],
            PATIENT,
            "first sent to {0}, which could not be reached (refused); then to {1}, which had not begun to answer",
        ),
        (
            [[HANG]],
            {},
            "first sent to {0}, which had not begun to answer; meanwhile to {1}, which had not begun to answer",
        ),
    ],
)
async def test_a_deadline_that_passes_names_who_was_asked(
    scripts: list[list[Step]], sections: dict[str, Any], said: str
) -> None:
    heard: list[Event] = []
    engine = engine_of(network := Network(*scripts), replicas=2, **sections)
    engine.events.subscribe(heard.append)
    with pytest.raises(mlb.DeadlineExceeded) as caught:
        await engine.send(request(options=mlb.CallOptions(deadline_s=2.0), stream=True))

    ended = {event.attempt: event.replica for event in heard if isinstance(event, AttemptEnded)}
    asked = [ended[number] for number in sorted(ended)]
    assert str(caught.value) == f"no answer began within 2 s (deadline_s): {said.format(*asked)}"
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(
    ("shut_s", "said"),
    [
        (0.0, "it waited for a replica with room, since all that it may go to had enough to do"),
        (
            60.0,
            "it waited for earlier calls of this client to begin, since those stood long behind other clients' work",
        ),
    ],
)
async def test_a_deadline_that_passes_in_the_queue_says_what_it_waited_for(
    shut_s: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(network := Network([WHOLE]))
    monkeypatch.setattr(engine.fleet, "opens_for_all_in_s", lambda now: shut_s)
    for replica in engine.fleet.replicas:
        engine.fleet.hear(
            replica.id, LoadReport(source="vllm", at=anyio.current_time(), expected_wait_s=30.0)
        )
    with pytest.raises(mlb.DeadlineExceeded) as caught:
        await engine.send(request(options=mlb.CallOptions(deadline_s=2.0)))

    assert str(caught.value) == f"no answer began within 2 s (deadline_s): {said}"
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(
    ("last", "kind", "detail"),
    [
        ([BREAK], mlb.FailureKind.READ, "reset"),
        ([HANG], mlb.FailureKind.READ_TIMEOUT, ""),
    ],
)
async def test_a_stream_that_breaks_off_is_told_everywhere(
    last: list[Step], kind: mlb.FailureKind, detail: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[Event] = []
    network = Network([HEAD + chunk(ROLE), chunk(WORD), *last])
    engine = engine_of(network, http={"read_timeout_s": 5.0}, **PATIENT)
    got = await engine.send(request(stream=True))
    assert "broke off" not in str(got.report.explain())
    engine.events.subscribe(heard.append)
    with pytest.raises(mlb.StreamInterrupted) as caught:
        await read(got)

    size = caught.value.bytes_delivered
    (attempt,) = got.report.attempts
    assert (attempt.status, attempt.failure) == (200, caught.value.kind) == (200, kind)
    assert detail in attempt.detail
    said = f"broke off after {size} bytes ({kind}): {attempt.detail}"
    assert (got.report.broke_off, got.report.explain().broke_off) == (said, f"its answer {said}")
    assert f"its answer {said}" in str(got.report.explain())
    (broken,) = [event for event in heard if isinstance(event, Interrupted)]
    assert (broken.attempt, broken.replica) == (1, got.report.replica)
    assert (broken.bytes_delivered, broken.failure, broken.detail) == (size, kind, attempt.detail)
    (settled,) = [event for event in heard if isinstance(event, Settled)]
    assert (settled.call, settled.failure) == (broken.call, kind)
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    for part in (f"call={broken.call}", f"replica={broken.replica}", f"bytes_delivered={size}"):
        assert part in line.getMessage()
    await nothing_is_left(engine, network)


async def test_a_stream_that_ends_in_an_error_is_told_as_one() -> None:
    heard: list[Event] = []
    script: list[Step] = [HEAD + chunk(ROLE), chunk(WORD), chunk(b"data: " + BUSY + b"\n\n") + b"0\r\n\r\n"]
    engine = engine_of(network := Network(script), **PATIENT)
    engine.events.subscribe(heard.append)
    got = await engine.send(request(stream=True))
    with contextlib.suppress(mlb.StreamInterrupted):
        await read(got)

    (broken,) = [event for event in heard if isinstance(event, Interrupted)]
    assert (broken.failure, broken.detail) == ("in_band", "busy")
    (attempt,) = got.report.attempts
    assert (attempt.status, attempt.failure, attempt.detail) == (503, mlb.FailureKind.IN_BAND, "busy")
    assert "(in_band): busy" in got.report.explain().broke_off
    await nothing_is_left(engine, network)


@pytest.mark.parametrize("status", [400, 503, 200])
async def test_a_failing_answer_too_large_to_hold_has_not_broken_off(status: int) -> None:
    heard: list[Event] = []
    body = b'{"error": {"message": "busy", "code": 503}, "more": "' + b"x" * 100_000 + b'"}'
    engine = engine_of(network := Network([answer(status, body)]), replicas=1, **PATIENT)
    engine.events.subscribe(heard.append)
    got = await engine.send(request())
    assert await read(got) == body

    assert not [event for event in heard if isinstance(event, Interrupted)]
    assert got.report.broke_off == ""
    await nothing_is_left(engine, network)


async def test_whoever_stops_reading_has_no_broken_stream() -> None:
    heard: list[Event] = []
    engine = engine_of(network := Network([HEAD + chunk(ROLE), chunk(WORD), HANG], STREAM), **PATIENT)
    engine.events.subscribe(heard.append)
    got = await engine.send(request(stream=True))
    await got.body.aclose()
    whole = await engine.send(request(stream=True))
    await read(whole)

    assert not [event for event in heard if isinstance(event, Interrupted)]
    assert got.report.broke_off == whole.report.broke_off == ""
    await nothing_is_left(engine, network)


async def test_a_stream_that_the_client_closed_is_told_of_but_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    heard: list[Event] = []
    engine = engine_of(Network([HEAD + chunk(ROLE), chunk(WORD), HANG]), **PATIENT)
    engine.events.subscribe(heard.append)
    got = await engine.send(request(stream=True))
    engine.drain_s = 0.0
    await engine.aclose()

    (broken,) = [event for event in heard if isinstance(event, Interrupted)]
    assert (broken.failure, broken.detail) == ("cancelled", "the client was closed")
    assert got.report.broke_off
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_call_without_an_answer_leaves_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Event] = []
    engine = engine_of(network := Network([BREAK]), replicas=1, **PATIENT)
    engine.events.subscribe(heard.append)
    with pytest.raises(mlb.AttemptsExhausted) as caught:
        await engine.send(request())

    (given_up,) = [event for event in heard if isinstance(event, GivenUp)]
    assert (given_up.attempts, given_up.failure, given_up.error) == (1, "read", str(caught.value))
    (line,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"GivenUp call={given_up.call}" in line.getMessage()
    await nothing_is_left(engine, network)


def busy_engine(network: Network) -> Engine:
    """All of whose replicas have work for longer than anybody waits."""
    engine = engine_of(network)
    for replica in engine.fleet.replicas:
        told = LoadReport(source="vllm", at=anyio.current_time(), expected_wait_s=30.0)
        engine.fleet.hear(replica.id, told)
    return engine


@pytest.mark.parametrize(
    ("how", "error", "waited_s"),
    [("cancelled", "cancelled", 1.0), ("closed", "ClientClosed", 1.0), ("deadline", "DeadlineExceeded", 2.0)],
)
async def test_who_leaves_the_queue_without_room_is_told_of_once(
    how: str, error: str, waited_s: float
) -> None:
    heard: list[Event] = []
    engine = busy_engine(network := Network([WHOLE]))
    engine.events.subscribe(heard.append)

    async def call() -> None:
        with contextlib.suppress(ClientClosed, DeadlineExceeded):
            await engine.send(request(options=mlb.CallOptions(deadline_s=2.0)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await rest(1.0)
        if how == "cancelled":
            tasks.cancel_scope.cancel()
        elif how == "closed":
            engine.drain_s = 0.0
            await engine.aclose()

    queued = [event for event in heard if isinstance(event, Queued)]
    (shed,) = [event for event in heard if isinstance(event, Shed)]
    assert [event.call for event in queued] == [shed.call]
    assert (shed.error, shed.waited_s) == (error, pytest.approx(waited_s, abs=0.01))
    assert not [event for event in heard if isinstance(event, Pulled)]
    await nothing_is_left(engine, network)


async def test_who_is_cancelled_as_room_comes_is_told_of_once() -> None:
    heard: list[Event] = []
    engine = busy_engine(network := Network([WHOLE]))
    engine.events.subscribe(heard.append)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(engine.send, request())
        await rest(0.5)
        for replica in engine.fleet.replicas:
            engine.fleet.hear(
                replica.id, LoadReport(source="vllm", at=anyio.current_time(), expected_wait_s=0.0)
            )
        assert engine.snapshot().queued == 0
        tasks.cancel_scope.cancel()

    first, *then = [type(event) for event in heard if isinstance(event, Queued | Pulled | Shed)]
    assert first is Queued
    assert then in ([Pulled], [Shed])  # by whether the loop was there before
    await nothing_is_left(engine, network)


async def test_a_deadline_that_passes_in_the_queue_says_who_is_kept_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = busy_engine(Network([WHOLE]))
    kept = ": all are kept out, of r0:80 it is closed"
    monkeypatch.setattr(engine.fleet, "kept_from", lambda demand, excluded, now: kept)
    with pytest.raises(mlb.DeadlineExceeded) as caught:
        await engine.send(request(options=mlb.CallOptions(deadline_s=2.0)))

    assert str(caught.value).endswith(f"since all that it may go to had enough to do{kept}")
    await engine.aclose()


@pytest.mark.parametrize("first", ["queue", "call"])
async def test_a_deadline_that_passes_in_the_queue_is_told_alike_whoever_notices_it(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = busy_engine(Network([WHOLE]))
    heard: list[Event] = []
    engine.events.subscribe(heard.append)
    if first == "queue":
        monkeypatch.setattr(engine._performer, "_on_alarm", lambda call: None)
    else:
        monkeypatch.setattr(engine.queueing.queue, "next_at", lambda: inf)
    with pytest.raises(mlb.DeadlineExceeded) as caught:
        await engine.send(request(options=mlb.CallOptions(deadline_s=2.0)))

    said = "it waited for a replica with room, since all that it may go to had enough to do"
    assert str(caught.value) == f"no answer began within 2 s (deadline_s): {said}"
    assert [event.error for event in heard if isinstance(event, Shed)] == ["DeadlineExceeded"]
    await engine.aclose()


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("head", [b"application/json", b"text/event-stream"])
async def test_a_redirect_is_delivered_whatever_its_body_says(status: int, head: bytes) -> None:
    body = b"data: " + BUSY + b"\n\n" if b"event" in head else BUSY
    said = b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (status, head, len(body))
    engine = engine_of(network := Network([said + body]), replicas=2, **PATIENT)
    for streaming in (True, False):
        got = await engine.send(request(stream=streaming))
        (attempt,) = got.report.attempts
        assert (got.status, attempt.status, attempt.failure, attempt.detail) == (status, status, None, "")
        assert got.report.gave_up == ""
        assert not [name for name, _ in got.headers if name.lower() == b"x-should-retry"]
        assert await read(got) == body
    assert not any(row.kept_out for row in engine.snapshot().replicas)
    await nothing_is_left(engine, network)


async def test_a_deadline_that_passes_before_a_call_is_placed_speaks_of_no_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def hang(demand: object) -> None:
        await anyio.sleep_forever()

    engine = engine_of(network := Network([WHOLE]))
    monkeypatch.setattr(engine.reporting, "freshens", lambda demand: True)
    monkeypatch.setattr(engine.reporting, "freshen", hang)
    with pytest.raises(mlb.DeadlineExceeded) as caught:
        await engine.send(request(options=mlb.CallOptions(deadline_s=2.0)))

    assert str(caught.value) == "no answer began within 2 s (deadline_s): it was not placed by then"
    await nothing_is_left(engine, network)


@pytest.mark.parametrize(
    ("key", "stream", "said"),
    [
        ("call_timeout_s", False, "no answer began within 2 s (http.call_timeout_s): sent to "),
        ("first_content_timeout_s", True, ": no content within 2 s (http.first_content_timeout_s)"),
    ],
)
async def test_a_timeout_names_the_key_that_sets_it(key: str, stream: bool, said: str) -> None:
    engine = engine_of(network := Network([HANG]), http={key: 2.0}, **PATIENT)
    with pytest.raises(mlb.BalancerError) as caught:
        await engine.send(request(options=mlb.CallOptions(deadline_s=30.0), stream=stream))

    assert said in str(caught.value)
    await nothing_is_left(engine, network)


async def test_an_ejection_counts_the_calls_that_failed() -> None:
    heard: list[Event] = []
    engine = engine_of(
        network := Network(*([BREAK], [WHOLE]) * 2, [BREAK], [WHOLE]),
        replicas=2,
        retries={"max_attempts": 1},
        outlier_detection={"rest_base_s": 0.0},
        **PATIENT,
    )
    engine.events.subscribe(heard.append)
    for _ in range(3):
        with pytest.raises(mlb.AttemptsExhausted):
            await engine.send(request())
        await read(await engine.send(request()))

    (ejected,) = [event for event in heard if isinstance(event, ReplicaEjected)]
    assert ejected.why == "it failed 3 calls in a row, the last time it broke the connection"
    assert ejected.why in [row.ejected for row in engine.snapshot().replicas]
    await nothing_is_left(engine, network)


async def test_it_is_told_before_a_call_who_would_not_get_it_and_why() -> None:
    network = Network([REFUSE], [answer(503, BUSY)], STREAM)
    by_prefix = {"picking": {"policy": "prefix_tokens"}, "retries": {"max_attempts": 4}}
    engine = engine_of(network, replicas=3, **by_prefix, **PATIENT)
    got = await engine.send(request(stream=True))
    one, two, three = (attempt.replica for attempt in got.report.attempts)
    await read(got)

    body = request(stream=True).body
    assert isinstance(body, bytes)
    explained = engine.explain(PATH, body, mlb.CallOptions())

    assert {out.replica for out in explained.kept_out} == {one, two}
    why = {out.replica: out.why for out in explained.kept_out}
    assert why[one].startswith("it refused the connection and rests for ")
    assert why[two].startswith("it pushed back and rests for ")
    assert (explained.replica, explained.queued) == (three, "")
    assert explained.reason == "it is the only one that it could be sent to"
    assert f"{one} is kept out: {why[one]}" in str(explained)
    assert {row.id: row.kept_out for row in engine.snapshot().replicas if row.kept_out} == why
    await engine.aclose()


async def test_of_a_fleet_that_was_killed_the_first_to_be_back_gets_the_calls() -> None:
    dead = {"r0", "r1", "r2"}

    class Killed(Network):
        async def connect_tcp(self, host: str, port: int, *more: Any, **options: Any) -> Connection:
            if host in dead:
                self.asked.append(host)
                raise httpcore.ConnectError("refused")
            return await super().connect_tcp(host, port, *more, **options)

    network = Killed(STREAM)
    engine = engine_of(network, hedging={"enabled": False}, health_checks={"interval_s": 3_600})
    heard: list[Event] = []
    engine.events.subscribe(heard.append)
    for _ in range(4):
        with pytest.raises(mlb.AttemptsExhausted):
            await engine.send(request(stream=True))
    assert all(row.ejected for row in engine.snapshot().replicas)

    dead.remove("r1")
    await read(await engine.send(request(stream=True)))
    (returned,) = [event.replica for event in heard if isinstance(event, ReplicaReturned)]
    network.asked.clear()
    for _ in range(5):
        got = await engine.send(request(stream=True))
        assert [attempt.replica for attempt in got.report.attempts] == [returned]
        await read(got)

    assert set(network.asked) <= {"r1"}
    assert [row.id for row in engine.snapshot().replicas if row.ejected is None] == [returned]
    await nothing_is_left(engine, network)
