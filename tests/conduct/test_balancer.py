"""The pick alone: what is charged is settled, on every way out of a lease."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

import mlbalance_client as mlb
from mlbalance_client.events import AttemptStarted, Event, Picked, Settled

pytestmark = pytest.mark.anyio

CALL = mlb.Call(prompt="once upon a time " * 200, max_output_tokens=64, model="m")
UNASKED = {"kind": "none"}
TWO = {"kind": "static", "replicas": ["http://127.0.0.1:1", "http://127.0.0.1:2"]}


def balancer(residual_s: float = 0.0) -> mlb.Balancer:
    return mlb.Balancer(
        mlb.BalancerConfig(discovery=TWO, picking={"residual_s": residual_s}, load_reports=UNASKED, seed=1)
    )


async def test_a_lease_is_charged_until_it_ends() -> None:
    async with balancer() as picking:
        async with picking.acquire(CALL) as lease:
            charged = picking.snapshot()
            assert (charged.outstanding_requests, charged.outstanding_tokens > 64) == (1, True)
            lease.first_content()
            assert picking.snapshot().outstanding_tokens == 64
            lease.more_content()
            lease.succeed(prompt_tokens=900, cached_tokens=0, output_tokens=5)
            assert picking.snapshot().outstanding_tokens == 0
        assert lease.report.usage == mlb.Usage(900, 0, 5)
        assert lease.replica.url in ("http://127.0.0.1:1", "http://127.0.0.1:2")


async def test_the_second_call_goes_where_the_first_went_and_says_why() -> None:
    async with balancer() as picking:
        async with picking.acquire(CALL) as first:
            first.succeed()
        assert picking.explain(CALL).replica == first.replica.id
        async with picking.acquire(CALL) as second:
            assert second.replica == first.replica
            assert second.report.predicted_hit_tokens > 0
            assert "same beginning" in str(second.report.explain())


async def test_every_way_out_settles() -> None:
    async with balancer() as picking:
        async with picking.acquire(CALL):
            pass
        async with picking.acquire(CALL) as lease:
            lease.fail("it said no")
        with pytest.raises(LookupError):
            async with picking.acquire(CALL):
                raise LookupError
        with anyio.move_on_after(0.01) as scope:
            async with picking.acquire(CALL):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert (picking.snapshot().outstanding_requests, picking.snapshot().outstanding_tokens) == (0, 0)


async def test_a_cancelled_lease_stays_charged_for_a_while() -> None:
    async with balancer(residual_s=600.0) as picking:
        async with picking.acquire(CALL):
            pass
        assert picking.snapshot().outstanding_requests == 1


async def test_learned_figures_reach_the_next_pick() -> None:
    async with balancer() as picking:
        for _ in range(200):
            async with picking.acquire(CALL) as lease:
                lease.succeed(prompt_tokens=len(CALL.prompt) // 2, output_tokens=3)
        assert picking.explain(CALL).prompt_tokens > len(CALL.prompt) // 3
        assert picking.explain(mlb.Call(prompt=CALL.prompt, model="m")).output_tokens == 3


async def test_a_model_that_nobody_serves_is_said() -> None:
    discovery = {"kind": "static", "replicas": [{"url": "http://127.0.0.1:1", "labels": {"model": "other"}}]}
    async with mlb.Balancer(mlb.BalancerConfig(discovery=discovery, load_reports=UNASKED)) as picking:
        with pytest.raises(mlb.NoReplicas, match="'m'.*other"):
            async with picking.acquire(CALL):
                raise AssertionError("unreachable")


async def test_a_closed_balancer_refuses() -> None:
    picking = balancer()
    await picking.aclose()
    await picking.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        async with picking.acquire(CALL):
            raise AssertionError("unreachable")


async def test_events_can_be_heard_until_one_has_enough() -> None:
    heard: list[Event] = []
    async with balancer() as picking:
        stop = picking.subscribe(heard.append)
        async with picking.acquire(
            mlb.Call(prompt="x", options=mlb.CallOptions(tenant="t", priority=3))
        ) as lease:
            lease.first_content()
            lease.succeed(output_tokens=7)
        stop()
        async with picking.acquire(CALL):
            pass
    assert [type(event) for event in heard] == [Picked, AttemptStarted, Settled]
    picked, _, settled = heard
    assert isinstance(picked, Picked)
    assert isinstance(settled, Settled)
    assert (picked.replica, picked.tenant, picked.priority) == (lease.replica.id, "t", 3)
    assert (settled.call, settled.verdict, settled.output_tokens) == (picked.call, "ok", 7)
    assert settled.ttft_s is not None
    assert settled.ttft_s == lease.report.ttft_s


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("hedging", r"give BalancerConfig.from_target\(target, hedging=...\) as the target"),
        ("config", "give a BalancerConfig as the target"),
        ("verify", "unknown option 'verify'; known: target$"),
        ("proxy", "option 'proxy' is not supported"),
    ],
)
def test_an_option_beside_the_target_is_told_the_way_out(option: str, said: str) -> None:
    made: Any = mlb.Balancer
    with pytest.raises(mlb.ConfigError, match=said):
        made("static://127.0.0.1:1", **{option: {"enabled": False}})


async def test_what_is_no_call_is_refused_before_anything_is_picked() -> None:
    async with balancer() as picking:
        with pytest.raises(mlb.ConfigError, match="acquire takes a Call"):
            async with picking.acquire("Hi"):  # type: ignore[arg-type]
                pass
        late = mlb.Call(prompt="x", options=mlb.CallOptions(deadline_s=0.0))
        with pytest.raises(mlb.DeadlineExceeded):
            async with picking.acquire(late):
                pass
        async with picking.acquire(CALL) as lease:
            with pytest.raises(mlb.ConfigError, match="prompt_tokens must be a whole number"):
                lease.succeed(prompt_tokens=-1)
            lease.succeed(prompt_tokens=1)
        assert picking.snapshot().outstanding_requests == 0


@pytest.mark.parametrize(
    "wrong", [{"prompt": None}, {"options": {"session": "x"}}, {"max_output_tokens": "x"}, {"model": 3}]
)
def test_a_call_that_is_described_wrongly_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(mlb.ConfigError, match=next(iter(wrong))):
        mlb.Call(**{"prompt": "x", **wrong})
