"""Replicas from a file that something else writes, replaced at once or edited in place."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, TypeVar

import anyio
from anyio import to_thread

from mlbalance_client.config import FileConfig, ReplicaFile
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.core.model import Replica
from mlbalance_client.errors import ConfigError, DiscoveryError

from .base import Publish, replica_of

_SETTLED_S = 0.05

Stamp = tuple[int, int, int, int]
T = TypeVar("T")


class FileDiscovery:
    """Looks at the file's stamp now and then, and reads it when the stamp has stayed the same for a moment."""

    config_type = FileConfig

    def __init__(self, config: FileConfig, rng: Random) -> None:
        self._config = config
        self._rng = rng
        self._path = Path(config.path)

    def initial(self) -> None:
        """Not without reading."""

    async def run(self, publish: Publish) -> None:
        """Publish what the file holds whenever it has changed. Raises DiscoveryError while it cannot be used."""
        known: Stamp | None = None
        while True:
            if await self._stamp() != known:
                content, known = await self._settled()
                publish(Membership(self._replicas(content), f"file {self._config.path}"))
            await anyio.sleep(self._config.poll_s * (0.9 + 0.1 * self._rng.random()))

    async def _settled(self) -> tuple[bytes, Stamp]:
        """The content once nobody is writing it, as far as can be seen: one that writes slowly is caught by its halves
        not being readable, or by the guard against shrinkage."""
        while True:
            before = await self._stamp()
            await anyio.sleep(min(_SETTLED_S, self._config.poll_s))
            content = await self._aside(self._path.read_bytes)
            if await self._stamp() == before:
                return content, before

    async def _stamp(self) -> Stamp:
        found = await self._aside(self._path.stat)
        return found.st_ctime_ns, found.st_mtime_ns, found.st_size, found.st_ino

    async def _aside(self, work: Callable[[], T]) -> T:
        """In a thread, which is left to itself when we are cancelled: a dead mount or a pipe may hold it for ever."""
        try:
            return await to_thread.run_sync(work, abandon_on_cancel=True)
        except OSError as error:
            raise self._error(error.strerror or str(error)) from error

    def _replicas(self, content: bytes) -> tuple[Replica, ...]:
        try:
            raw = self._parsed(content)
            return tuple(map(replica_of, ReplicaFile.model_validate(raw).replicas))
        except ConfigError as error:
            raise self._error(str(error)) from error
        except (ValueError, RecursionError) as error:
            raise self._error(f"cannot be parsed: {error}") from error

    def _parsed(self, content: bytes) -> Any:
        text = content.decode()
        if self._config.path.endswith(".toml"):
            return tomllib.loads(text)
        raw = json.loads(text)
        return {"replicas": raw} if isinstance(raw, list) else raw

    def _error(self, why: str) -> DiscoveryError:
        return DiscoveryError(f"{self._config.path}: {why}")
