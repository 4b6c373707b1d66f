"""Replicas nobody knows are looked at in turn; what one was found to be, all are asked for at once."""

from __future__ import annotations

import anyio

from mlbalance_client.config import LoadReportsConfig
from mlbalance_client.load_reports import ReportError, create, shared_looks
from mlbalance_client.load_reports.looks import Looks, Turn
from mlbalance_client.simulator.model.virtual_time import run
from mlbalance_client.testing.load_reports import Script, ScriptedReplica

from .pages import TGI, VLLM


def read_at_once(*scripts: Script) -> list[tuple[float, str | None]]:
    """When each replica was found to be something or nothing, in virtual seconds, if all are read at the same time."""

    async def main() -> list[tuple[float, str | None]]:
        looks = shared_looks()
        ended: dict[int, tuple[float, str | None]] = {}

        async def read(number: int, script: Script) -> None:
            form = create(LoadReportsConfig(), (), looks)
            assert form is not None
            began = anyio.current_time()
            try:
                source = (await form.read(ScriptedReplica(script), began)).source
            except ReportError:
                source = None
            ended[number] = anyio.current_time(), source

        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for number, script in enumerate(scripts):
                tasks.start_soon(read, number, script)
        return [(at - began, source) for at, source in (ended[number] for number in range(len(scripts)))]

    return run(main)


def test_strangers_are_looked_at_one_a_second() -> None:
    assert read_at_once({}, {}, {}) == [(0.0, None), (1.0, None), (2.0, None)]


def test_a_fleet_of_one_kind_is_known_at_once() -> None:
    assert read_at_once(VLLM, VLLM, VLLM) == [(0.0, "vllm")] * 3


def test_what_one_was_found_to_be_all_are_asked_for_at_once() -> None:
    # The stranger has the first turn, the second finds vLLM in its own, and the third need not wait for its.
    assert read_at_once({}, VLLM, VLLM) == [(0.0, None), (1.0, "vllm"), (1.0, "vllm")]


def test_vaguer_kinds_than_were_found_have_their_turns() -> None:
    assert read_at_once(VLLM, TGI, TGI, {}) == [(0.0, "vllm"), (1.0, "tgi"), (1.0, "tgi"), (2.0, None)]


def test_looks_that_are_given_up_keep_nobody_waiting() -> None:
    async def main() -> float:
        looks = Looks(("a", "b"))
        async with anyio.create_task_group() as tasks:
            for _ in range(600):
                tasks.start_soon(looks.may_ask_for, "b", Turn())
            await anyio.sleep(2)
            tasks.cancel_scope.cancel()
        began = anyio.current_time()
        await looks.may_ask_for("b", Turn())
        return anyio.current_time() - began

    assert run(main) <= 1.0
