"""Outliers are found by what the others show, out for a bounded time and share, and led back with care."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.config import OutlierDetectionConfig, PickingConfig, SlowStartConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet, Pick
from mlbalance_client.core.health.fitness import News
from mlbalance_client.core.health.outlier import Failure, Outliers, failure_of, failure_of_status, wilson_low
from mlbalance_client.core.health.pushback import Pushback
from mlbalance_client.core.health.slow_start import SlowStart
from mlbalance_client.core.model import Demand, Replica, ReplicaId, Usage, Verdict
from mlbalance_client.core.report import snapshot
from mlbalance_client.errors import FailureKind
from mlbalance_client.events import PanicChanged, ReplicaEjected, ReplicaReturned

Behaviour = Callable[[str, float, float], tuple[float, bool]]


def replicas(count: int, **given: object) -> list[Replica]:
    return [Replica(ReplicaId(f"r{i}"), f"http://r{i}", **given) for i in range(count)]  # type: ignore[arg-type]


class World:
    """A fleet of which each replica answers as ``behave(id, own_s, now)`` says: after how long, and whether well."""

    def __init__(
        self, count: int, *, rest_s: float = 0.0, window_s: float = 30.0, seed: int = 1, **knobs: float
    ) -> None:
        self.rng = Random(seed)
        self.news: list[News] = []
        self.fleet = Fleet(
            PickingConfig(),
            self.rng,
            Pushback(rest_s, 30.0),
            outliers=Outliers(OutlierDetectionConfig(**knobs), self.rng),
            slow_start=SlowStart(SlowStartConfig(window_s=window_s)),
            tell=self.news.append,
        )
        self.fleet.update(replicas(count))
        self.now = 0.0
        self.calls: dict[str, int] = {}

    def demand(self) -> Demand:
        return self.fleet.demand(fingerprint(self.rng.randbytes(8000)), text_bytes=8000)

    def run(self, calls: int, behave: Behaviour, every_s: float = 0.05, *, dealt: bool = False) -> None:
        """``calls`` calls, one after the other. ``dealt``: to each replica in turn, as sticky prompts may be."""
        everybody = [replica.id for replica in self.fleet.replicas]
        for number in range(calls):
            self.now += every_s
            others = [id_ for id_ in everybody if id_ != everybody[number % len(everybody)]] if dealt else ()
            self.finish(self.fleet.pick(self.demand(), self.now, others), behave)

    def finish(self, pick: Pick, behave: Behaviour) -> None:
        name = pick.replica.id
        self.calls[name] = self.calls.get(name, 0) + 1
        own_s = 0.2
        took_s, well = behave(name, own_s, self.now)
        if not well:
            pick.failed(self.now + took_s)
            pick.settle(Verdict.FAILED, self.now + took_s)
            return
        pick.first_content(self.now + took_s)
        pick.settle(Verdict.OK, self.now + took_s, Usage(2000, 0, 10))

    def ejected(self) -> list[str]:
        return [event.replica for event in self.news if isinstance(event, ReplicaEjected)]


def slow(who: Iterable[str], factor: float) -> Behaviour:
    names = set(who)
    return lambda name, own_s, now: (own_s * (factor if name in names else 1.0), True)


def failing(who: Iterable[str], share: float, rng: Random) -> Behaviour:
    names = set(who)
    return lambda name, own_s, now: (own_s, name not in names or rng.random() >= share)


@pytest.mark.parametrize("count", [3, 8, 300])
def test_a_replica_ten_times_slower_is_ejected(count: int) -> None:
    world = World(count)
    world.run(count * 12, slow({"r1"}, 10.0), dealt=True)

    assert set(world.ejected()) == {"r1"}
    assert "took" in world.news[0].why  # type: ignore[union-attr]


@pytest.mark.parametrize("count", [3, 8])
@pytest.mark.parametrize("factor", [2.0, 3.0])
def test_unlike_replicas_are_weighed_not_ejected(count: int, factor: float) -> None:
    world = World(count)
    world.run(600, slow({"r1"}, factor), dealt=True)

    assert world.ejected() == []


def test_a_fleet_that_is_slow_altogether_ejects_nobody() -> None:
    world = World(8)
    world.run(200, slow((), 1.0), dealt=True)
    world.run(200, slow({f"r{i}" for i in range(8)}, 12.0), dealt=True)

    assert world.ejected() == []


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("seed", range(5))
def test_one_that_fails_half_its_calls_is_ejected_within_twenty_of_them(count: int, seed: int) -> None:
    world = World(count, seed=seed)
    behave = failing({"r1"}, 0.5, Random(seed))
    while not world.ejected() and world.calls.get("r1", 0) < 40:
        world.run(1, behave)

    assert world.ejected() == ["r1"]
    assert world.calls["r1"] <= 20


def test_when_all_fail_nobody_is_ejected() -> None:
    world = World(8)
    everybody = {f"r{i}" for i in range(8)}
    world.run(400, failing(everybody, 1.0, Random(1)))

    assert world.ejected() == []


@pytest.mark.parametrize(
    ("status", "after_s", "says_busy"),
    [(429, None, False), (529, None, False), (503, 1.0, False), (503, None, True)],
)
def test_pushback_is_no_failure(status: int, after_s: float | None, says_busy: bool) -> None:
    world = World(3)
    for _ in range(50):
        pick = world.fleet.pick(world.demand(), world.now)
        pick.failed(world.now, after_s, failure_of_status(status, after_s, says_busy=says_busy))
        pick.settle(Verdict.FAILED, world.now)

    assert world.ejected() == []


@pytest.mark.parametrize(
    ("status", "retry_after_s", "failure"),
    [
        (429, None, Failure.PUSHBACK),
        (529, None, Failure.PUSHBACK),
        (503, 2.0, Failure.PUSHBACK),
        (503, None, Failure.ERROR),
        (503, 0.0, Failure.ERROR),
        (500, 2.0, Failure.ERROR),
    ],
)
def test_a_503_is_pushback_only_if_it_names_a_time_to_come(
    status: int, retry_after_s: float | None, failure: Failure
) -> None:
    assert failure_of_status(status, retry_after_s) is failure


def test_one_that_refuses_connections_is_unreachable_after_three() -> None:
    world = World(3)
    for _ in range(3):
        pick = world.fleet.pick(world.demand(), world.now, {ReplicaId("r0"), ReplicaId("r2")})
        pick.failed(world.now, kind=Failure.UNREACHABLE)
        pick.settle(Verdict.FAILED, world.now)

    [event] = world.news
    assert isinstance(event, ReplicaEjected)
    assert event.unreachable
    assert "refused" in event.why


def others_of(world: World, id_: str) -> set[ReplicaId]:
    return {replica.id for replica in world.fleet.replicas} - {ReplicaId(id_)}


def only_to(world: World, id_: str) -> Pick:
    return world.fleet.pick(world.demand(), world.now, others_of(world, id_))


def answered(world: World, id_: str, after_s: float) -> None:
    """A call to one replica begins its answer after so long."""
    pick = only_to(world, id_)
    pick.first_content(world.now + after_s)
    pick.settle(Verdict.OK, world.now + after_s, Usage(2000, 0, 10))


@pytest.mark.parametrize(("calls", "looks"), [(5, 1), (3, 3)])
def test_one_that_answers_nobody_is_ejected(calls: int, looks: int) -> None:
    world = World(4)
    picks = [only_to(world, "r1") for _ in range(calls)]
    for look in range(looks):
        for pick in picks:
            assert world.ejected() == []
            pick.silent(look + 1.0, look)
    assert world.ejected() == []  # nobody has been heard since: it may be we who stood still

    world.now = looks + 0.5
    answered(world, "r0", 0.2)
    world.fleet.pick(world.demand(), world.now)

    assert world.ejected() == ["r1"]


def test_streams_that_go_on_say_nothing_of_whether_prompts_are_served() -> None:
    world = World(4)
    old = only_to(world, "r1")
    old.first_content(0.1)
    world.now = 0.2
    for _ in range(5):
        pick = only_to(world, "r1")
        old.piece(world.now, world.now + 1.0)
        pick.silent(world.now + 1.1)
    world.now = 1.5
    answered(world, "r0", 0.2)
    world.fleet.pick(world.demand(), world.now)

    assert world.ejected() == ["r1"]


def test_one_that_may_be_silent_gets_one_call_at_a_time() -> None:
    world = World(2)
    first, second = only_to(world, "r1"), only_to(world, "r1")
    first.silent(1.0)
    second.silent(1.0)
    world.now = 1.0
    answered(world, "r0", 0.1)
    for _ in range(20):
        assert world.fleet.pick(world.demand(), world.now).replica.id == "r0"

    first.settle(Verdict.FAILED, world.now)
    second.settle(Verdict.FAILED, world.now)
    picks = [world.fleet.pick(world.demand(), world.now).replica.id for _ in range(20)]
    assert picks.count(ReplicaId("r1")) == 1


def test_one_that_is_back_from_silence_and_silent_again_is_out_after_one_call() -> None:
    world = World(4, ejection_base_s=10.0)
    for pick in [only_to(world, "r1") for _ in range(5)]:
        pick.silent(1.0)
    world.now = 1.5
    answered(world, "r0", 0.2)
    world.fleet.pick(world.demand(), world.now)
    assert world.ejected() == ["r1"]

    world.now = 20.0
    only_to(world, "r1").silent(21.0)
    world.now = 21.0
    answered(world, "r0", 0.2)
    world.fleet.pick(world.demand(), world.now)

    assert world.ejected() == ["r1", "r1"]


@given(st.data())
def test_one_whose_queue_is_long_is_not_silent(data: st.DataObject) -> None:
    """However long it is, and whatever the others do: while a prompt is served within each delay, calls only wait."""
    world, delay_s = World(3), 1.0
    prefills_s = data.draw(st.lists(st.floats(0.01, delay_s * 0.99), min_size=3, max_size=30))
    picks = [only_to(world, "r1") for _ in prefills_s]
    done_s = list(accumulate(prefills_s))
    told: list[tuple[float, Callable[[], object]]] = []
    for pick, at in zip(picks, done_s, strict=True):
        told.append((at, partial(pick.first_content, at)))
        looks = range(1, int(at / delay_s) + 1)
        told += [(k * delay_s, partial(pick.silent, k * delay_s, (k - 1) * delay_s)) for k in looks]
    for at in data.draw(st.lists(st.floats(0.0, done_s[-1]), max_size=20)):
        told.append((at, lambda at=at: only_to(world, "r0").first_content(at + 0.1)))
    for at, tell in sorted(told, key=lambda event: event[0]):
        world.now = at
        tell()

    assert world.ejected() == []


@given(st.lists(st.floats(3.0, 9.0), min_size=1, max_size=40), st.integers(1, 12))
def test_one_that_is_slow_where_the_others_are_is_not_silent(took_s: list[float], calls: int) -> None:
    world = World(4)
    for pick in [only_to(world, "r1") for _ in range(calls)]:
        pick.silent(3.0)
    for number, took in enumerate(took_s):
        world.now = 3.0 + number
        answered(world, "r0", took)
    world.fleet.pick(world.demand(), world.now)

    assert "r1" not in world.ejected()


def test_a_short_prompt_among_the_slow_ones_hides_no_silence() -> None:
    world = World(4)
    short, *others = [only_to(world, "r1") for _ in range(5)]
    short.silent(0.2)
    for number in range(3):
        world.now = 1.0 + number
        answered(world, "r0", 1.0)
    for pick in others:
        pick.silent(4.0)
    assert "r1" not in world.ejected()
    for number in range(4):
        world.now = 4.0 + number
        answered(world, "r0", 1.0)
    world.fleet.pick(world.demand(), world.now)

    assert world.ejected() == ["r1"]


def test_one_slow_call_is_its_own_affair_however_long_it_stands() -> None:
    world = World(4)
    pick = world.fleet.pick(world.demand(), 0.0)
    for now in range(1, 100):
        pick.silent(float(now), now - 1.0)
        world.now = now + 0.5
        world.finish(world.fleet.pick(world.demand(), world.now, {pick.replica.id}), slow((), 1.0))

    assert world.ejected() == []
    assert pick.mute


def test_slow_calls_say_nothing_of_a_replica_that_has_answered_since_they_began() -> None:
    world = World(4)
    others = {ReplicaId(f"r{i}") for i in (0, 2, 3)}
    stalled = [world.fleet.pick(world.demand(), 0.0, others) for _ in range(4)]
    world.now = 0.5
    world.finish(world.fleet.pick(world.demand(), world.now, others), slow((), 1.0))
    world.finish(world.fleet.pick(world.demand(), world.now, {ReplicaId("r1")}), slow((), 1.0))
    for pick in stalled:
        pick.silent(1.0)
        assert not pick.mute
    assert world.ejected() == []

    world.now = 1.5
    world.finish(world.fleet.pick(world.demand(), world.now, {ReplicaId("r1")}), slow((), 1.0))
    for now in (2.0, 3.0, 4.0):
        for pick in stalled:
            pick.silent(now, now - 1.0)  # looked at again: nothing came since the last look
        answered(world, "r0", 0.5)

    world.fleet.pick(world.demand(), world.now)
    assert world.ejected() == ["r1"]


def test_a_sign_of_life_ends_the_silence() -> None:
    world = World(1 + 3)
    others = {ReplicaId(f"r{i}") for i in (0, 2, 3)}
    for _ in range(6):
        silent = world.fleet.pick(world.demand(), world.now, others)
        silent.silent(world.now + 1.0)
        alive = world.fleet.pick(world.demand(), world.now, others)
        alive.first_content(world.now + 1.1)

    assert world.ejected() == []


def test_calls_given_up_early_tell_nothing_of_speed() -> None:
    world = World(8)
    world.run(200, slow((), 1.0), dealt=True)
    for _ in range(50):
        pick = world.fleet.pick(world.demand(), world.now, {ReplicaId(f"r{i}") for i in range(1, 8)})
        pick.cut_short(world.now + 0.01)
        pick.settle(Verdict.CANCELLED, world.now + 0.01)
    assert world.ejected() == []

    for _ in range(20):
        world.now += 60.0
        pick = world.fleet.pick(world.demand(), world.now, {ReplicaId(f"r{i}") for i in range(1, 8)})
        pick.cut_short(world.now + 30.0)
        pick.settle(Verdict.CANCELLED, world.now + 30.0)

    assert world.ejected() == ["r0"]


def test_it_comes_back_on_trial_and_then_by_and_by() -> None:
    world = World(4, ejection_base_s=10.0)
    world.run(60, slow({"r1"}, 10.0), dealt=True)
    assert world.ejected() == ["r1"]
    before = world.calls["r1"]

    world.now += 12.0
    first = world.fleet.pick(world.demand(), world.now)
    while first.replica.id != "r1":
        first = world.fleet.pick(world.demand(), world.now)
    assert any(isinstance(event, ReplicaReturned) for event in world.news)
    held = [world.fleet.pick(world.demand(), world.now) for _ in range(30)]
    assert "r1" not in {pick.replica.id for pick in held}  # one call at a time

    world.finish(first, slow((), 1.0))
    for pick in held:
        world.finish(pick, slow((), 1.0))
    early, late = world.calls["r1"], 0
    world.run(100, slow((), 1.0), every_s=0.01)
    early = world.calls["r1"] - early
    world.now += 60.0
    late = world.calls["r1"]
    world.run(100, slow((), 1.0), every_s=0.01)
    late = world.calls["r1"] - late

    assert before < world.calls["r1"]
    assert early < late / 2


def test_who_fails_on_trial_is_out_for_longer() -> None:
    world = World(4, ejection_base_s=10.0)
    world.run(60, slow({"r1"}, 10.0), dealt=True)
    world.now += 12.0
    world.run(60, failing({"r1"}, 1.0, Random(1)), every_s=0.001)

    first, second = [event for event in world.news if isinstance(event, ReplicaEjected)]
    assert second.replica == "r1"
    assert second.count == 2
    assert 16.0 < second.for_s < 24.0
    assert 8.0 < first.for_s < 12.0


def test_calls_that_cannot_be_repeated_try_nobody_out() -> None:
    world = World(4, ejection_base_s=10.0)
    world.run(60, slow({"r1"}, 10.0), dealt=True)
    world.now += 12.0
    for _ in range(40):
        demand = world.fleet.demand(fingerprint(world.rng.randbytes(4000)), text_bytes=4000, replayable=False)
        assert world.fleet.pick(demand, world.now).replica.id != "r1"


def test_where_no_call_can_be_repeated_a_newcomer_is_tried_all_the_same() -> None:
    """Else a rolling restart would leave all calls of an API that we do not know to the last old replica."""
    world = World(3, window_s=10.0)
    world.fleet.update(replicas(4), world.now)
    taken = set()
    for _ in range(60):
        world.now += 1.0
        demand = world.fleet.demand(fingerprint(world.rng.randbytes(4000)), text_bytes=4000, replayable=False)
        pick = world.fleet.pick(demand, world.now)
        if pick.replica.id == "r3":
            assert world.now >= 10.0
        taken.add(pick.replica.id)
        world.finish(pick, slow((), 1.0))

    assert "r3" in taken


def test_what_was_sent_before_a_trial_neither_ends_it_nor_makes_room_for_another() -> None:
    world = World(3, ejection_base_s=10.0)
    others = {ReplicaId("r0"), ReplicaId("r2")}

    def to_r1() -> Pick:
        return world.fleet.pick(world.demand(), world.now, others)

    def eject() -> None:
        for _ in range(3):
            to_r1().failed(world.now, kind=Failure.UNREACHABLE)
        world.now += 20.0
        world.fleet.pick(world.demand(), world.now).settle(Verdict.CANCELLED, world.now)

    streams = to_r1()
    eject()
    streams.settle(Verdict.OK, world.now)
    assert world.fleet.fitness.slow_start.on_trial(1)

    hangs = to_r1()
    other = to_r1()  # for want of another
    other.failed(world.now, kind=Failure.BROKEN)
    other.settle(Verdict.FAILED, world.now)
    world.now += 40.0
    tried = world.fleet.pick(world.demand(), world.now)
    while tried.replica.id != "r1":
        tried = world.fleet.pick(world.demand(), world.now)
    hangs.settle(Verdict.CANCELLED, world.now)
    assert "r1" not in {world.fleet.pick(world.demand(), world.now).replica.id for _ in range(20)}


@pytest.mark.parametrize("broken", [FailureKind.READ, FailureKind.PROTOCOL])
def test_a_replica_that_dies_amid_calls_is_out_at_its_first_refusal(broken: FailureKind) -> None:
    world = World(3)

    for kind in (broken, broken, FailureKind.CONNECT):
        assert not world.ejected()
        failure = failure_of(kind)
        assert failure
        world.fleet.pick(world.demand(), world.now, ("r0", "r2")).failed(world.now, kind=failure)

    assert world.ejected() == ["r1"]


def test_newcomers_start_slowly_but_a_fleet_of_newcomers_does_not() -> None:
    world = World(4)
    assert not world.fleet.fitness.slow_start.active
    world.run(40, slow((), 1.0))

    world.fleet.update(replicas(5), world.now)
    picks = [world.fleet.pick(world.demand(), world.now) for _ in range(40)]

    assert sum(pick.replica.id == "r4" for pick in picks) == 1


def test_a_call_rather_goes_to_an_ejected_replica_than_nowhere() -> None:
    world = World(2)
    world.run(60, failing({"r1"}, 1.0, Random(1)))
    assert world.ejected() == ["r1"]

    pick = world.fleet.pick(world.demand(), world.now, {ReplicaId("r0")})

    assert pick.replica.id == "r1"


def test_in_panic_everybody_is_asked_but_the_unreachable() -> None:
    world = World(8, max_ejected_share=0.75, panic_below_share=0.5)
    for i in range(5):
        others = {ReplicaId(f"r{j}") for j in range(8) if j != i}
        kind = Failure.UNREACHABLE if i == 0 else Failure.ERROR
        for _ in range(6):
            pick = world.fleet.pick(world.demand(), world.now, others)
            pick.failed(world.now, kind=kind)
            pick.settle(Verdict.FAILED, world.now)
            for j in range(5, 8):
                rest = {ReplicaId(f"r{k}") for k in range(8) if k != j}
                world.finish(world.fleet.pick(world.demand(), world.now, rest), slow((), 1.0))

    assert [event for event in world.news if isinstance(event, PanicChanged)][-1].on
    seen = {world.fleet.pick(world.demand(), world.now).replica.id for _ in range(200)}
    assert seen == {f"r{i}" for i in range(1, 8)}


def test_one_that_rests_is_asked_before_one_that_refuses_connections() -> None:
    world = World(3, rest_s=1.0)
    for name, kind in (("r0", Failure.UNREACHABLE), ("r1", Failure.ERROR), ("r2", Failure.ERROR)):
        others = {replica.id for replica in world.fleet.replicas} - {ReplicaId(name)}
        for _ in range(3 if kind is Failure.UNREACHABLE else 1):
            pick = world.fleet.pick(world.demand(), world.now, others)
            pick.failed(world.now, 5.0, kind=kind)
            pick.settle(Verdict.FAILED, world.now)

    assert {world.fleet.pick(world.demand(), world.now).replica.id for _ in range(20)} == {"r1", "r2"}
    assert world.fleet.pick(world.demand(), world.now, {ReplicaId("r1"), ReplicaId("r2")}).replica.id == "r0"


def test_one_that_is_being_tried_gets_a_second_call_rather_than_an_ejected_one() -> None:
    world = World(2, panic_below_share=0.0)
    world.fleet.update(replicas(3)[::2], world.now)  # r0 stays, r2 is new
    for _ in range(5):
        pick = world.fleet.pick(world.demand(), world.now, {ReplicaId("r2")})
        pick.failed(world.now)
        pick.settle(Verdict.FAILED, world.now)
    assert world.ejected() == ["r0"]

    assert {world.fleet.pick(world.demand(), world.now).replica.id for _ in range(3)} == {"r2"}


def test_a_change_of_the_fleet_that_begins_or_ends_panic_is_told() -> None:
    world = World(5, max_ejected_share=0.5)
    for name in ("r1", "r2"):
        for _ in range(3):
            pick = world.fleet.pick(
                world.demand(), 0.0, {r.id for r in world.fleet.replicas} - {ReplicaId(name)}
            )
            pick.failed(0.0, kind=Failure.UNREACHABLE)
            pick.settle(Verdict.FAILED, 0.0)
    assert not world.fleet.fitness.outliers.panic

    world.fleet.update(replicas(3), 1.0)  # of whom only r0 is left
    world.fleet.update(replicas(8), 2.0)

    assert [event.on for event in world.news if isinstance(event, PanicChanged)] == [True, False]


def streams(world: World, *, beside_prefill: bool = False, others_s: float = 0.0) -> list[ReplicaEjected]:
    """Each replica streams, r1 ten times slower; ``beside_prefill``: while prompts of this client stand there.

    ``others_s``: how long calls wait, now and then, for others' work.
    """
    for turn in range(60):
        waits_s = others_s * (turn % 2)
        for name, gap_s in (("r0", 0.02), ("r1", 0.2), ("r2", 0.02), ("r3", 0.02)):
            others = {r.id for r in world.fleet.replicas} - {ReplicaId(name)}
            pick = world.fleet.pick(world.demand(), world.now, others)
            begun = world.now + 0.2 + waits_s
            pick.first_content(begun)
            if beside_prefill:
                standing = world.fleet.pick(world.demand(), begun, others)
            for number in range(10):
                asked = begun + number * gap_s
                pick.piece(asked, asked + gap_s)
            world.now += 3.0
            pick.settle(Verdict.OK, world.now, Usage(2000, 0, 10))
            if beside_prefill:
                standing.settle(Verdict.CANCELLED, world.now)
    return [event for event in world.news if isinstance(event, ReplicaEjected)]


@pytest.mark.parametrize("joins", [False, True])
def test_one_whose_streams_are_slow_is_ejected_also_while_another_starts(joins: bool) -> None:
    world = World(4)
    if joins:
        world.fleet.update(replicas(5), world.now)

    (event,) = streams(world)

    assert event.replica == "r1"
    assert "streams" in event.why


def test_streams_beside_prefill_are_slow_at_a_sound_replica_too() -> None:
    """A step that takes a chunk of a prompt takes many times as long: one that is busier is not slower."""
    world = World(4)

    assert not streams(world, beside_prefill=True)


def test_streams_beside_others_prefill_are_slow_at_a_sound_replica_too() -> None:
    assert not streams(World(4), others_s=1.0)


def test_a_tier_spills_when_its_replicas_are_ejected() -> None:
    world = World(0)
    world.fleet.update([*replicas(2), Replica(ReplicaId("b"), "http://b", priority=1)], 0.0)
    world.run(60, failing({"r1"}, 1.0, Random(1)))
    assert world.ejected() == ["r1"]

    world.calls.clear()
    world.run(200, slow((), 1.0), every_s=0.001)

    assert world.calls["b"] > 0


@pytest.mark.parametrize("kind", list(FailureKind))
def test_every_kind_of_failure_is_judged(kind: FailureKind) -> None:
    by_caller = kind in (FailureKind.REQUEST, FailureKind.CANCELLED, FailureKind.UNREAD)
    other = kind in (FailureKind.STATUS, FailureKind.IN_BAND)  # judged by their status

    assert (failure_of(kind) is None) is (by_caller or other)


@given(hits=st.integers(0, 100), more=st.integers(0, 100))
def test_the_lower_bound_is_below_the_share_and_above_nothing(hits: int, more: int) -> None:
    count = hits + more
    low = wilson_low(hits, count)

    assert -1e-9 <= low <= (hits / count if count else 0.0) + 1e-9


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ok", "slow", "error", "refused", "silent", "wait", "cancel", "leave", "join"]),
        st.integers(0, 9),
    ),
    max_size=120,
)


@given(
    events=EVENTS,
    count=st.integers(1, 10),
    share=st.floats(0.0, 1.0),
    panic=st.floats(0.0, 1.0),
    seed=st.integers(0, 9),
)
def test_the_share_holds_the_last_one_stays_and_nobody_ejected_is_picked(
    events: list[tuple[str, int]], count: int, share: float, panic: float, seed: int
) -> None:
    world = World(count, seed=seed, max_ejected_share=share, panic_below_share=panic)
    fleet, members = world.fleet, set(range(count))
    for what, number in events:
        world.now += 0.1
        if what == "wait":
            world.now += 40.0 * number
        elif what == "leave" and len(members) > 1:
            members.discard(number)
            fleet.update([r for i, r in enumerate(replicas(10)) if i in members], world.now)
        elif what == "join":
            members.add(number)
            fleet.update([r for i, r in enumerate(replicas(10)) if i in members], world.now)
        else:
            kept = {ReplicaId(f"r{i}") for i in range(10) if i != number} if number in members else set()
            pick = fleet.pick(world.demand(), world.now, kept)
            later = world.now + (9.0 if what == "slow" else 0.2)
            if what == "silent":
                pick.silent(later)
            elif what in ("error", "refused"):
                pick.failed(later, kind=Failure.ERROR if what == "error" else Failure.UNREACHABLE)
                pick.settle(Verdict.FAILED, later)
            elif what == "cancel":
                pick.cut_short(later)
                pick.settle(Verdict.CANCELLED, later)
            else:
                pick.first_content(later)
                pick.settle(Verdict.OK, later, Usage(2000, 0, 10))

        pick = fleet.pick(world.demand(), world.now)
        out = list(fleet.fitness.outliers.out)
        refusing = [ejection for ejection in out if ejection.unreachable]
        reachable = len(members) - len(refusing)
        ejected = len(out) - len(refusing)
        assert ejected <= max(share * reachable, 1 if share else 0)
        assert ejected < max(1, reachable)
        assert all(ejection.until - world.now <= 300.0 * 1.1 for ejection in out)
        names = {fleet_place for fleet_place, replica in fleet.places() if replica.id == pick.replica.id}
        willing = [p for p, _ in fleet.places() if fleet.fitness.outliers.ejection(p) is None]
        if willing and not fleet.fitness.outliers.panic:
            assert not names & {ejection.place for ejection in fleet.fitness.outliers.out}
        pick.settle(Verdict.CANCELLED, world.now)
    world.now += 400.0
    fleet.pick(world.demand(), world.now)
    assert all(ejection.until > world.now for ejection in fleet.fitness.outliers.out)


@pytest.mark.parametrize("asked", ["for a snapshot", "whom to check"])
def test_an_ejection_ends_in_time_though_nobody_calls(asked: str) -> None:
    world = World(3)
    world.run(60, failing({"r1"}, 1.0, world.rng), dealt=True)
    (ejected,) = [event for event in world.news if isinstance(event, ReplicaEjected)]
    over_at = ejected.at + ejected.for_s

    def look(now: float) -> None:
        if asked == "for a snapshot":
            out = [row.id for row in snapshot(world.fleet, now, "prefix_tokens").replicas if row.ejected]
            assert out == (["r1"] if now < over_at else [])
        else:
            world.fleet.fitness.without_evidence(now, 10.0)

    look(over_at - 0.1)
    assert not [event for event in world.news if isinstance(event, ReplicaReturned)]
    look(over_at + 0.1)
    assert [event.replica for event in world.news if isinstance(event, ReplicaReturned)] == ["r1"]
