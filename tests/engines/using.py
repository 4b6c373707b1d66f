"""Using an engine through our client, and watching what the client says of it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random
from typing import Any

import anyio
import httpx

import mlbalance_client as mlb
from mlbalance_client.core.load.format import HEADER
from mlbalance_client.core.placement.picker import Source

from .engine import MODEL, Engine

CHAT = "/v1/chat/completions"
WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "lazy",
    "dog",
    "load",
    "balancer",
    "replica",
    "queue",
]
WITHIN_S = 900.0
"""For each thing that is waited for: on a busy machine an engine is slow."""


def body(text: str = "the quick brown fox", max_tokens: int = 4, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}


def prose(seed: int, words: int = 1000) -> str:
    """Words that the models' tokenizer knows."""
    return " ".join(Random(seed).choices(WORDS, k=words))


ENDLESS = body(max_tokens=12_000, stream=True, ignore_eos=True)
LONG_TOKENS = 3_500
"""As many as each of a whole batch of calls can have in vLLM's cache."""


def client(*urls: str, kind: str = "auto", policy: str = "prefix_tokens") -> mlb.AsyncClient:
    return mlb.AsyncClient(
        mlb.BalancerConfig(
            discovery={"kind": "static", "replicas": list(urls)},
            load_reports={"kind": kind, "interval_s": 0.1, "timeout_s": 10, "expiry_s": 120},
            picking={"policy": policy, "residual_s": 0.0},
            admission={"queue_timeout_s": WITHIN_S},
        ),
        timeout=WITHIN_S,
    )


def bare(url: str) -> httpx.AsyncClient:
    """A client that sends all it is given at once: ours keep calls back from an engine that has enough to do."""
    fresh = httpx.Limits(max_keepalive_connections=0)  # it does not send again what met a closed connection
    return httpx.AsyncClient(base_url=url, timeout=WITHIN_S, trust_env=False, limits=fresh)


def told(of: mlb.AsyncClient, number: int = 0) -> dict[str, Any]:
    """What a replica said last, as the client's snapshot has it."""
    return of.snapshot().replicas[number].report or {}


async def until(holds: Callable[[], bool], shows: Callable[[], object]) -> None:
    with anyio.move_on_after(WITHIN_S):
        while not holds():
            await anyio.sleep(0.02)
        return
    raise AssertionError(f"still {shows()}")


async def until_said(asked: Callable[[], Any], wanted: Any, every_s: float = 0.3) -> None:
    """Until the engine itself says so, which is asked so often."""
    seen = None
    with anyio.move_on_after(WITHIN_S):
        while (seen := await anyio.to_thread.run_sync(asked)) != wanted:
            await anyio.sleep(every_s)
        return
    raise AssertionError(f"still {seen}, not {wanted}")


async def until_told(of: mlb.AsyncClient, engine: Engine, running: int, waiting: int) -> dict[str, Any]:
    """Until the engine itself and the client's snapshot say so, at once; what the snapshot then says."""

    def load(report: dict[str, Any]) -> tuple[Any, Any]:
        return report.get("running"), report.get("waiting")

    wanted = running, waiting
    itself, report = None, None
    with anyio.move_on_after(WITHIN_S):
        while True:
            itself = await anyio.to_thread.run_sync(engine.load)
            report = told(of)
            if itself == load(report) == wanted:
                return report
            await anyio.sleep(0.1)
    raise AssertionError(f"itself {itself}, told {report}, not {wanted}")


@asynccontextmanager
async def streams(of: httpx.AsyncClient, count: int) -> AsyncIterator[None]:
    """So many streams that are read, each begun again when it ends, until the block ends; then they are cancelled.

    To fill an engine takes a ``bare`` client.
    """

    async def read(number: int) -> None:
        text = f"{number} {ENDLESS['messages'][0]['content']}"
        while True:
            async with of.stream("POST", CHAT, json={**ENDLESS, **body(text, LONG_TOKENS)}) as answer:
                async for _ in answer.aiter_raw():
                    pass
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        for number in range(count):
            tasks.start_soon(read, number)
        yield
        tasks.cancel_scope.cancel()


@dataclass
class Start:
    """What a client saw that was there before the engine.

    ``states``: what its snapshot said of the engine, in turn, with seconds since the start; ``outcomes``: the same of
    calls: a status, or how they failed.
    """

    before: object = None
    refused: Exception | None = None
    states: list[tuple[str, float]] = field(default_factory=list)
    outcomes: list[tuple[object, float]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)

    def note(self, state: str, outcome: object, after_s: float) -> None:
        if not self.states or self.states[-1][0] != state:
            self.states.append((state, after_s))
        if not self.outcomes or self.outcomes[-1][0] != outcome:
            self.outcomes.append((outcome, after_s))


def went_well(start: Start, outcomes: set[object]) -> None:
    """Its calls failed clearly until it served, in these ways at most; then they went there."""
    assert start.before is None
    assert isinstance(start.refused, mlb.AttemptsExhausted)
    assert isinstance(start.refused, httpx.ConnectError)
    assert {state for state, _ in start.states} <= {"unknown", "starting", "ready"}
    assert {outcome for outcome, _ in start.outcomes} <= outcomes | {200}


async def watched_start(engine: Engine, start: Callable[[], None]) -> Start:
    """Start an engine under the eyes of a client that calls it all the while, until it serves and says so."""
    seen = Start()
    async with client(engine.url) as watching:
        seen.before = watching.snapshot().replicas[0].report if watching.snapshot().replicas else None
        try:
            await watching.post(CHAT, json=body())
        except httpx.HTTPError as error:
            seen.refused = error
        began = time.monotonic()
        start()
        while time.monotonic() < began + WITHIN_S:
            assert engine.runs, engine.said()
            outcome = await _outcome(watching)
            seen.report = told(watching)
            seen.note(str(seen.report.get("state", "unknown")), outcome, time.monotonic() - began)
            if outcome == 200 and seen.report.get("state") == "ready":
                return seen
            await anyio.sleep(0.02)
    raise AssertionError(f"{seen}\n{engine.said()}")


async def _outcome(of: mlb.AsyncClient) -> object:
    try:
        return (await of.post(CHAT, json=body())).status_code
    except mlb.AttemptsExhausted as error:
        return error.kind


async def post_endless(of: mlb.AsyncClient) -> None:
    """A call without a stream that takes long."""
    await of.post(CHAT, json={**ENDLESS, "stream": False})


def events(raw: bytes) -> list[dict[str, Any]]:
    """The JSON objects of a stream of events."""
    lines = (line.removeprefix(b"data: ") for line in raw.splitlines() if line.startswith(b"data: {"))
    return [json.loads(line) for line in lines]


@dataclass
class Agreement:
    """What was predicted of each call's cached tokens, and what the engine then found."""

    pairs: list[tuple[int, int]] = field(default_factory=list)

    @property
    def predicted(self) -> int:
        return sum(predicted for predicted, _ in self.pairs)

    @property
    def found(self) -> int:
        return sum(found for _, found in self.pairs)

    def __str__(self) -> str:
        off = sum(abs(predicted - found) for predicted, found in self.pairs)
        return f"{len(self.pairs)} calls: {self.predicted} cached tokens predicted, {self.found} found, {off} off"


async def agreement(observer: mlb.AsyncClient, caller: mlb.AsyncClient, prompts: Sequence[str]) -> Agreement:
    """``observer`` sends nothing and says what it believes to be cached; ``caller`` then sends it."""
    seen = Agreement()
    for prompt in prompts:
        asked = body(prompt)
        believed = observer.explain(asked).candidates[0]
        predicted = (
            0 if believed.because == Source.HOME else believed.cached_tokens
        )  # no prior: what is known
        answer = (await caller.post(CHAT, json=asked)).raise_for_status()
        details = answer.json()["usage"]["prompt_tokens_details"] or {}
        seen.pairs.append((predicted, details.get("cached_tokens") or 0))
        if (mark := answer.headers.get(HEADER)) is not None:
            await _heard_of(observer, mark)
    return seen


async def _heard_of(observer: mlb.AsyncClient, mark: str) -> None:
    """Until an observer knows what a replica published after an answer with this mark had begun.

    It may take a moment of the replica's own, for its engine tells it of changes in passing.
    """
    numbers = dict(part.split("=", 1) for part in mark.split(";"))

    def heard(name: str) -> int:
        report = told(observer)
        return report[name] if report.get("epoch") == numbers["epoch"] else -1

    await until(lambda: heard("seq") > int(numbers["seq"]), observer.snapshot)
    then = heard("t_ms")
    await until(lambda: heard("t_ms") >= then + 500, observer.snapshot)
