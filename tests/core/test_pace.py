"""What own streams' pace says of a replica, told by pieces that come at given times."""

from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.core.load.pace import Found, Pace

FAST_S, SLOW_S = 0.02, 0.2


def flow(pace: Pace, place: int, gaps: list[float], now: float = 0.0) -> float:
    """A stream whose reader waits for every piece; the time after the last, the stream still open."""
    stream = pace.stream(place, now)
    for gap_s in gaps:
        stream.piece(now, now + gap_s)
        now += gap_s
    return now


def found(pace: Pace, now: float, place: int = 0) -> Found:
    return pace.found(place, now)[0]


def test_nothing_is_known_before_the_first_piece() -> None:
    pace = Pace()
    assert found(pace, 1.0) is Found.UNSEEN
    pace.stream(0, 1.0)
    assert found(pace, 1.0) is Found.UNSEEN


def test_a_replica_whose_pieces_come_fast_is_free() -> None:
    pace = Pace()
    now = flow(pace, 0, [FAST_S] * 50)
    assert pace.found(0, now) == (Found.FREE, 0.0)


def test_slow_pieces_say_busy_then_long_busy_and_a_fast_one_free_again() -> None:
    pace = Pace()
    stream = pace.stream(0, 0.0)
    now, looks = 0.0, []
    for gap_s in [FAST_S] * 50 + [SLOW_S] * 4 + [FAST_S]:
        stream.piece(now, now + gap_s)
        now += gap_s
        looks.append(found(pace, now))
    assert looks[49:] == [Found.FREE, Found.BUSY, Found.BUSY, Found.LONG_BUSY, Found.LONG_BUSY, Found.FREE]


def test_silence_of_an_open_stream_is_evidence_of_now() -> None:
    pace = Pace()
    now = flow(pace, 0, [FAST_S] * 50)
    assert found(pace, now + 3 * FAST_S) is Found.FREE
    assert found(pace, now + 5 * FAST_S) is Found.BUSY
    assert found(pace, now + 5.0) is Found.LONG_BUSY
    assert pace.found(0, now + 5.0)[1] == 0.0


def test_evidence_of_a_closed_stream_ages() -> None:
    pace = Pace()
    stream = pace.stream(0, 0.0)
    stream.piece(0.0, FAST_S)
    stream.close()
    stream.close()
    assert pace.found(0, FAST_S + 7.0) == (Found.FREE, 7.0)


def test_pieces_that_lay_waiting_for_a_late_reader_tell_nothing() -> None:
    pace = Pace()
    now = flow(pace, 0, [FAST_S] * 50)
    now = flow(pace, 0, [SLOW_S], now)
    stream = pace.stream(0, now)
    for _ in range(5):
        # It comes back after 30 ms and gets at once what has lain there.
        stream.piece(now + 0.03, now + 0.0301)
        now += 0.0301
    assert found(pace, now) is Found.BUSY


def test_pieces_of_one_write_count_as_one() -> None:
    pace = Pace()
    now = flow(pace, 0, [FAST_S] * 50)
    burst = [SLOW_S] + [0.0002] * 4
    now = flow(pace, 0, burst, now)
    assert found(pace, now) is Found.BUSY


def test_a_replica_that_has_always_been_slow_is_measured_by_the_fleet_until_it_has_shown_enough() -> None:
    pace = Pace()
    now = flow(pace, 0, [FAST_S] * 200)
    now = flow(pace, 1, [SLOW_S] * 20, now)
    assert found(pace, now, 1) is Found.LONG_BUSY
    now = flow(pace, 1, [SLOW_S] * 600, now)
    assert found(pace, now, 1) is Found.FREE


def test_one_that_has_been_overloaded_for_long_does_not_come_to_look_free() -> None:
    pace = Pace()
    now = flow(pace, 0, [FAST_S] * 200)
    for _ in range(20):
        flow(pace, 0, [FAST_S] * 100, now)
        now = flow(pace, 1, [15 * FAST_S] * 100, now)
    assert found(pace, now, 1) is Found.LONG_BUSY


def test_a_replica_is_measured_by_what_it_has_shown_itself() -> None:
    pace = Pace()
    now = flow(pace, 0, [FAST_S] * 600)
    now = flow(pace, 1, [2 * FAST_S] * 600, now)
    now = flow(pace, 0, [5 * FAST_S] * 8, now)
    assert found(pace, now, 0) is Found.LONG_BUSY
    now = flow(pace, 1, [5 * FAST_S] * 8, now)
    assert found(pace, now, 1) is Found.FREE


def test_a_replica_that_is_gone_is_forgotten() -> None:
    pace = Pace()
    now = flow(pace, 0, [FAST_S] * 50)
    pace.drop(0)
    assert found(pace, now) is Found.UNSEEN


@given(st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), max_size=50))
def test_any_order_of_asking_and_coming_is_borne(steps: list[tuple[float, float]]) -> None:
    pace = Pace()
    stream, now = pace.stream(0, 0.0), 0.0
    for late_s, wait_s in steps:
        stream.piece(now + late_s, now + late_s + wait_s)
        now += late_s + wait_s
        look, age_s = pace.found(0, now)
        assert look in Found
        assert age_s >= 0
