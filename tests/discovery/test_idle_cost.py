"""What a client asks while nothing changes: one query that is open at Consul, one question for each TTL at DNS."""

from __future__ import annotations

import threading
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from mlbalance_client.discovery import dns as dns_source

from ..registries.nameserver import NameServer
from ..scripted import Exchange
from .following import following
from .test_discovery_consul import HEALTHY, agent, query
from .test_discovery_dns import NAME, answering, config

pytestmark = pytest.mark.anyio

MANY = 500


class Held:
    """Answers a query when the test says so, and knows how many are open."""

    def __init__(self, body: Any) -> None:
        self._body = body
        self._changed = threading.Condition()
        self._released = 0
        self.asked = self.open = self.most_open = 0

    def __call__(self, exchange: Exchange, number: int) -> None:
        with self._changed:
            self.asked, self.open = number, self.open + 1
            self.most_open = max(self.most_open, self.open)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._released >= number, 20)
            self.open -= 1
        exchange.answer(200, self._body, f"X-Consul-Index: {number}\r\n")

    def release(self, count: int = 1) -> None:
        with self._changed:
            self._released += count
            self._changed.notify_all()

    def wait_asked(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.asked >= count, 10)


async def test_consul_has_one_open_query_and_no_other() -> None:
    instances = [deepcopy(HEALTHY[0]) for _ in range(MANY)]
    for number, instance in enumerate(instances):
        instance["Service"] |= {"ID": f"r{number}", "Port": number + 1}
    held = Held(instances)
    with agent(held) as server:
        where = {"kind": "consul", "service": "llm", "address": server.address, "wait_s": 600}
        async with following(where) as it:
            for answered in range(5):
                assert await anyio.to_thread.run_sync(held.wait_asked, answered + 1)
                await anyio.wait_all_tasks_blocked()
                assert (held.asked, held.open, len(server.exchanges)) == (answered + 1, 1, answered + 1)
                assert len(it.said) == answered
                held.release()
                assert len(await it.ids()) == MANY
            assert await anyio.to_thread.run_sync(held.wait_asked, 6)
        held.release(100)
        assert held.most_open == 1
        assert server.connections == 1
        assert all(query(exchange)["wait"] == ["600s"] for exchange in server.exchanges[1:])


@pytest.mark.parametrize("ttl_s", [2, 60])
async def test_dns_is_asked_once_in_a_ttl(ttl_s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The waits are the test's to end: what is asked comes of them and of nothing else."""
    waits: list[float] = []
    go_on, waiting = anyio.Semaphore(0), anyio.Semaphore(0)

    async def sleep(wait_s: float) -> None:
        waits.append(wait_s)
        waiting.release()
        await go_on.acquire()

    monkeypatch.setattr(dns_source, "anyio", SimpleNamespace(sleep=sleep))
    records = [f"{NAME} SRV 0 1 {n + 1} r.test." for n in range(20)]
    glue = ("r.test. A 10.0.0.1",)
    with NameServer(answering(*records, additional=glue, ttl=ttl_s)) as server:
        async with following(config(server)) as it:
            for rounds in range(1, 6):
                assert len(await it.ids()) == 20
                await waiting.acquire()
                await anyio.wait_all_tasks_blocked()
                assert server.asked == rounds
                go_on.release()
    assert all(ttl_s <= wait_s <= 1.05 * ttl_s for wait_s in waits)
