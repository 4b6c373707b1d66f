"""From a source to calls: the first list is waited for, trouble is told once, and who goes is left in peace."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlbalance_client as mlb
from mlbalance_client import discovery
from mlbalance_client.conduct.roster import Roster
from mlbalance_client.config import FileConfig, PickingConfig
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.discovery import make_replica
from mlbalance_client.errors import DiscoveryError
from mlbalance_client.events import DiscoveryRecovered, DiscoveryTrouble, Event, EventStream, ReplicasChanged

from ..scripted import Exchange, Scripted

pytestmark = pytest.mark.anyio


class Source:
    """Says what a test lets it say; a test waits for ``asked`` to see that it is being followed."""

    def __init__(self) -> None:
        self.asked = 0
        self._say: list[object] = []
        self._more = anyio.Event()
        self._asked = anyio.Event()

    def say(self, what: object) -> None:
        self._say.append(what)
        self._more.set()

    def initial(self) -> None:
        return None

    async def run(self, publish: Callable[[Membership], None]) -> None:
        self.asked += 1
        while True:
            while self._say:
                match self._say.pop(0):
                    case None:
                        return
                    case Exception() as error:
                        raise error
                    case list() as urls:
                        replicas = tuple(make_replica(url, id=id_) for id_, url in urls)
                        publish(Membership(replicas, "test", empty_because="nobody is there"))
            self._more = anyio.Event()
            await self._more.wait()


@pytest.fixture
async def source(monkeypatch: pytest.MonkeyPatch) -> Source:
    made = Source()
    monkeypatch.setattr(discovery, "create", lambda config, rng: made)
    return made


@pytest.fixture
def replicas() -> Iterator[list[Scripted]]:
    with Scripted(Exchange.answer) as one, Scripted(Exchange.answer) as two:
        yield [one, two]


def config(**keys: object) -> mlb.BalancerConfig:
    return mlb.BalancerConfig(
        discovery=FileConfig(path="unused", retry_max_s=0.01, **keys), load_reports={"kind": "none"}
    )


class Heard:
    """Events, and a way to wait for one of a kind."""

    def __init__(self, client: mlb.AsyncClient) -> None:
        self.events: list[Event] = []
        self._news = anyio.Event()
        client.subscribe(self._hear)

    def _hear(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def of(self, kind: type) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    async def wait(self, kind: type, count: int = 1) -> None:
        with anyio.fail_after(10):
            while len(self.of(kind)) < count:
                self._news = anyio.Event()
                await self._news.wait()


async def test_the_first_calls_wait_for_the_first_list(source: Source, replicas: list[Scripted]) -> None:
    async with mlb.AsyncClient(config()) as client:
        statuses: list[int] = []

        async def call() -> None:
            statuses.append((await client.get("/")).status_code)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(call)
            while not source.asked:
                await anyio.lowlevel.checkpoint()
            assert statuses == []
            source.say(DiscoveryError("not now"))
            source.say([])
            source.say([("a", f"http://{replicas[0].address}")])
    assert statuses == [200] * 5


async def test_past_the_deadline_calls_fail_with_what_was_found(source: Source) -> None:
    async with mlb.AsyncClient(config(start_timeout_s=0.3)) as client:
        source.say(DiscoveryError("the agent refuses the connection"))
        with pytest.raises(mlb.NoReplicas, match="file: the agent refuses the connection"):
            await client.get("/")
        source.say([])
        heard = Heard(client)
        await heard.wait(DiscoveryTrouble)
        with pytest.raises(mlb.NoReplicas, match="test: nobody is there"):
            await client.get("/")


async def test_a_file_that_is_not_there_is_named_once() -> None:
    async with mlb.AsyncClient("file:///none/f.json?start_timeout_s=0.5") as client:
        with pytest.raises(mlb.NoReplicas) as caught:
            await client.get("/")
    assert str(caught.value) == "no replica is known: file: /none/f.json: No such file or directory"


async def test_a_deadline_of_the_call_counts_while_it_waits(source: Source) -> None:
    async with mlb.AsyncClient(config()) as client:
        source.say(DiscoveryError("the agent refuses the connection"))
        with pytest.raises(
            mlb.DeadlineExceeded, match=r"0.3 s \(deadline_s\): no replica is known: file: the agent refuses"
        ):
            await client.get("/", extensions={"mlbalance": mlb.CallOptions(deadline_s=0.3)})


async def test_the_fallback_serves_until_there_is_a_list(source: Source, replicas: list[Scripted]) -> None:
    urls = [f"http://{r.address}" for r in replicas]
    async with mlb.AsyncClient(config(start_timeout_s=0.05, fallback=[urls[0]])) as client:
        heard = Heard(client)
        assert (await client.get("/")).status_code == 200
        source.say([])
        await heard.wait(DiscoveryTrouble)
        assert (await client.get("/")).status_code == 200
        source.say([("b", urls[1])])
        await heard.wait(ReplicasChanged, 2)
        assert [replica.id for replica in client.snapshot().replicas] == ["b"]
        source.say([])
        await anyio.lowlevel.checkpoint()
        assert (await client.get("/")).status_code == 200
    assert len(replicas[1].exchanges) == 1


@pytest.mark.parametrize(
    ("fallback", "said"),
    [
        (["http://10.0.0.1", "http://11.0.0.1"], "outside allowed_networks: 11.0.0.1:80"),
        (["http://localhost"], "outside allowed_networks: localhost:80"),
        (["http://10.0.0.1", {"url": "http://10.0.0.2", "id": "10.0.0.1:80"}], "another has the same id"),
    ],
)
async def test_a_fallback_that_would_be_refused_is_a_mistake(
    source: Source, fallback: list[Any], said: str
) -> None:
    allowed = {"allowed_networks": ["10.0.0.0/8"]}
    mlb.AsyncClient(config(fallback=["http://10.0.0.1"], **allowed))
    with pytest.raises(mlb.ConfigError, match=f"discovery.fallback: left out, .*{said}"):
        mlb.AsyncClient(config(fallback=fallback, **allowed))


async def test_trouble_is_told_once_and_so_is_its_end(
    source: Source, replicas: list[Scripted], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlbalance_client")
    async with mlb.AsyncClient(config()) as client:
        heard = Heard(client)
        good = [("a", f"http://{replicas[0].address}")]
        source.say(good)
        await client.get("/")
        for _ in range(10):
            source.say(DiscoveryError("no agent"))
            source.say(LookupError("a plugin's own mistake at https://me:hunter2@x.test/?token=hunter2"))
        while source.asked < 20:
            await anyio.lowlevel.checkpoint()
        assert (await client.get("/")).status_code == 200
        source.say(good)
        await heard.wait(DiscoveryRecovered)
        source.say(DiscoveryError("no agent"))
        await heard.wait(DiscoveryTrouble, 3)
    assert [(e.cause, e.kept) for e in heard.of(DiscoveryTrouble)] == [
        ("no agent", 1),
        ("LookupError: a plugin's own mistake at https://***@x.test/", 1),
        ("no agent", 1),
    ]
    lines = [r for r in caplog.records if "Discovery" in r.message]
    assert [r.levelname for r in lines] == ["WARNING", "WARNING", "INFO", "WARNING"]


async def test_who_goes_finishes_its_work_and_its_idle_connections_are_closed(source: Source) -> None:
    release: list[Exchange] = []

    def script(exchange: Exchange) -> None:
        if exchange.path == "/held":
            release.append(exchange)
            exchange.start_stream()
            exchange.chunk(b"data: one\n\n")
        else:
            exchange.answer()

    with Scripted(script) as old, Scripted(Exchange.answer) as new:
        async with mlb.AsyncClient(config()) as client:
            heard = Heard(client)
            source.say([("a", f"http://{old.address}")])
            async with client.stream("GET", "/held") as response:
                await client.get("/")
                pieces = response.aiter_bytes()
                assert await anext(pieces) == b"data: one\n\n"
                source.say([("a", f"http://{new.address}")])
                await heard.wait(ReplicasChanged, 2)
                idle = next(e for e in old.exchanges if e.path == "/")
                assert await anyio.to_thread.run_sync(idle.wait_gone), "the idle connection is closed"
                assert (await client.get("/")).status_code == 200
                assert len(new.exchanges) == 1
                release[0].chunk(b"data: two\n\n")
                release[0].end_stream()
                assert b"".join([piece async for piece in pieces]) == b"data: two\n\n"
            assert client.snapshot().outstanding_requests == 0
        assert len(old.exchanges) == 2


async def test_a_source_that_ends_without_a_list_lets_nobody_wait(source: Source) -> None:
    async with mlb.AsyncClient(config(start_timeout_s=3600)) as client:
        source.say(None)
        with pytest.raises(mlb.NoReplicas, match="ended without"):
            await client.get("/")


async def test_closing_lets_nobody_wait(source: Source) -> None:
    client = mlb.AsyncClient(config(start_timeout_s=3600))
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises(mlb.ClientClosed, match="closed during the call"):
                await client.get("/")

        tasks.start_soon(call)
        while not source.asked:
            await anyio.lowlevel.checkpoint()
        await client.aclose()


async def test_closing_ends_the_wait_of_the_pick_alone(source: Source) -> None:
    picking = mlb.Balancer(config(start_timeout_s=3600))
    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            with pytest.raises(mlb.ClientClosed, match="closed during the call"):
                async with picking.acquire(mlb.Call(prompt="x")):
                    pass

        tasks.start_soon(call)
        while not source.asked:
            await anyio.lowlevel.checkpoint()
        await picking.aclose()


def test_closing_ends_the_wait_of_a_synchronous_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    class Asked(Silent):
        async def run(self, publish: Callable[[Membership], None]) -> None:
            asked.set()
            await anyio.sleep_forever()

    monkeypatch.setattr(discovery, "create", lambda config, rng: Asked())
    client = mlb.Client(config(start_timeout_s=3600))
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.get, "/")
        assert asked.wait(10)
        client.close()
        with pytest.raises(mlb.ClientClosed):
            call.result(10)


async def test_the_pick_alone_waits_too(source: Source) -> None:
    async with mlb.Balancer(config()) as picking:
        source.say([("a", "http://10.0.0.1:1")])
        async with picking.acquire(mlb.Call(prompt="x")) as lease:
            assert lease.replica.id == "a"


class Silent:
    """A source that says nothing by itself."""

    def initial(self) -> None:
        return None


def told(steps: list[tuple[float, str | list[str]]]) -> tuple[list[Event], list[int]]:
    """The events that these answers and failures bring about, and the size of the fleet after each."""
    clock = [0.0]
    events, heard, sizes = EventStream(), [], []
    events.subscribe(heard.append)
    fleet = Fleet(PickingConfig(), Random(1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(discovery, "create", lambda config, rng: Silent())
        roster = Roster(FileConfig(path="x"), fleet, events, Random(1), lambda: clock[0], lambda: None)
    for wait_s, what in steps:
        clock[0] += wait_s
        if isinstance(what, str):
            roster._failed(what)
        else:
            roster._publish(Membership(tuple(make_replica(f"http://{name}:1") for name in what), "test"))
        sizes.append(len(fleet.replicas))
    return heard, sizes


def test_a_cause_is_no_longer_than_a_line() -> None:
    events, _ = told([(0.0, "no " * 1_000_000)])
    (cause,) = [event.cause for event in events if isinstance(event, DiscoveryTrouble)]
    assert cause.startswith("no no ")
    assert len(cause) <= 1_001


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 5.0),
            st.sampled_from(["no route", "no leader"])
            | st.lists(st.sampled_from("abcd"), max_size=4, unique=True),
        ),
        max_size=25,
    )
)
def test_whatever_comes_the_fleet_stays_and_each_cause_is_told_once(
    steps: list[tuple[float, str | list[str]]],
) -> None:
    events, sizes = told(steps)

    first = next((n for n, (_, what) in enumerate(steps) if isinstance(what, list) and what), len(steps))
    assert all(sizes[first:]), "125 seconds of trouble are within every hold"
    since: list[str] = []
    for event in events:
        if isinstance(event, DiscoveryTrouble):
            assert event.cause not in since
            since.append(event.cause)
        elif isinstance(event, DiscoveryRecovered):
            assert since, "what was not told does not end"
            since.clear()
    failures = {what for _, what in steps if isinstance(what, str)}
    assert failures <= {e.cause for e in events if isinstance(e, DiscoveryTrouble)}


async def test_the_fallback_serves_again_when_the_last_list_is_given_up(source: Source) -> None:
    with Scripted(Exchange.answer) as listed, Scripted(Exchange.answer) as spare:
        fallback = [f"http://{spare.address}"]
        async with mlb.AsyncClient(config(fallback=fallback, empty_hold_s=0.01)) as client:
            heard = Heard(client)
            source.say([("a", f"http://{listed.address}")])
            assert (await client.get("/")).status_code == 200
            source.say([])
            await heard.wait(ReplicasChanged, 2)
            assert heard.of(ReplicasChanged)[-1].source.endswith("(fallback)")
            assert (await client.get("/")).status_code == 200
        assert (len(listed.exchanges), len(spare.exchanges)) == (1, 1)
