"""Real registries, fetched when first needed; where they cannot be had tests are skipped, in CI they fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from ..scripted import Exchange, Scripted
from . import packages
from .packages import Program


def had(fetch: Callable[[], Program]) -> Program:
    try:
        return fetch()
    except packages.Unavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"needed in CI: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def consul_program() -> Program:
    return had(packages.consul)


@pytest.fixture(scope="session")
def dnsmasq_program() -> Program:
    return had(packages.dnsmasq)


@pytest.fixture
def servers() -> Iterator[list[Scripted]]:
    """Four replicas that answer everything with 200."""
    with Scripted(Exchange.answer) as a, Scripted(Exchange.answer) as b:
        with Scripted(Exchange.answer) as c, Scripted(Exchange.answer) as d:
            yield [a, b, c, d]
