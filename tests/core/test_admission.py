"""Calls wait while all windows are full, and end exactly once: with a charged pick, or with an error that says why."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from mlbalance_client.config import AdmissionConfig, PickingConfig
from mlbalance_client.core.admission import Admission, Waiting
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet, Pick
from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.core.model import Demand, Replica, ReplicaId, Verdict
from mlbalance_client.core.placement.picker import Decision
from mlbalance_client.errors import ClientClosed, DeadlineExceeded, NoCapacity, NoReplicas, QueueTimeout

NAMES = [ReplicaId(name) for name in "abcde"]


class Scene:
    """A fleet whose replicas grant requests, and the queue before it."""

    def __init__(self, replicas: int = 1, **admission: object) -> None:
        config = AdmissionConfig(**admission)  # type: ignore[arg-type]
        self.fleet = Fleet(PickingConfig(), Random(1), windows=config)
        self.fleet.update(Replica(name, f"http://{name}") for name in NAMES[:replicas])
        self.queue = Admission(config, self.fleet)
        self.seq = 0
        self.grant(0.0, *[0] * replicas)

    def grant(self, now: float, *requests: int) -> None:
        self.seq += 1
        for name, free in zip(NAMES, requests, strict=False):
            self.fleet.hear(
                name, LoadReport(source="stream", at=now, epoch="e", seq=self.seq, free_requests=free)
            )

    def pulls_one(self, now: float) -> None:
        """The first replica pulls a call, and begins to answer it at once."""
        self.grant(now, 1)
        (call,) = self.queue.pull(now, 0)
        assert call.pick
        call.pick.first_content(now)

    def waiting(
        self, now: float = 0.0, text: bytes = b"x", model: str | None = None, **wishes: object
    ) -> Waiting:
        demand = self.fleet.demand(fingerprint(text), text_bytes=len(text), model=model)
        return self.queue.waiting(demand, now, **wishes)  # type: ignore[arg-type]


def test_a_call_waits_until_a_replica_grants_room() -> None:
    scene = Scene()
    call = scene.waiting()
    assert scene.queue.enter(call, 0.0) == []

    scene.grant(1.0, 1)

    assert scene.queue.pull(1.0, 0) == [call]
    assert call.pick
    assert scene.fleet.ledger.requests == 1
    assert not scene.queue


def test_a_replica_pulls_the_call_whose_prefix_it_holds_but_passes_over_the_first_only_so_often() -> None:
    scene = Scene(2)
    held = b"held" * 20_000
    scene.fleet.index.record(0, fingerprint(held).chain)
    first = scene.waiting(text=b"other" * 20_000)
    scene.queue.enter(first, 0.0)
    others = [scene.waiting(text=held) for _ in range(20)]
    for each in others:
        scene.queue.enter(each, 0.0)

    pulled = []
    for turn in range(10):
        scene.grant(0.1 + turn / 100, 1, 0)
        pulled += scene.queue.pull(0.1 + turn / 100, 0)
        for each in pulled:
            assert each.pick
            each.pick.first_content(0.1 + turn / 100)

    assert pulled[:8] == others[:8]
    assert pulled[8] is first


def test_many_that_wait_for_another_model_are_judged_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene()
    scene.fleet.update(Replica(name, f"http://{name}", models=frozenset({name})) for name in NAMES[:2])
    judge, judged = scene.fleet.choose_among, 0

    def choose_among(*given: Any) -> Decision | None:
        nonlocal judged
        judged += 1
        return judge(*given)

    for _ in range(50):
        scene.queue.enter(scene.waiting(model="a"), 0.0)
    monkeypatch.setattr(scene.fleet, "choose_among", choose_among)
    other = scene.waiting(model="b")
    scene.queue.enter(other, 0.0)

    assert other.pick
    assert judged < 10


@pytest.mark.parametrize("priority", [0, 1])
def test_calls_do_not_wait_for_work_that_is_only_guessed_at(priority: int) -> None:
    """What calls have found at replicas that tell nothing is a mean of the past: of itself it never ends."""
    config = AdmissionConfig()
    fleet = Fleet(PickingConfig(), Random(1), windows=config)
    fleet.update([Replica(NAMES[0], "http://a")])
    queue = Admission(config, fleet)
    demand = fleet.demand(fingerprint(b"x"), text_bytes=1, prompt_tokens=30_000)
    picks = []
    while (pick := fleet.try_pick(demand, 0.0)) is not None:
        picks.append(pick)
    calls = [queue.waiting(demand, 0.0, priority=priority) for _ in range(5)]
    ended = [each for call in calls for each in queue.enter(call, 0.0)]
    for pick in picks + [call.pick for call in ended if call.pick]:
        pick.first_content(50.0)
        pick.settle(Verdict.OK, 50.0)
    assert fleet.load.waiting_s(0, 50.0) > config.engine_queue_s
    assert not fleet.ledger.requests

    pulled = queue.tick(50.0)

    assert any(call.pick for call in pulled)
    assert fleet.ledger.requests


def one_replica(**knobs: Any) -> tuple[Fleet, Admission, Demand]:
    """A fleet of one that nobody has called yet, the queue before it, and a small call."""
    config = AdmissionConfig(**knobs)
    fleet = Fleet(PickingConfig(), Random(1), windows=config)
    fleet.update([Replica(NAMES[0], "http://a")])
    demand = fleet.demand(fingerprint(b"x"), text_bytes=1, prompt_tokens=10)
    return fleet, Admission(config, fleet), demand


def stands(fleet: Fleet, now: float, seconds: float) -> None:
    """The replica reports so much work."""
    fleet.hear(NAMES[0], LoadReport(source="test", at=now, prefill_tokens=int(seconds * fleet.rates[0])))


@pytest.mark.parametrize(("queues", "goes"), [(2.0, True), (3.9, True), (4.1, False)])
def test_an_urgent_call_stands_behind_a_full_queue_rather_than_in_line(queues: float, goes: bool) -> None:
    fleet, queue, demand = one_replica(engine_queue_s=3.0)
    stands(fleet, 0.0, queues * 3.0)
    ordinary, urgent = queue.waiting(demand, 0.0), queue.waiting(demand, 0.0, priority=1)

    ended = queue.enter(ordinary, 0.0) + queue.enter(urgent, 0.0)

    assert [call for call in ended if call.pick] == ([urgent] if goes else [])


def test_what_cancelled_calls_were_charged_gives_room_while_others_wait() -> None:
    """A cancelled call stays charged for a while; a queue that is never empty must not keep it so for ever."""
    config = AdmissionConfig()
    fleet = Fleet(PickingConfig(residual_s=1.0), Random(1), windows=config)
    fleet.update([Replica(NAMES[0], "http://a")])
    queue = Admission(config, fleet)
    demand = fleet.demand(fingerprint(b"x"), text_bytes=1, prompt_tokens=100_000)
    picks = []
    while (pick := fleet.try_pick(demand, 0.0)) is not None:
        picks.append(pick)
    call = queue.waiting(demand, 0.0)
    assert queue.enter(call, 0.0) == []

    for pick in picks:
        pick.settle(Verdict.CANCELLED, 0.1)
    assert queue.tick(0.2) == []

    assert queue.tick(1.2) == [call]
    assert call.pick


def shows_its_pace(fleet: Fleet, units_per_s: float = 8_000.0) -> None:
    for place, _ in fleet.places():
        for _ in range(20):
            fleet.rates.learn(place, units_per_s, 1.0)


def test_a_call_that_cannot_make_its_deadline_fails_at_once() -> None:
    scene = Scene()
    shows_its_pace(scene.fleet)
    late = scene.waiting(text=b"x" * 400_000, deadline=0.5)  # twelve seconds of prefill

    assert scene.queue.enter(late, 0.0) == [late]
    assert isinstance(late.error, NoCapacity)
    assert late.error.retry_after_s
    assert late.error.retry_after_s > 0


def test_nobody_is_refused_by_a_guess_of_the_pace() -> None:
    scene = Scene(queue_timeout_s=10.0)

    for _ in range(500):
        assert scene.queue.enter(scene.waiting(text=b"x" * 40_000), 0.0) == []
    scene.grant(5.0, 0)
    assert scene.queue.enter(scene.waiting(5.0, text=b"x" * 40_000), 5.0) == [], "nothing was pulled yet"


def test_a_pace_that_the_fleet_shows_after_the_first_wait_counts_at_the_next() -> None:
    scene = Scene()
    first = scene.waiting()
    scene.queue.enter(first, 0.0)
    scene.queue.leave(first)
    shows_its_pace(scene.fleet)

    late = scene.waiting(1.0, text=b"x" * 400_000, deadline=2.0)

    assert scene.queue.enter(late, 1.0) == [late]
    assert isinstance(late.error, NoCapacity)


def test_a_call_that_would_wait_too_long_by_the_pace_of_those_before_it_fails_at_once() -> None:
    scene = Scene(queue_timeout_s=10.0)
    for _ in range(10):
        assert scene.queue.enter(scene.waiting(text=b"x" * 40_000), 0.0) == []
    for now in (3.0, 6.0, 9.0):  # one in three seconds: seven more would take 21 s
        scene.pulls_one(now)
    late = scene.waiting(9.0, text=b"x" * 40_000)

    assert scene.queue.enter(late, 9.0) == [late]
    assert isinstance(late.error, NoCapacity)
    assert late.error.retry_after_s == pytest.approx(21.0, rel=0.2), "when the seven have gone"


@pytest.mark.parametrize("begin", [True, False])
def test_what_engines_work_off_before_they_pull_shows_the_pace_too(begin: bool) -> None:
    """A burst is in their queues before anybody waits, and for seconds none of those who wait is pulled."""
    config = AdmissionConfig(engine_queue_s=4.0, queue_timeout_s=20.0)
    fleet = Fleet(PickingConfig(), Random(1), windows=config)
    fleet.update([Replica(NAMES[0], "http://a")])
    shows_its_pace(fleet)
    queue = Admission(config, fleet)
    demand = fleet.demand(fingerprint(b"x"), text_bytes=1, prompt_tokens=4_000)._replace(output_tokens=0)
    picks = []
    while (pick := queue.try_pick(demand, 0.0)) is not None:
        picks.append(pick)
    line = [queue.waiting(demand, 0.0) for _ in range(20)]  # 80,000 tokens, at 8,000 a second

    assert [each for call in line for each in queue.enter(call, 0.0)] == []
    for number, pick in enumerate(picks[:4] if begin else []):
        pick.first_content((number + 1) / 2)
    stands(fleet, 3.0, 10.0)
    ended = queue.enter(late := queue.waiting(demand, 3.0), 3.0)

    assert ended == ([] if begin else [late])


def test_what_stands_before_a_call_stands_at_replicas_that_serve_it() -> None:
    config = AdmissionConfig(engine_queue_s=4.0)
    fleet = Fleet(PickingConfig(), Random(1), windows=config)
    models = {NAMES[0]: "busy", NAMES[1]: "idle"}
    fleet.update(Replica(id_, f"http://{id_}", models=frozenset({model})) for id_, model in models.items())
    for id_, tokens in zip(models, (80_000, 0), strict=True):
        fleet.hear(id_, LoadReport(source="test", at=0.0, prefill_tokens=tokens))

    def stands_s(model: str) -> float:
        return fleet.stands_s(fleet.demand(fingerprint(b"x"), text_bytes=1, model=model), 0.0, overload=False)

    assert stands_s("busy") == pytest.approx(4.0)
    assert stands_s("idle") == 0.0


def test_who_finds_the_queue_full_is_to_come_back_when_it_has_gone() -> None:
    scene = Scene(queue_max_calls=10)
    for _ in range(10):
        scene.queue.enter(scene.waiting(text=b"x" * 40_000), 0.0)
    for now in (3.0, 6.0, 9.0):
        scene.pulls_one(now)
    for _ in range(3):
        assert scene.queue.enter(scene.waiting(9.0, text=b"x" * 40_000), 9.0) == []
    small = scene.waiting(9.0)

    assert scene.queue.enter(small, 9.0) == [small]
    assert isinstance(small.error, NoCapacity)
    assert small.error.retry_after_s == pytest.approx(30.0, rel=0.2), "not when there is one place"


def test_who_may_wait_for_an_hour_is_not_refused_for_one_slow_minute() -> None:
    scene = Scene(queue_timeout_s=3600.0, ageing_s=3600.0)
    for _ in range(20):
        assert scene.queue.enter(scene.waiting(text=b"x" * 40_000), 0.0) == []
    for now in range(1, 11):
        scene.pulls_one(float(now))
    small = scene.waiting(110.0, again=True)
    scene.grant(110.0, 0)
    scene.queue.enter(small, 110.0)
    scene.grant(110.0, 1)
    assert scene.queue.pull(110.0, 0) == [small]

    assert scene.queue.enter(scene.waiting(111.0), 111.0) == []


def test_a_full_queue_refuses_or_displaces() -> None:
    scene = Scene(queue_max_calls=1)
    usual, another, urgent = scene.waiting(), scene.waiting(), scene.waiting(priority=1)
    scene.queue.enter(usual, 0.0)

    assert scene.queue.enter(another, 0.0) == [another]
    assert scene.queue.enter(urgent, 0.0) == [usual]
    assert isinstance(another.error, NoCapacity)
    assert str(another.error).endswith(", and the queue of 1 is full (admission.queue_max_calls)")
    assert isinstance(usual.error, NoCapacity)
    assert urgent.error is None


@pytest.mark.parametrize(("deadline", "error"), [(float("inf"), QueueTimeout), (20.0, DeadlineExceeded)])
def test_nobody_waits_for_longer_than_allowed(deadline: float, error: type[Exception]) -> None:
    scene = Scene(queue_timeout_s=30.0)
    call = scene.waiting(deadline=deadline)
    scene.queue.enter(call, 0.0)
    ends = min(30.0, deadline)

    for second in range(int(ends)):
        scene.grant(float(second), 0)
        assert scene.queue.next_at() <= second + 1.0
        assert scene.queue.tick(float(second)) == []
    scene.grant(ends, 0)

    assert scene.queue.tick(ends) == [call]
    assert isinstance(call.error, error)
    assert scene.queue.next_at() == float("inf")


@pytest.mark.parametrize(
    ("shut_s", "said"),
    [(0.0, "no replica had room"), (60.0, "earlier calls of this client had not begun")],
)
def test_who_waited_too_long_hears_for_what(
    shut_s: float, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(queue_timeout_s=30.0)
    monkeypatch.setattr(scene.fleet, "opens_for_all_in_s", lambda now: shut_s)
    call = scene.waiting()
    scene.queue.enter(call, 0.0)
    scene.grant(30.0, 0)

    assert scene.queue.tick(30.0) == [call]
    assert str(call.error) == f"{said} within 30.0 s (admission.queue_timeout_s)"


def test_who_waited_for_replicas_that_all_say_no_hears_so() -> None:
    scene = Scene(4, queue_timeout_s=30.0)
    call, elsewhere = scene.waiting(), scene.waiting(excluded={NAMES[0]})
    scene.queue.enter(call, 0.0)
    scene.queue.enter(elsewhere, 0.0)
    for id_ in NAMES[1:4]:
        scene.fleet.hear(id_, LoadReport(source="stream", at=29.0, state=State.STARTING, free_requests=0))
    scene.fleet.hear(NAMES[0], LoadReport(source="stream", at=29.0, state=State.READY, free_requests=0))

    assert scene.queue.tick(30.0) == [call, elsewhere]
    said = "; ".join(f"of {id_} it says itself that it is starting" for id_ in NAMES[1:4])
    assert str(call.error) == "no replica had room within 30.0 s (admission.queue_timeout_s)"
    assert str(elsewhere.error) == f"{call.error}: all are kept out, {said}"


def test_of_many_that_say_no_an_error_names_three_and_a_missed_deadline_too() -> None:
    scene = Scene(5, queue_timeout_s=30.0)
    call = scene.waiting(deadline=20.0, model="m")
    scene.queue.enter(call, 0.0)
    for id_ in NAMES[:5]:
        models = {"m": State.STARTING.value}
        report = LoadReport(source="stream", at=19.0, state=State.READY, models=models, free_requests=0)
        scene.fleet.hear(id_, report)

    assert scene.queue.tick(20.0) == [call]
    assert isinstance(call.error, DeadlineExceeded)
    said = "; ".join(f"of {id_} it says itself that the model is starting" for id_ in NAMES[:3])
    assert str(call.error).endswith(f": all are kept out, {said}; and 2 more")


def test_those_whom_nobody_serves_any_more_hear_so() -> None:
    scene = Scene()
    call = scene.waiting()
    scene.queue.enter(call, 0.0)
    scene.fleet.update([])

    assert scene.queue.forsaken() == [call]
    assert isinstance(call.error, NoReplicas)


def test_closing_ends_all_who_wait() -> None:
    scene = Scene()
    calls = [scene.waiting() for _ in range(3)]
    for call in calls:
        scene.queue.enter(call, 0.0)

    assert scene.queue.close(ClientClosed("closed")) == calls
    assert all(isinstance(call.error, ClientClosed) for call in calls)
    assert not scene.queue


def test_urgent_calls_get_what_ordinary_ones_must_leave() -> None:
    """In an overload a replica pulls no ordinary call before its queue is short, but an urgent one."""
    scene = Scene(engine_queue_s=3.0)

    def stands(now: float, seconds: float) -> None:
        scene.seq += 1
        scene.fleet.hear(
            NAMES[0], LoadReport(source="b", at=now, epoch="e", seq=scene.seq, expected_wait_s=seconds)
        )

    stands(10.0, 6.0)  # the grant has expired
    usual, urgent = scene.waiting(10.0), scene.waiting(10.0, priority=1)
    assert scene.queue.enter(usual, 10.0) == []
    stands(14.0, 2.5)
    assert scene.queue.tick(14.0) == []

    assert scene.queue.enter(urgent, 14.0) == [urgent]
    stands(15.5, 0.5)
    assert scene.queue.tick(15.5) == [usual]


@pytest.mark.parametrize("after_s", [0.0, 59.0, 61.0])
def test_where_urgent_calls_come_little_stands_before_them(after_s: float) -> None:
    """For a minute, and before any overload: when one has begun, its first calls stand already."""
    fleet, queue, demand = one_replica(engine_queue_s=5.0)
    assert queue.try_pick(demand, 0.0, priority=1)

    stands(fleet, after_s, 2.0)

    assert (queue.try_pick(demand, after_s) is not None) is (after_s > 60.0)
    urgent = queue.waiting(demand, after_s, priority=1)
    assert queue.enter(urgent, after_s) == [urgent]
    assert urgent.pick


def test_a_grant_counts_in_full_where_urgent_calls_come() -> None:
    """It is this client's share of a room that is shared out among all."""
    fleet, queue, demand = one_replica(engine_queue_s=5.0)
    standing = int(2.0 * fleet.rates[0])
    fleet.hear(
        NAMES[0], LoadReport(source="b", at=0.0, prefill_tokens=standing, free_requests=9, free_tokens=99_999)
    )
    assert queue.try_pick(demand, 0.0, priority=1)
    usual = queue.waiting(demand, 0.0)

    assert queue.try_pick(demand, 0.0) is None
    assert queue.enter(usual, 0.0) == [usual]


def test_who_lets_no_call_wait_keeps_no_room() -> None:
    fleet, queue, demand = one_replica(queue_max_calls=0)
    assert queue.try_pick(demand, 0.0, priority=1)
    stands(fleet, 0.0, 2.0)

    assert queue.try_pick(demand, 0.0)
    assert queue.try_pick(demand, 0.0, priority=1)


def test_who_lets_no_call_wait_is_told_so() -> None:
    scene = Scene(queue_max_calls=0)
    call = scene.waiting()

    assert scene.queue.enter(call, 0.0) == [call]
    assert str(call.error) == "all replicas have enough to do, and none may wait (admission.queue_max_calls)"


@pytest.mark.parametrize(("since_s", "standing_s"), [(0.0, 1.0), (5.5, 1 / 3)])
def test_room_is_kept_in_an_overload_too(since_s: float, standing_s: float) -> None:
    """A fifth of what may stand, and of the third of it in an overload; then somebody looks."""
    fleet, queue, demand = one_replica(engine_queue_s=5.0)

    assert queue.try_pick(demand, 0.0, priority=1)
    stands(fleet, 0.0, 4.0)
    waiting = queue.waiting(demand, 0.0)
    assert queue.enter(waiting, 0.0) == []
    stands(fleet, since_s, standing_s + 0.1)
    assert queue.tick(since_s) == []

    assert since_s < queue.next_at() <= since_s + 0.15
    assert queue.tick(since_s + 0.15) == [waiting]


def test_what_has_begun_while_nobody_waited_is_no_pace() -> None:
    scene = Scene(queue_timeout_s=10.0)
    big = b"x" * 40_000
    for _ in range(3):
        scene.queue.enter(scene.waiting(text=big), 0.0)
    for now in (3.0, 6.0, 9.0):
        scene.pulls_one(now)
    assert not scene.queue
    scene.grant(10.0, 100)
    for _ in range(100):
        pick = scene.queue.try_pick(scene.waiting(10.0, text=big).demand, 10.0)
        assert pick
        pick.first_content(11.0)
    scene.grant(20.0, 0)

    ended = [each for _ in range(10) for each in scene.queue.enter(scene.waiting(20.0, text=big), 20.0)]

    assert len(ended) == 7, "two in nine seconds: the fourth would wait for fourteen"


def test_when_a_client_may_send_again_it_is_not_about_the_replica_that_let_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(2)
    opens_s = 1.0
    monkeypatch.setattr(scene.fleet, "opens_for_all_in_s", lambda now: opens_s)
    scene.grant(0.0, 1, 0)
    call = scene.waiting()
    assert scene.queue.enter(call, 0.0) == []

    opens_s = 0.0
    assert scene.queue.pull(0.1, 1) == [call]


def test_the_pace_of_long_ago_is_forgotten() -> None:
    scene = Scene(queue_timeout_s=100.0, queue_max_calls=200)
    for _ in range(150):
        assert scene.queue.enter(scene.waiting(text=b"x" * 40_000), 0.0) == []
    for number in range(1, 101):
        scene.pulls_one(number / 10)
    for now in range(13, 73, 3):
        scene.pulls_one(float(now))
    late = scene.waiting(70.0, text=b"x" * 40_000, deadline=130.0)

    assert len(scene.queue) == 30
    assert scene.queue.enter(late, 70.0) == [late], "one in three seconds, not 120 in 70"


def test_calls_that_end_before_they_have_begun_were_pulled_too() -> None:
    scene = Scene(queue_timeout_s=10.0)
    for _ in range(8):
        scene.queue.enter(scene.waiting(text=b"x" * 40_000), 0.0)
    for now in (1.0, 2.0, 3.0, 4.0):
        scene.grant(now, 1)
        (call,) = scene.queue.pull(now, 0)
        assert call.pick
        call.pick.settle(Verdict.CANCELLED, now)

    assert scene.queue.enter(scene.waiting(4.0, text=b"x" * 40_000), 4.0) == []
    assert len(scene.queue) == 5


def test_news_of_one_replica_is_no_reason_to_look_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AdmissionConfig(engine_queue_s=3.0)
    fleet = Fleet(PickingConfig(), Random(1), windows=config)
    fleet.update(Replica(name, f"http://{name}") for name in NAMES[:3])
    queue = Admission(config, fleet)
    for name, standing_s in zip(NAMES[:3], (3.9, 3.5, 3.8), strict=True):
        tokens = int(standing_s * fleet.rates[0])
        fleet.hear(name, LoadReport(source="test", at=0.0, prefill_tokens=tokens))
    waiting = queue.waiting(fleet.demand(fingerprint(b"x"), text_bytes=1), 0.0)
    assert queue.enter(waiting, 0.0) == []
    assert fleet.windows is not None
    drains_in_s, asked = fleet.windows.drains_in_s, []

    def drains(place: int, now: float, *, overload: bool) -> float:
        asked.append(place)
        return drains_in_s(place, now, overload=overload)

    monkeypatch.setattr(fleet.windows, "drains_in_s", drains)
    assert queue.pull(0.1, 2) == []

    assert asked == [2]
    assert queue.next_at() == pytest.approx(0.5, abs=0.01), "the second has room first"
    assert queue.tick(0.51) == [waiting]


@pytest.mark.parametrize("urgent_before", [False, True])
def test_a_deadline_counts_what_may_stand_before_a_call(urgent_before: bool) -> None:
    fleet, queue, demand = one_replica(engine_queue_s=3.0)
    if urgent_before:
        assert queue.try_pick(demand, 0.0, priority=1)
    shows_its_pace(fleet)
    stands(fleet, 0.0, 3.1)

    waiting = queue.waiting(demand, 0.0, deadline=3.0)

    assert queue.enter(waiting, 0.0) == ([] if urgent_before else [waiting])
    assert (waiting.error is None) is urgent_before


def test_a_deadline_counts_nothing_on_one_that_takes_no_calls() -> None:
    fleet, queue, demand = one_replica(engine_queue_s=3.0)
    fleet.update([Replica(NAMES[0], "http://a"), Replica(NAMES[1], "http://b")])
    shows_its_pace(fleet)
    stands(fleet, 0.0, 3.1)
    fleet.hear(NAMES[1], LoadReport(source="test", at=0.0, prefill_tokens=0, state=State.DRAINING))

    waiting = queue.waiting(demand, 0.0, deadline=3.0)

    assert queue.enter(waiting, 0.0) == [waiting]
    assert isinstance(waiting.error, NoCapacity)


def test_a_deadline_counts_no_work_where_places_are_what_lacks() -> None:
    """A replica whose batch is full may have nothing to prefill: who gets the next place begins at once."""
    fleet, queue, demand = one_replica(engine_queue_s=3.0)
    shows_its_pace(fleet)
    fleet.hear(NAMES[0], LoadReport(source="b", at=0.0, prefill_tokens=0, free_requests=0, free_tokens=9_000))

    assert queue.enter(queue.waiting(demand, 0.0, deadline=2.0), 0.0) == []


class Anything(RuleBasedStateMachine):
    """Calls come, leave, are pulled and end, in any order, while replicas grant, come and go."""

    entered = Bundle("entered")

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene(2, queue_max_calls=4, queue_timeout_s=5.0, ageing_s=2.0)
        self.now = 0.0
        self.all: list[Waiting] = []
        self.inside: set[Waiting] = set()
        self.picks: list[Pick] = []
        self.ended: set[Waiting] = set()

    def took(self, ended: list[Waiting]) -> None:
        for each in ended:
            assert each not in self.ended, "a call ended twice"
            assert (each.pick is None) is (each.error is not None)
            self.ended.add(each)
            self.inside.discard(each)
            if each.pick is not None:
                self.picks.append(each.pick)

    @rule(
        target=entered,
        priority=st.integers(-1, 1),
        tenant=st.sampled_from([None, "a", "b"]),
        deadline_s=st.sampled_from([0.5, 4.0, float("inf")]),
        excluded=st.sets(st.sampled_from(NAMES[:3]), max_size=1),
    )
    def come(self, priority: int, tenant: str | None, deadline_s: float, excluded: set[ReplicaId]) -> Waiting:
        call = self.scene.waiting(
            self.now, priority=priority, tenant=tenant, deadline=self.now + deadline_s, excluded=excluded
        )
        self.inside.add(call)
        self.took(self.scene.queue.enter(call, self.now))
        return call

    @rule(call=consumes(entered))
    def leave(self, call: Waiting) -> None:
        self.scene.queue.leave(call)
        self.inside.discard(call)

    @rule(free=st.lists(st.integers(0, 2), min_size=3, max_size=3), place=st.sampled_from([None, 0, 1, 2]))
    def grant(self, free: list[int], place: int | None) -> None:
        self.scene.grant(self.now, *free)
        self.took(self.scene.queue.pull(self.now, place))

    @rule(seconds=st.floats(0.01, 3.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.took(self.scene.queue.tick(self.now))

    @rule(number=st.integers(0, 20))
    def finish(self, number: int) -> None:
        if self.picks:
            self.picks.pop(number % len(self.picks)).settle(Verdict.OK, self.now)

    @rule(count=st.integers(0, 3))
    def members(self, count: int) -> None:
        self.scene.fleet.update(Replica(name, f"http://{name}") for name in NAMES[:count])
        self.took(self.scene.queue.forsaken())

    @invariant()
    def bounded_and_complete(self) -> None:
        assert len(self.scene.queue) == len(self.inside) <= 4
        assert all(each.due > self.now or each.since == self.now for each in self.inside)

    def teardown(self) -> None:
        self.took(self.scene.queue.tick(self.now + 10.0))
        assert not self.inside
        for pick in self.picks:
            pick.settle(Verdict.OK, self.now + 10.0)
        assert self.scene.fleet.ledger.requests == self.scene.fleet.ledger.tokens == 0


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
