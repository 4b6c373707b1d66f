"""Finding out which engine a replica is: rightly, in few pages, again after a restart, and without flooding."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from mlbalance_client.config import LoadReportsConfig
from mlbalance_client.core.load.cadence import Cadence
from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.load_reports import Format, NoAnswer, NotThere, Page, ReportError, create
from mlbalance_client.load_reports.auto import Auto, Search
from mlbalance_client.testing.load_reports import Script, ScriptedReplica, check_format

from .pages import NIM, REPLICAS, SGLANG_METRICS, SGLANG_OLD, TGI, VLLM, body

pytestmark = pytest.mark.anyio

A, B, C = "a", "b", "c"


def auto() -> Auto:
    found = create(LoadReportsConfig())
    assert isinstance(found, Auto)
    return found


@pytest.mark.parametrize(
    ("kind", "script"),
    [*REPLICAS.items(), ("sglang", SGLANG_OLD), ("sglang", SGLANG_METRICS)],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_every_engine_is_found_and_read(kind: str, script: Script) -> None:
    replica = ScriptedReplica(script)
    form = auto()

    report = await form.read(replica, 1.0)
    looked = len(replica.asked)
    await form.read(replica, 2.0)

    assert (form.found, report.source, report.state) == (kind, kind, State.READY)
    assert looked <= 18
    assert len(replica.asked) - looked <= 4
    assert form.cheap is (kind in {"vllm", "sglang", "tgi", "triton", "ollama", "kserve", "torchserve"})


async def test_auto_keeps_all_promises_of_a_format_but_the_number_of_pages() -> None:
    with pytest.raises(AssertionError, match="to recognise takes few pages"):
        await check_format(auto, TGI)
    await check_format(auto, NIM)


async def test_no_page_is_asked_for_twice_in_a_look() -> None:
    replica = ScriptedReplica({})

    with pytest.raises(ReportError, match="none of the known formats"):
        await auto().read(replica, 1.0)

    assert sorted(replica.asked) == sorted(set(replica.asked))
    assert 5 < len(replica.asked) <= 12


async def test_a_look_takes_nothing_from_tensorrt_llm() -> None:
    replica = ScriptedReplica(REPLICAS["tensorrt_llm"])

    assert await auto().recognises(replica)
    assert "/metrics" not in replica.asked


async def test_a_look_ends_where_nobody_answers() -> None:
    replica = ScriptedReplica(VLLM)
    replica.down = True

    for second in range(10):
        with pytest.raises(NoAnswer):
            await auto().read(replica, float(second))

    assert len(replica.asked) == 10


async def test_a_stranger_is_asked_ever_less_often() -> None:
    replica = ScriptedReplica({})
    form = auto()
    looks = 0
    for second in range(600):
        before = len(replica.asked)
        with pytest.raises(ReportError):
            await form.read(replica, float(second))
        looks += len(replica.asked) > before

    assert looks == 6 + 9  # after 1, 2, 4, 8, 16 and 32 s; then once a minute


async def test_a_replica_that_comes_up_later_is_found() -> None:
    replica = ScriptedReplica({}, other=Page(503, {}, b"loading"))
    form = auto()
    with pytest.raises(ReportError):
        await form.read(replica, 1.0)
    replica.pages |= VLLM

    assert (await form.read(replica, 2.0)).source == "vllm"


async def test_another_engine_after_a_refused_connection_is_found_at_once() -> None:
    replica = ScriptedReplica(VLLM)
    form = auto()
    await form.read(replica, 1.0)
    replica.down = True
    with pytest.raises(NoAnswer):
        await form.read(replica, 2.0)
    replica.down = False
    replica.pages = dict(REPLICAS["sglang"])

    assert (await form.read(replica, 3.0)).source == "sglang"


async def test_the_same_engine_after_a_refused_connection_costs_one_page_more() -> None:
    replica = ScriptedReplica(VLLM)
    form = auto()
    await form.read(replica, 1.0)
    usual = await pages_of(form, replica, 2.0)
    replica.down = True
    with pytest.raises(NoAnswer):
        await form.read(replica, 3.0)
    replica.down = False

    assert await pages_of(form, replica, 4.0) == usual + 1
    assert await pages_of(form, replica, 5.0) == usual


async def test_another_engine_whose_start_went_unseen_is_found_by_the_page_that_is_gone() -> None:
    replica = ScriptedReplica(REPLICAS["ollama"])
    form = auto()
    await form.read(replica, 1.0)
    replica.pages = dict(VLLM)
    with pytest.raises(NotThere):
        await form.read(replica, 10.0)

    assert (await form.read(replica, 12.0)).source == "vllm"


async def test_another_engine_with_the_same_pages_is_found_by_what_it_does_not_say() -> None:
    replica = ScriptedReplica(TGI)
    form = auto()
    await form.read(replica, 1.0)
    replica.pages = {"/metrics": VLLM["/metrics"]}
    doubtful = await form.read(replica, 10.0)

    assert (doubtful.source, doubtful.running) == ("tgi", None)
    assert (await form.read(replica, 11.0)).source == "vllm"


async def test_a_server_that_keeps_being_odd_is_not_looked_at_over_and_over() -> None:
    replica = ScriptedReplica({**TGI, "/metrics": b"other 1\n"})
    form = auto()
    asked = [await pages_of(form, replica, float(second)) for second in range(0, 40, 2)]

    assert asked[5:] == [1] * 15


async def test_a_known_engine_without_its_pages_is_not_flooded() -> None:
    replica = ScriptedReplica({"/v1/models": VLLM["/v1/models"]})
    form, cadence, at = auto(), Cadence(1.0, Random(1)), 0.0
    while at < 300.0:
        with pytest.raises(ReportError):
            await form.read(replica, at)
        at += cadence.failed()

    assert len(replica.asked) < 100


async def test_figures_that_an_engine_did_not_show_for_a_moment_are_back_at_once() -> None:
    replica = ScriptedReplica({**VLLM, "/load": Page(404, {}, b"")})
    form = auto()
    await form.read(replica, 1.0)
    metrics = replica.pages.pop("/metrics")
    for at in (2.0, 3.0, 4.0):
        assert (await form.read(replica, at)).running is None
    replica.pages["/metrics"] = metrics

    told = [(await form.read(replica, at)).running for at in (5.0, 6.0, 7.0, 8.0)]

    assert 4 in told


async def test_several_servers_behind_one_address_are_not_looked_at_at_every_turn() -> None:
    one = body("vllm_metrics_busy.http")
    other = one.replace(b"1.79547973413e+09", b"1.8e+09")
    replica = ScriptedReplica(VLLM)
    form = auto()
    looks = 0
    for second in range(120):
        replica.pages["/metrics"] = other if second % 2 else one
        before = replica.asked.count("/v1/models")
        await form.read(replica, float(second))
        looks += replica.asked.count("/v1/models") > before

    assert 3 <= looks <= 8


async def pages_of(form: Format, replica: ScriptedReplica, at: float) -> int:
    before = len(replica.asked)
    await form.read(replica, at)
    return len(replica.asked) - before


def report(**known: Any) -> LoadReport:
    return LoadReport(source="a", at=0.0, **known)


def believing() -> Search:
    search = Search((A, B, C))
    assert search.due(0.0) == (A, B, C)
    search.found(B, 0.0)
    search.saw(report(epoch="1", prefix_queries=10), 1.0)
    assert search.due(99.0) == ()
    return search


@pytest.mark.parametrize(
    ("next_one", "again"),
    [
        (report(epoch="1", prefix_queries=10), False),
        (report(epoch="1", prefix_queries=11), False),
        (report(), False),
        (report(epoch="2"), True),
        (report(prefix_queries=9), True),
        (report(doubts=("x",)), True),
    ],
)
def test_a_restart_is_seen_in_the_report(next_one: LoadReport, again: bool) -> None:
    search = believing()

    search.saw(next_one, 2.0)

    assert search.due(2.0) == ((B, A, C) if again else ())


def test_what_was_known_is_compared_over_reports_that_do_not_say_it() -> None:
    search = believing()
    search.saw(report(), 2.0)

    search.saw(report(prefix_queries=9), 3.0)

    assert search.due(2.0)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (NoAnswer("", refused=True), True),
        (NoAnswer("too late"), False),
        (NotThere(""), True),
        (ReportError("answers 500"), False),
    ],
)
def test_an_error_makes_it_look_again_only_if_the_server_may_be_another(
    error: ReportError, again: bool
) -> None:
    search = believing()

    search.failed(error)

    assert bool(search.due(20.0)) is again


def test_pauses_double_up_to_a_minute_and_start_anew_after_a_report() -> None:
    search = Search((A,))
    at, pauses = 0.0, []
    for _ in range(8):
        search.found(None, at)
        began = at
        while not search.due(at):
            at += 0.5
        pauses.append(at - began)

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    search.found(A, at)
    search.saw(report(epoch="1"), at)
    search.failed(NotThere(""))
    assert not search.due(at + 59)
    search.saw(report(epoch="1"), at + 1)
    assert search.due(at + 1)
