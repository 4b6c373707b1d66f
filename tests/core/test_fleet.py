"""Invariants of the fleet's ledger and of picks, for any interleaving of what can happen."""

from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from mlbalance_client.config import PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet, Pick
from mlbalance_client.core.model import Replica, ReplicaId, Usage, Verdict
from mlbalance_client.core.placement.picker import Source
from mlbalance_client.errors import NoReplicas


def replica(number: int, model: str | None = None) -> Replica:
    id_ = ReplicaId(f"replica-{number}")
    return Replica(id_, f"http://{id_}", 1.0 + number % 2, models=frozenset({model} if model else ()))


def fleet_of(count: int, seed: int = 1, **picking: object) -> Fleet:
    fleet = Fleet(PickingConfig(**picking), Random(seed))
    fleet.update(replica(number) for number in range(count))
    return fleet


class Anything(RuleBasedStateMachine):
    """Calls start, show content, end in any way, more than once, while replicas come and go and the clock jumps."""

    picks = Bundle("picks")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.latest = 1000.0
        self.fleet = Fleet(PickingConfig(residual_s=2.0), Random(3))
        self.members: dict[ReplicaId, Replica] = {}
        self.open: set[Pick] = set()
        self.set_members({0, 1, 2})

    @rule(numbers=st.sets(st.integers(0, 7)))
    def set_members(self, numbers: set[int]) -> None:
        replicas = [replica(n, "x" if n == 7 else None) for n in numbers]
        before = set(self.members)
        self.members = {r.id: r for r in replicas}

        change = self.fleet.update(replicas)

        assert set(change.added) == set(self.members) - before
        assert set(change.removed) == before - set(self.members)

    @rule(
        target=picks,
        prompt=st.integers(0, 12),
        blind=st.booleans(),
        session=st.one_of(st.none(), st.integers(0, 3)),
        avoid=st.sets(st.integers(0, 7), max_size=3),
    )
    def call(self, prompt: int, blind: bool, session: int | None, avoid: set[int]) -> object:
        text = b"system " * 300 + bytes([prompt]) * 700 * prompt
        demand = self.fleet.demand(
            fingerprint(text), text_bytes=len(text), model="m", session=session, blind=blind
        )
        excluded = {ReplicaId(f"replica-{n}") for n in avoid}
        able = {id_ for id_, r in self.members.items() if r.serves("m") and id_ not in excluded}
        try:
            pick = self.fleet.pick(demand, self.now, excluded)
        except NoReplicas:
            assert not able
            return multiple()
        assert pick.replica.id in able
        self.open.add(pick)
        return pick

    @rule(pick=picks)
    def content(self, pick: Pick) -> None:
        pick.first_content(self.now)

    @rule(
        pick=consumes(picks),
        verdict=st.sampled_from(Verdict),
        cached=st.one_of(st.none(), st.integers(0, 5000)),
        twice=st.booleans(),
    )
    def end(self, pick: Pick, verdict: Verdict, cached: int | None, twice: bool) -> None:
        pick.settle(verdict, self.now, Usage(2000, cached, 50))
        if twice:
            pick.settle(Verdict.OK, self.now, Usage(1, 1, 1))
            pick.first_content(self.now)
        self.open.discard(pick)

    @rule(seconds=st.floats(-5, 50))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.latest = max(self.latest, self.now)
        self.fleet.ledger.sweep(self.now)

    @invariant()
    def nothing_is_negative(self) -> None:
        ledger = self.fleet.ledger
        accounts = [ledger.account(place) for place, _ in self.fleet.places()]
        for account in accounts:
            assert min(account.prefill_tokens, account.decode_tokens, account.requests) >= 0
            assert account.standing_s(self.now)[0] >= -1e-9
        assert ledger.tokens == sum(a.tokens for a in accounts)
        assert ledger.requests == sum(a.requests for a in accounts)

    def teardown(self) -> None:
        for pick in self.open:
            pick.settle(Verdict.CANCELLED, self.now)
        self.fleet.ledger.sweep(self.latest + 2.0)
        assert (self.fleet.ledger.tokens, self.fleet.ledger.requests) == (0, 0)
        for place, _ in self.fleet.places():
            account = self.fleet.ledger.account(place)
            assert (account.prefill_tokens, account.decode_tokens, account.requests) == (0, 0, 0)
            assert not account.queue


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def prompt(seed: int, size: int = 20_000) -> bytes:
    return Random(seed).randbytes(size)


def pick_for(fleet: Fleet, text: bytes, now: float = 0.0, **more: object) -> Pick:
    return fleet.pick(fleet.demand(fingerprint(text), text_bytes=len(text), **more), now)


def test_the_same_inputs_and_seed_give_the_same_picks() -> None:
    def run() -> list[str]:
        fleet = fleet_of(8, seed=5)
        return [pick_for(fleet, prompt(n % 7), n * 0.1).replica.id for n in range(60)]

    assert run() == run()


def test_a_prompt_goes_where_its_prefix_went() -> None:
    fleet = fleet_of(8)
    first = pick_for(fleet, prompt(1))
    first.first_content(1.0)
    first.settle(Verdict.OK, 2.0)

    again = pick_for(fleet, prompt(1) + prompt(2, 3000), 3.0)

    assert again.replica == first.replica
    assert again.decision.chosen.hit_tokens > 4000


def test_two_clients_that_share_nothing_send_a_prompt_to_the_same_replica() -> None:
    homes = {pick_for(fleet_of(8, seed=seed), prompt(1)).replica.id for seed in range(10)}

    assert len(homes) == 1


def test_prompts_that_share_only_their_system_prompt_are_spread() -> None:
    fleet = fleet_of(8)
    shared = prompt(0, 3000)

    places = {pick_for(fleet, shared + prompt(n), n * 0.01).replica.id for n in range(1, 60)}

    assert len(places) == 8


def test_a_loaded_home_spills_over() -> None:
    fleet = fleet_of(8)
    text = prompt(1, 200_000)

    places = [pick_for(fleet, text + prompt(n, 60_000)).replica.id for n in range(2, 30)]

    assert len(set(places)) > 1


def test_a_home_is_believed_to_hold_what_lies_between_its_anchor_and_the_next() -> None:
    candidates = pick_for(fleet_of(8), prompt(1, 100 * 1024)).decision.candidates

    depths = {round(c.hit_tokens / 256 / 0.8) for c in candidates if c.source is Source.HOME}
    assert 56 in depths
    assert depths <= {4, 16, 56}  # 2 to 8, 8 to 32, 32 to 100; two may have the same home


def test_a_session_sticks() -> None:
    fleet = fleet_of(8)
    places = set()
    for turn in range(10):
        pick = pick_for(fleet, prompt(turn), turn * 10.0, session=77)
        pick.first_content(turn * 10.0 + 1)
        pick.settle(Verdict.OK, turn * 10.0 + 2)
        places.add(pick.replica.id)

    assert len(places) == 1


def held_by(fleet: Fleet, pick: Pick, text: bytes) -> int:
    """How many blocks of a prompt its replica is believed to hold."""
    return fleet.index.depth(pick.place, fingerprint(text).chain)


@pytest.mark.parametrize("blind", [False, True])
@pytest.mark.parametrize("how", ["failed", "cut short"])
def test_what_never_began_is_not_believed_to_have_left_its_prompt(how: str, blind: bool) -> None:
    fleet = fleet_of(3)
    before = pick_for(fleet, prompt(1, 8_192))
    before.first_content(1.0)
    before.settle(Verdict.OK, 2.0)
    turn = prompt(1, 8_192) + prompt(2)
    hung = pick_for(fleet, turn, 3.0, session=7, blind=blind)
    assert hung.replica.id == before.replica.id
    assert held_by(fleet, hung, turn) == len(turn) // 1024

    if how == "cut short":
        hung.cut_short(40.0)
        hung.settle(Verdict.CANCELLED, 40.0)
    else:
        hung.settle(Verdict.FAILED, 40.0)
    assert held_by(fleet, hung, turn) == 8, "what it held before it holds still"

    new = pick_for(fleet, prompt(3), 50.0, session=8, blind=blind)
    new.cut_short(60.0)
    new.settle(Verdict.CANCELLED, 60.0)
    assert fleet.index.depth(new.place, (8,)) == 0, "nor is its session at home there"


def test_what_began_is_believed_to_have_its_prompt_though_its_caller_has_left() -> None:
    fleet = fleet_of(3)
    pick = pick_for(fleet, prompt(1))
    pick.first_content(1.0)
    pick.cut_short(2.0)
    pick.settle(Verdict.CANCELLED, 2.0)
    assert held_by(fleet, pick, prompt(1)) > 0


def test_a_cancelled_call_stays_charged_for_the_residual_time_and_no_longer() -> None:
    fleet = fleet_of(2, residual_s=2.0)
    pick = pick_for(fleet, prompt(1))
    pick.settle(Verdict.CANCELLED, 10.0)

    fleet.ledger.sweep(11.9)
    assert fleet.ledger.tokens > 0
    fleet.ledger.sweep(12.0)
    assert fleet.ledger.tokens == 0


def test_a_lower_priority_is_used_only_if_the_higher_one_cannot_serve() -> None:
    fleet = Fleet(PickingConfig(), Random(1))
    near = Replica(ReplicaId("near"), "http://near", priority=0, models=frozenset({"a"}))
    far = Replica(ReplicaId("far"), "http://far", priority=1)
    fleet.update([near, far])

    assert {pick_for(fleet, prompt(n), model="a").replica.id for n in range(20)} == {"near"}
    assert pick_for(fleet, prompt(1), model="b").replica.id == "far"


def test_nobody_serves_the_model() -> None:
    fleet = Fleet(PickingConfig(), Random(1))
    fleet.update([Replica(ReplicaId("r"), "http://r", models=frozenset({"llama"}))])

    with pytest.raises(NoReplicas, match=r"no replica serves model 'gpt'; the fleet serves llama"):
        pick_for(fleet, prompt(1), model="gpt")


def test_another_zone_is_used_when_the_own_one_is_busy() -> None:
    fleet = Fleet(PickingConfig(zone="a", cross_zone_penalty_s=3.0), Random(1))
    fleet.update(
        Replica(ReplicaId(f"{zone}{n}"), f"http://{zone}{n}", zone=zone) for zone in "ab" for n in range(2)
    )

    zones = [pick_for(fleet, prompt(n, 40_000)).replica.zone for n in range(24)]

    assert zones[:2] == ["a", "a"]
    assert "b" in zones


@pytest.mark.parametrize("policy", ["round_robin", "least_requests", "least_tokens"])
def test_policies_for_contrast_spread_by_weight(policy: str) -> None:
    fleet = fleet_of(4, policy=policy)

    places = [pick_for(fleet, prompt(1)).replica.id for _ in range(12)]

    assert [places.count(f"replica-{n}") for n in range(4)] == [2, 4, 2, 4]


def test_a_second_attempt_goes_to_nobody_who_rests() -> None:
    fleet = fleet_of(3)
    first = pick_for(fleet, prompt(1))
    for place, each in fleet.places():
        if each.id != first.replica.id:
            fleet.fitness.pushback.failed(place, 0.0, 5.0)
    tried = {first.replica.id}

    assert fleet.alternative(first.demand, tried, 4.0) is None
    assert fleet.choose(first.demand, 4.0, tried).chosen.place != first.place, "a retry may go there"
    assert fleet.alternative(first.demand, tried, 9.0) is not None


def test_nobody_loses_his_turn_to_a_call_that_is_not_sent() -> None:
    """Neither by an explanation nor by a second attempt that is thought better of."""
    quiet, asked = (fleet_of(3, policy="round_robin") for _ in range(2))
    turns: list[list[str]] = [[], []]
    for turn in range(30):
        for fleet, seen in zip((quiet, asked), turns, strict=True):
            pick = pick_for(fleet, prompt(turn), float(turn))
            seen.append(pick.replica.id)
            if fleet is asked:
                fleet.choose(pick.demand, float(turn))
                assert fleet.alternative(pick.demand, {pick.replica.id}, float(turn)) is not None
            pick.settle(Verdict.OK, turn + 0.5)
    assert turns[0] == turns[1]


def test_random_goes_by_weight() -> None:
    fleet = fleet_of(2, policy="random")

    places = [pick_for(fleet, prompt(1)).replica.id for _ in range(3000)]

    assert 850 < places.count("replica-0") < 1150


def test_the_number_of_candidates_does_not_grow_with_the_fleet() -> None:
    fleet = fleet_of(1000)
    for n in range(50):
        pick = pick_for(fleet, prompt(n % 5, 150_000) + prompt(n, 5000))

        assert len(pick.decision.candidates) <= 8 + 8 + 4


def test_hits_grow_the_belief_and_misses_shrink_it() -> None:
    fleet = fleet_of(1)
    for n in range(3):
        pick = pick_for(fleet, prompt(1), float(n))
        pick.first_content(n + 0.5)
        pick.settle(Verdict.OK, n + 0.6, Usage(5000, 0, 10))

    assert fleet.cache_limit_tokens(0) < 1_000_000
