"""The simulated engine conserves what it must, and is a plausible engine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.simulator.model.engine import Engine
from mlbalance_client.simulator.model.router import quote
from mlbalance_client.simulator.model.spec import Emission, EmissionKind, EngineSpec, Job

SMALL = EngineSpec(step_tokens=64, max_running=4, kv_tokens=1200)

jobs = st.lists(
    st.tuples(
        st.floats(0, 3),  # arrives after the one before
        st.integers(0, 3),  # shared prefix
        st.integers(1, 300),  # prompt
        st.integers(1, 40),  # output
        st.one_of(st.none(), st.floats(0, 2)),  # cancelled after
        st.sampled_from([1.0, 1.0, 3.0]),  # stalled
    ),
    min_size=1,
    max_size=15,
)


def job(number: int, prefix: int, prompt: int, output: int, block: int = 16) -> Job:
    blocks = tuple(prefix * 1000 + i if i < 5 else -(number * 1000 + i) for i in range(prompt // block))
    return Job(str(number), blocks, block, prompt, output)


def run(events: list, step_s: float | None = None) -> tuple[Engine, list[Emission]]:
    """Play arrivals and cancellations; advance in one go between them, or in steps of ``step_s``."""
    engine = Engine(SMALL, emit_tokens=True)
    emissions: list[Emission] = []
    timeline, now = [], 0.0
    for number, (after, prefix, prompt, output, cancel, stall) in enumerate(events):
        now += after
        timeline.append((now, 0, number, job(number, prefix, prompt, output), stall))
        if cancel is not None:
            timeline.append((now + cancel, 1, number, None, 1.0))
    clock = 0.0
    for at, _, number, submitted, stall in sorted(timeline, key=lambda e: e[:3]):
        while step_s is not None and clock + step_s < at:
            clock += step_s
            emissions += engine.advance(clock)
        emissions += engine.advance(at)
        assert engine.cache.used_tokens <= SMALL.kv_tokens + SMALL.step_tokens + 300
        if submitted is not None:
            engine.submit(at, submitted, stall=stall)
        else:
            engine.cancel(at, str(number))
    while (end := engine.next_at()) is not None:
        emissions += engine.advance(end)
    return engine, emissions


@settings(max_examples=150, deadline=None)
@given(jobs)
def test_every_job_ends_once_and_nothing_is_left(events: list) -> None:
    engine, emissions = run(events)

    finished = [e.job_id for e in emissions if e.kind is EmissionKind.FINISHED]
    assert len(finished) == len(set(finished)) <= engine.finished
    given_up = {str(n) for n, (*_, stall) in enumerate(events) if stall > 1} - set(finished)
    assert len(events) <= engine.finished + engine.aborted <= len(events) + len(given_up)
    assert (engine.running, engine.waiting, engine.cache.pinned_tokens) == (0, 0, 0)
    assert engine.cache.private_tokens == 0
    assert engine.next_at() is None
    for number, (_, _, prompt, output, _, _) in enumerate(events):
        mine = [e for e in emissions if e.job_id == str(number)]
        assert [e.tokens for e in mine] == sorted(e.tokens for e in mine)
        assert all(0 <= e.cached_tokens < prompt for e in mine)
        if str(number) in finished:
            assert mine[0].kind is EmissionKind.FIRST
            assert mine[-1].tokens == output


def timed(engine: Engine) -> list[Emission]:
    emissions = []
    while (at := engine.next_at()) is not None:
        emissions += engine.advance(at)
    return emissions


def test_a_stall_delays_its_own_call_and_no_other() -> None:
    def play(stall: float) -> dict[str, list[tuple[float, EmissionKind, int]]]:
        engine = Engine(SMALL, emit_tokens=True)
        for number in range(3):
            engine.submit(0.0, job(number, 0, 100, 5), stall=stall if number == 1 else 1.0)
        found: dict[str, list[tuple[float, EmissionKind, int]]] = {}
        for e in timed(engine):
            found.setdefault(e.job_id, []).append((e.t, e.kind, e.tokens))
        return found

    usual, stalled = play(1.0), play(15.0)

    assert (usual["0"], usual["2"]) == (stalled["0"], stalled["2"])
    first_s = usual["1"][0][0]
    assert [t for t, _, _ in stalled["1"]] == pytest.approx([t + 14 * first_s for t, _, _ in usual["1"]])
    assert [what for _, *what in stalled["1"]] == [what for _, *what in usual["1"]]


def test_a_stalled_call_that_is_given_up_says_nothing_more_and_counts_as_aborted() -> None:
    engine = Engine(SMALL)
    engine.submit(0.0, job(0, 0, 100, 5), stall=1000)
    assert engine.advance(10.0) == []
    assert engine.next_at() is not None

    engine.cancel(10.0, "0")

    assert engine.next_at() is None
    assert engine.advance(1e6) == []
    assert engine.aborted == 1


def test_a_router_that_does_not_see_coldness_takes_a_cold_engine_for_a_warm_one() -> None:
    cold, warm = Engine(SMALL), Engine(SMALL)
    cold.cold_calls = 20
    for engine in (cold, warm):
        engine.submit(0.0, job(0, 0, 200, 5))
    asked = job(1, 1, 300, 5)

    assert quote(cold, 0.0, asked, sees_cold=False) == quote(warm, 0.0, asked)
    assert quote(cold, 0.0, asked) == pytest.approx(8 * quote(warm, 0.0, asked))


@settings(max_examples=60, deadline=None)
@given(jobs, st.floats(0.01, 0.5))
def test_advancing_in_small_steps_changes_nothing(events: list, step_s: float) -> None:
    assert run(events)[1] == run(events, step_s)[1]


@pytest.mark.parametrize("prompt", [1, 100, 2048, 5000, 40_000])
def test_an_idle_engine_takes_what_its_formula_says(prompt: int) -> None:
    engine = Engine(EngineSpec())
    engine.submit(5.0, Job("a", tuple(range(prompt // 512)), 512, prompt, 3))

    first = next(
        e for _ in range(100) for e in engine.advance(engine.next_at() or 0) if e.kind is EmissionKind.FIRST
    )

    assert first.t - 5.0 == pytest.approx(EngineSpec().prefill_s(prompt))


def test_a_repeated_prompt_is_nearly_free() -> None:
    engine = Engine(EngineSpec())
    times = []
    for number in range(2):
        start = number * 100.0
        engine.submit(start, Job(str(number), tuple(range(20)), 512, 10_240, 2))
        first = next(e for e in engine.advance(start + 99) if e.kind is EmissionKind.FIRST)
        times.append(first.t - start)

    assert times[1] < times[0] / 20
    assert engine.prefix_hits_total == 10_239


def test_a_long_context_costs_more_than_in_proportion() -> None:
    spec = EngineSpec()

    assert spec.prefill_s(100_000) > 1.5 * 10 * spec.prefill_s(10_000)


def test_decoding_slows_prefill_and_slowdown_slows_all() -> None:
    def ttft(busy: int, slowdown: float) -> float:
        engine = Engine(EngineSpec())
        engine.slowdown = slowdown
        for number in range(busy):
            engine.submit(0.0, Job(f"d{number}", (), 512, 100, 5000))
        engine.advance(10.0)
        engine.submit(10.0, Job("x", (), 512, 20_000, 2))
        return next(e for e in engine.advance(1000.0) if e.job_id == "x").t - 10.0

    assert ttft(64, 1.0) > 1.05 * ttft(0, 1.0)
    assert ttft(0, 10.0) == pytest.approx(10 * ttft(0, 1.0), rel=0.01)


def test_a_duplicate_id_is_refused() -> None:
    engine = Engine(SMALL)
    engine.submit(0.0, job(1, 0, 10, 5))

    with pytest.raises(ValueError, match="already there"):
        engine.submit(0.0, job(1, 0, 10, 5))


def test_memory_pressure_preempts_and_all_still_finish() -> None:
    engine = Engine(EngineSpec(step_tokens=512, max_running=8, kv_tokens=1000))
    for number in range(6):
        engine.submit(0.0, Job(str(number), (), 16, 150, 400))
    emissions = []
    while (end := engine.next_at()) is not None:
        emissions += engine.advance(end)

    assert engine.preemptions_total > 0
    assert [e.tokens for e in emissions if e.kind is EmissionKind.FINISHED] == [400] * 6


def test_a_prompt_is_looked_up_at_its_admission_and_counted_whole_at_its_first_token() -> None:
    engine = Engine(SMALL)
    for number in range(2):
        begun_at = number * 100.0
        engine.submit(begun_at, job(number, 0, 200, 2))
        assert engine.prefix_queries_total - engine.prompt_tokens_total == 200
        while engine.prompt_tokens_total < 200 * (number + 1):
            assert engine.prompt_tokens_total == 200 * number
            engine.advance(engine.next_at() or 0.0)
        engine.advance(begun_at + 99.0)
    assert engine.prefix_hits_total > 0
    assert engine.prompt_tokens_total == engine.prefix_queries_total == 400


def test_a_stalled_call_that_is_given_up_while_it_runs_says_nothing_more() -> None:
    engine = Engine(SMALL, emit_tokens=True)
    for number in range(4):
        engine.submit(0.0, job(number, 0, 1, 1))
    engine.advance(1.0)
    engine.submit(1.0, job(5, 0, 65, 5), stall=3.0)
    emissions = engine.advance(1.0625)
    engine.cancel(1.0625, "5")

    assert [e for e in emissions + timed(engine) if e.job_id == "5"] == []
    assert engine.next_at() is None


def test_the_rest_of_a_chunked_prompt_is_told_beyond_the_step_under_way() -> None:
    engine = Engine(SMALL)
    engine.submit(0.0, job(1, 1, prompt=300, output=1))
    engine.submit(0.0, job(2, 2, prompt=100, output=1))

    told = []
    while (end := engine.next_at()) is not None:
        told.append((engine.waiting_uncached_tokens, engine.chunked_uncached_tokens))
        engine.advance(end)

    assert told[:5] == [(100, 236), (100, 172), (100, 108), (100, 44), (0, 80)]
    assert told[-1] == (0, 0)
