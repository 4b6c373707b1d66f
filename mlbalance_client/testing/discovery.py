"""What every source of replicas must do, as tests to run against yours::

class TestPhoneBook(DiscoveryConformance):
    def registry(self):
        return PhoneBookServer()      # a context manager, see Registry
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from random import Random
from typing import Any, Protocol

import anyio

from mlbalance_client.balancer import Balancer
from mlbalance_client.calls import Call
from mlbalance_client.config import BalancerConfig, DiscoveryConfig
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.discovery import create
from mlbalance_client.errors import DiscoveryError

_AGAIN_S = 0.02


class Registry(Protocol):
    """The registry behind your source, as the suite handles it. Its methods are quick and may block for a moment."""

    def config(self) -> DiscoveryConfig | Mapping[str, Any]:
        """How to reach it: the section ``discovery`` of a configuration. Let it poll often, if it polls."""

    def register(self, replicas: Mapping[str, str]) -> None:
        """Hold these replicas and no others: address (``10.0.0.1:8000``) by id."""

    def fail(self) -> None:
        """Give no usable answer from now on."""

    def mend(self) -> None:
        """Answer again, with what was registered last."""


class DiscoveryConformance:
    """Derive, give ``registry``, and run the class with pytest, or its ``test_`` methods by other means.

    ``within_s``: how long the suite waits for anything, in seconds. ``ids_are_ours``: whether the registry knows
    ids; if not, they may be made of addresses.
    """

    within_s = 10.0
    ids_are_ours = True

    def registry(self) -> AbstractContextManager[Registry]:
        """A fresh registry, empty and answering, for one test."""
        raise NotImplementedError

    def test_it_names_what_is_registered_and_every_change(self) -> None:
        """Full lists, the first without being asked."""

        async def scene(registry: Registry) -> None:
            registry.register({"a": "10.0.0.1:1", "b": "10.0.0.2:2"})
            async with self._following(registry) as it:
                await it.lists("http://10.0.0.1:1", "http://10.0.0.2:2")
                registry.register({"a": "10.0.0.1:1", "b": "10.0.0.2:2", "c": "10.0.0.3:3"})
                await it.lists("http://10.0.0.1:1", "http://10.0.0.2:2", "http://10.0.0.3:3")
                registry.register({"c": "10.0.0.3:3"})
                await it.lists("http://10.0.0.3:3")

        self._run(scene)

    def test_a_replica_that_moves_keeps_its_id(self) -> None:
        """Else what was learned of it is lost."""

        async def scene(registry: Registry) -> None:
            registry.register({"a": "10.0.0.1:1"})
            async with self._following(registry) as it:
                before = (await it.lists("http://10.0.0.1:1")).replicas[0].id
                registry.register({"a": "10.0.0.9:1"})
                after = (await it.lists("http://10.0.0.9:1")).replicas[0].id
                assert before == after or not self.ids_are_ours, f"{before} became {after}"

        self._run(scene)

    def test_an_empty_registry_is_an_empty_list(self) -> None:
        """It is no error: the library decides whether it is believed."""

        async def scene(registry: Registry) -> None:
            async with self._following(registry) as it:
                await it.lists()

        self._run(scene)

    def test_a_failure_is_a_discovery_error_and_passes(self) -> None:
        """In the same words each time, so that it is told once; and the next list ends it, even if it is the same."""

        async def scene(registry: Registry) -> None:
            registry.register({"a": "10.0.0.1:1"})
            async with self._following(registry) as it:
                await it.lists("http://10.0.0.1:1")
                registry.fail()
                await it.until(lambda: len(it.errors) >= 3)
                assert len(set(it.errors[1:3])) == 1, f"the same failure in different words: {it.errors}"
                assert it.errors[0], "an error without words"
                registry.mend()
                await it.lists("http://10.0.0.1:1")

        self._run(scene)

    def test_it_fails_at_the_start_without_ending(self) -> None:
        """A registry that comes up after its client is found."""

        async def scene(registry: Registry) -> None:
            registry.register({"a": "10.0.0.1:1"})
            registry.fail()
            async with self._following(registry) as it:
                await it.until(lambda: bool(it.errors))
                registry.mend()
                await it.lists("http://10.0.0.1:1")

        self._run(scene)

    def test_cancelling_ends_it_at_once(self) -> None:
        """Wherever it waits; a source that tidies up for longer than ``within_s`` keeps its client from closing."""

        async def scene(registry: Registry) -> None:
            registry.register({"a": "10.0.0.1:1"})
            for fails in (False, True):
                if fails:
                    registry.fail()
                async with self._following(registry) as it:
                    await it.until(lambda it=it: bool(it.errors or it.memberships))  # type: ignore[misc]
                    it.running.cancel()
                    await it.until(lambda it=it: it.ended)  # type: ignore[misc]

        self._run(scene)

    def test_a_client_uses_it_and_keeps_its_fleet_when_it_fails(self) -> None:
        """The whole way, from the configuration to a pick."""

        async def scene(registry: Registry) -> None:
            registry.register({"a": "10.0.0.1:1"})
            async with Balancer(self._config(registry)) as balancer:
                async with balancer.acquire(Call(prompt="x")) as lease:
                    assert lease.replica.url == "http://10.0.0.1:1"
                registry.fail()
                async with balancer.acquire(Call(prompt="x")) as lease:
                    assert lease.replica.url == "http://10.0.0.1:1"

        self._run(scene)

    # -- how ----------------------------------------------------------------------------------------------------

    def _run(self, scene: Callable[[Registry], Awaitable[None]]) -> None:
        async def within() -> None:
            with self.registry() as registry, anyio.fail_after(10 * self.within_s):
                await scene(registry)

        for backend in ("asyncio", "trio"):
            if importlib.util.find_spec(backend) is not None:
                anyio.run(within, backend=backend)

    def _config(self, registry: Registry) -> BalancerConfig:
        config = registry.config()
        return BalancerConfig(discovery=config if isinstance(config, DiscoveryConfig) else dict(config))

    @asynccontextmanager
    async def _following(self, registry: Registry) -> AsyncIterator[_Followed]:
        source = create(self._config(registry).discovery, Random(1))
        it = _Followed(self.within_s)
        if (first := source.initial()) is not None:
            it.publish(first)

        async def run() -> None:
            try:
                with it.running:
                    while True:
                        try:
                            await source.run(it.publish)
                        except DiscoveryError as error:
                            it.fail(str(error))
                            await anyio.sleep(_AGAIN_S)
                        else:
                            return
            finally:
                it.end()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            yield it
            it.running.cancel()


class _Followed:
    """What a source has said."""

    def __init__(self, within_s: float) -> None:
        self.memberships: list[Membership] = []
        self.errors: list[str] = []
        self.running = anyio.CancelScope()
        self.ended = False
        self._within_s = within_s
        self._news = anyio.Event()
        self._seen = 0

    def publish(self, membership: Membership) -> None:
        self.memberships.append(membership)
        self._news.set()

    def fail(self, error: str) -> None:
        self.errors.append(error)
        self._news.set()

    def end(self) -> None:
        self.ended = True
        self._news.set()

    async def lists(self, *urls: str) -> Membership:
        """Wait for a new list of exactly these; what was in lists before does not count."""
        start = self._seen

        def found() -> bool:
            return any({r.url for r in m.replicas} == set(urls) for m in self.memberships[start:])

        await self.until(found)
        self._seen = len(self.memberships)
        return self.memberships[-1]

    async def until(self, holds: Callable[[], bool]) -> None:
        with anyio.move_on_after(self._within_s):
            while not holds():
                self._news = anyio.Event()
                await self._news.wait()
            return
        lists = [sorted(r.url for r in m.replicas) for m in self.memberships[-3:]]
        raise AssertionError(f"waited {self._within_s} s in vain; lists {lists}, errors {self.errors[-3:]}")
