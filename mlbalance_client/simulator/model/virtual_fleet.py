"""Simulated replicas in virtual time: the same app behind the same HTTP server, on a network in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from .faults import Faults
from .memory_network import MemoryNetwork
from .server import Options, ReplicaApp
from .spec import EngineSpec, Job


class VirtualReplica:
    """One replica. Its ``app`` is another after each restart; ``before``: the counters of those that were."""

    def __init__(self, network: MemoryNetwork, port: int, options: Options) -> None:
        self.port = port
        self.before: Counter[str] = Counter()
        self._network = network
        self._options = options
        self._listens = False
        self._serve()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def listens(self) -> bool:
        """Whether it takes calls: neither ended nor draining."""
        return self._listens

    def start(self, **faults: Any) -> None:
        """Anew, with an empty cache; with the faults it began with, or these."""
        found = self.app.state()
        self.before.update({name: found[name] for name in _COUNTERS})
        if faults:
            self._options = replace(self._options, faults=Faults.of(faults))
        self._serve()

    def _serve(self) -> None:
        from uvicorn import Config
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.server import ServerState

        self.app = ReplicaApp(self._options)
        config = Config(
            self.app,
            http="httptools",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
        )
        config.load()
        self._state = ServerState()
        protocol = partial(HttpToolsProtocol, config=config, server_state=self._state, app_state={})
        self._network.listen(self.port, protocol)
        self._listens = True

    def set_faults(self, **faults: Any) -> None:
        """Replace the faults it has."""
        self.app.set_faults(Faults.of(faults))

    def kill(self) -> None:
        """At once, without a word."""
        self._stop()
        self._network.reset(self.port)
        for task in list(self._state.tasks):
            task.cancel()

    async def drain(self) -> None:
        """Take no new connections, finish what is under way, end."""
        self._stop()
        for connection in list(self._state.connections):
            connection.shutdown()
        while self._state.tasks:
            await asyncio.wait(set(self._state.tasks))
            await asyncio.sleep(0)
        self._network.reset(self.port)

    def state(self) -> dict[str, Any]:
        """The true state; its counters over all its lives."""
        found = self.app.state()
        return {**found, **{name: found[name] + self.before[name] for name in _COUNTERS}}

    def _stop(self) -> None:
        self._listens = False
        self._network.stop_listening(self.port)


_COUNTERS = (
    *("seen", "seen_bytes", "refused", "finished", "aborted"),
    *("prompt_tokens", "cached_tokens", "prefilled_tokens"),
)


class VirtualFleet:
    """``count`` replicas on a network of their own. Lives in a VirtualLoop."""

    def __init__(
        self,
        count: int = 8,
        *,
        spec: EngineSpec | None = None,
        faults: Faults | Sequence[Faults] | None = None,
        emit_interval_s: float = 0.25,
        seed: int = 0,
    ) -> None:
        self.spec = spec or EngineSpec()
        self.network = MemoryNetwork()
        each = list(faults) if isinstance(faults, Sequence) else [faults or Faults()] * count
        self.replicas = [
            VirtualReplica(
                self.network,
                8000 + number,
                Options(self.spec, fault, emit_interval_s=emit_interval_s, seed=seed + number),
            )
            for number, fault in enumerate(each)
        ]

    @property
    def urls(self) -> list[str]:
        """Where the replicas listen."""
        return [replica.url for replica in self.replicas]

    def states(self) -> list[dict[str, Any]]:
        """The true state of all; their counters over all their lives."""
        return [replica.state() for replica in self.replicas]

    async def set_faults(self, number: int, **faults: Any) -> None:
        """These instead of those it has."""
        self.replicas[number].set_faults(**faults)

    async def kill(self, number: int) -> None:
        """Without warning."""
        self.replicas[number].kill()

    async def drain(self, number: int) -> None:
        """Ends once what is under way there is over."""
        await self.replicas[number].drain()

    async def start(self, number: int, **faults: Any) -> None:
        """Anew, where it was, with an empty cache."""
        self.replicas[number].start(**faults)

    async def quote(self, number: int, job: Job, *, sees_cold: bool = True) -> float | None:
        """What the omniscient router wants to know."""
        replica = self.replicas[number]
        return replica.app.quote(job, sees_cold=sees_cold) if replica.listens else None
