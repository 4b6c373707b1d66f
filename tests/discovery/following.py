"""Runs a source as a client does, and lets a test wait for what it says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import anyio

from mlbalance_client.config import BalancerConfig
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.discovery import create
from mlbalance_client.errors import DiscoveryError


class Following:
    """``said``: what the source has published and raised, in order."""

    def __init__(self) -> None:
        self.said: list[Membership | str] = []
        self._news = anyio.Event()
        self._taken = 0

    def note(self, what: Membership | str) -> None:
        self.said.append(what)
        self._news.set()

    async def next(self) -> Membership | str:
        """The next thing that it says, errors as their text."""
        with anyio.fail_after(20):
            while len(self.said) == self._taken:
                self._news = anyio.Event()
                await self._news.wait()
        self._taken += 1
        return self.said[self._taken - 1]

    async def ids(self) -> set[str]:
        """The ids of the next list."""
        said = await self.next()
        assert isinstance(said, Membership), said
        return {replica.id for replica in said.replicas}

    async def error(self) -> str:
        """The next error; one that comes again is passed over."""
        said = await self.next()
        assert isinstance(said, str), said
        while len(self.said) > self._taken and self.said[self._taken] == said:
            self._taken += 1
        return said


@asynccontextmanager
async def following(discovery: dict[str, Any]) -> AsyncIterator[Following]:
    source = create(BalancerConfig(discovery=discovery).discovery, Random(1))
    it = Following()

    async def run() -> None:
        while True:
            try:
                await source.run(it.note)
            except DiscoveryError as error:
                it.note(str(error))
                await anyio.sleep(0.02)
            else:
                return

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        yield it
        tasks.cancel_scope.cancel()
