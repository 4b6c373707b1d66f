"""The stream of events and its first subscriber, the log."""

from __future__ import annotations

import logging
from dataclasses import FrozenInstanceError

import pytest

from mlbalance_client.events import (
    AttemptEnded,
    AttemptStarted,
    Event,
    EventStream,
    FailedOver,
    Picked,
    ReplicasChanged,
    Settled,
    logging_subscriber,
)

PICKED = Picked(1.0, "c.1", 1, "a", "least work", 100, 64, 3)
STARTED = AttemptStarted(1.0, "c.1", 1, "a", "http://a:1")
ENDED = AttemptEnded(
    2.0, "c.1", 1, "a", 1.0, failure="connect", detail="refused by http://u:pw@a:1/x?key=hunter2 (errno 111)"
)
FAILED_OVER = FailedOver(2.0, "c.1", 1, "a", "b", "connect")
SETTLED = Settled(3.0, "c.1", "b", "ok", 1.5, 0.2, 100, 64, 10)
CHANGED = ReplicasChanged(0.0, "static", ("a", "b"), (), (), 2)
EMPTIED = ReplicasChanged(0.0, "static", (), ("a", "b"), (), 0)


def test_subscribers_get_every_event_in_order_until_they_leave() -> None:
    stream, first, second = EventStream(), list[Event](), list[Event]()

    assert not stream
    stream.emit(PICKED)
    leave = stream.subscribe(first.append)
    stream.subscribe(second.append)
    assert stream
    stream.emit(STARTED)
    leave()
    leave()
    stream.emit(ENDED)

    assert (first, second) == ([STARTED], [STARTED, ENDED])


def test_the_same_callable_may_subscribe_twice() -> None:
    stream, seen = EventStream(), list[Event]()
    leave = stream.subscribe(seen.append)
    stream.subscribe(seen.append)

    leave()
    stream.emit(PICKED)

    assert seen == [PICKED]


def test_a_subscriber_may_leave_while_it_is_told() -> None:
    stream, seen = EventStream(), list[Event]()

    def once(event: Event) -> None:
        leave()
        seen.append(event)

    leave = stream.subscribe(once)
    stream.subscribe(seen.append)
    stream.emit(PICKED)
    stream.emit(SETTLED)

    assert seen == [PICKED, PICKED, SETTLED]


def test_a_subscriber_that_raises_is_logged_once_and_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    stream, seen = EventStream(), list[Event]()

    def broken(event: Event) -> None:
        raise RuntimeError("broken")

    stream.subscribe(broken)
    stream.subscribe(seen.append)
    stream.emit(PICKED)
    stream.emit(SETTLED)

    assert seen == [PICKED, SETTLED]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_events_are_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        PICKED.replica = "b"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (PICKED, logging.DEBUG),
        (STARTED, logging.DEBUG),
        (ENDED, logging.DEBUG),
        (SETTLED, logging.DEBUG),
        (FAILED_OVER, logging.WARNING),
        (CHANGED, logging.INFO),
        (EMPTIED, logging.WARNING),
    ],
)
def test_each_event_has_its_level(event: Event, level: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mlbalance_client")

    logging_subscriber()(event)

    assert [(record.name, record.levelno) for record in caplog.records] == [("mlbalance_client", level)]
    assert caplog.messages[0].startswith(type(event).__name__)


def test_the_fields_are_in_the_records_extra(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mlbalance_client")

    logging_subscriber()(FAILED_OVER)

    assert caplog.messages == ["FailedOver call=c.1 attempt=1 from_replica=a to_replica=b why=connect"]
    record = vars(caplog.records[0])
    assert (record["mlbalance.at"], record["mlbalance.to_replica"]) == (2.0, "b")


def test_no_secret_and_no_query_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "mlbalance_client")

    logging_subscriber()(ENDED)

    record = caplog.records[0]
    assert "hunter2" not in str(vars(record))
    assert "pw" not in record.getMessage()
    assert "http://***@a:1/x (errno 111)" in record.getMessage()


def test_the_library_prints_nothing_unless_logging_is_set_up() -> None:
    logger = logging.getLogger("mlbalance_client")

    assert any(isinstance(handler, logging.NullHandler) for handler in logger.handlers)
