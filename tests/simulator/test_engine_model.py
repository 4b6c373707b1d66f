"""The simulated engine conserves what it must, and is a plausible engine."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlbalance_client.simulator.model.engine import Engine
from mlbalance_client.simulator.model.spec import Emission, EmissionKind, EngineSpec, Job

SMALL = EngineSpec(step_tokens=64, max_running=4, kv_tokens=1200)

jobs = st.lists(
    st.tuples(
        st.floats(0, 3),  # arrives after the one before
        st.integers(0, 3),  # shared prefix
        st.integers(1, 300),  # prompt
        st.integers(1, 40),  # output
        st.one_of(st.none(), st.floats(0, 2)),  # cancelled after
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
    for number, (after, prefix, prompt, output, cancel) in enumerate(events):
        now += after
        timeline.append((now, 0, number, job(number, prefix, prompt, output)))
        if cancel is not None:
            timeline.append((now + cancel, 1, number, None))
    clock = 0.0
    for at, _, number, submitted in sorted(timeline, key=lambda e: e[:3]):
        while step_s is not None and clock + step_s < at:
            clock += step_s
            emissions += engine.advance(clock)
        emissions += engine.advance(at)
        assert engine.cache.used_tokens <= SMALL.kv_tokens + SMALL.step_tokens + 300
        if submitted is not None:
            engine.submit(at, submitted)
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
    assert len(finished) == len(set(finished)) == engine.finished
    assert engine.finished + engine.aborted == len(events)
    assert (engine.running, engine.waiting, engine.cache.pinned_tokens) == (0, 0, 0)
    assert engine.cache.private_tokens == 0
    assert engine.next_at() is None
    for number, (_, _, prompt, output, _) in enumerate(events):
        mine = [e for e in emissions if e.job_id == str(number)]
        assert [e.tokens for e in mine] == sorted(e.tokens for e in mine)
        assert all(0 <= e.cached_tokens < prompt for e in mine)
        if str(number) in finished:
            assert mine[0].kind is EmissionKind.FIRST
            assert mine[-1].tokens == output


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
