"""Replicas by Consul's health API, followed with blocking queries.

Consul's rules for these (its API documentation, "Blocking Queries"): an answer's index is given back with the next
query, which then waits for a change; an index that went back is forgotten, and one below 1 is none; the agent adds
up to a sixteenth to the wait.
"""

from __future__ import annotations

import os
from random import Random
from typing import Any, NoReturn
from urllib.parse import quote

import anyio
import httpx

from mlbalance_client.backoff import Backoff, doubling
from mlbalance_client.config import ConsulConfig
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.errors import DiscoveryError

from .base import Publish
from .consul_answer import instances
from .http import beginning, header_value, registry_client, secret, transport_error

_TOKEN_VARIABLE = "CONSUL_HTTP_TOKEN"  # noqa: S105 - its name
_MARGIN_S = 10.0
_BETWEEN_S = 0.05
_WITHOUT_INDEX_S = 1.0


class ConsulDiscovery:
    """One query is pending at one agent; the next agent is asked when that one fails, all of them before it is said.

    An agent whose first answer is its last has failed like one that gives none. ``rng`` spreads what is asked after
    failures; agents spread the ends of waits themselves.
    """

    config_type = ConsulConfig

    def __init__(self, config: ConsulConfig, rng: Random) -> None:
        self._config = config
        self._agents = [str(agent) for agent in config.agents]
        self._failed: dict[str, str] = {}
        self._in_a_row = 0
        self._rng = rng

    def initial(self) -> None:
        """Not without asking."""

    async def run(self, publish: Publish) -> None:
        """Publish the first list and every change. Raises DiscoveryError when no agent answers as it should."""
        self._in_a_row = 0
        backoff = Backoff(doubling(self._config.retry_max_s), self._rng)
        while True:
            agent, began = self._agents[0], anyio.current_time()
            try:
                await self._follow(agent, publish)
            except DiscoveryError as error:
                self._failed[agent] = str(error)
                self._in_a_row += 1
            self._agents.append(self._agents.pop(0))
            if self._in_a_row >= len(self._agents):
                break
            if anyio.current_time() - began > self._config.retry_max_s:
                backoff.reset()
            await anyio.sleep(backoff.next_s())
        raise DiscoveryError("; ".join(f"{agent}: {why}" for agent, why in sorted(self._failed.items())))

    async def _follow(self, agent: str, publish: Publish) -> NoReturn:
        config = self._config
        async with await registry_client(
            agent, ca_file=config.ca_file, cert_file=config.cert_file, key_file=config.key_file
        ) as client:
            index = 0
            first = True
            while True:
                asked = anyio.current_time()
                answer = await self._ask(client, index)
                found = _index(answer)
                self._failed.pop(agent, None)
                publish(await self._membership(client, answer))
                if not first:
                    self._in_a_row = 0
                first = False
                index = 0 if found < index else found
                least_s = _BETWEEN_S if found > 0 else _WITHOUT_INDEX_S
                await anyio.sleep(max(0.0, asked + least_s - anyio.current_time()))

    async def _ask(self, client: httpx.AsyncClient, index: int) -> httpx.Response:
        config = self._config
        wanted: dict[str, Any] = {"tag": list(config.tags), "near": config.near, **self._scope()}
        if config.consistency != "default":
            wanted[config.consistency] = ""
        read_s = _MARGIN_S
        if index > 0:
            wanted |= {"index": index, "wait": f"{config.wait_s:g}s"}
            read_s += config.wait_s * (1 + 1 / 16)
        return await self._get(client, f"/v1/health/service/{quote(config.service, safe='')}", wanted, read_s)

    async def _get(
        self, client: httpx.AsyncClient, path: str, wanted: dict[str, Any], read_s: float
    ) -> httpx.Response:
        parameters = {key: value for key, value in wanted.items() if value is not None}
        timeout = httpx.Timeout(_MARGIN_S, read=read_s)
        try:
            answer = await client.get(path, params=parameters, headers=await self._headers(), timeout=timeout)
        except (httpx.HTTPError, OSError) as error:
            raise DiscoveryError(transport_error(error)) from error
        if answer.status_code == 403:
            raise DiscoveryError(
                f"HTTP 403: {beginning(answer.content)}: the ACL token is unknown or lacks rights"
            )
        if answer.status_code != 200:
            raise DiscoveryError(f"HTTP {answer.status_code}: {beginning(answer.content)}")
        return answer

    async def _headers(self) -> dict[str, str]:
        token = await secret(self._config.token, self._config.token_file)
        if token is None:
            token = os.environ.get(_TOKEN_VARIABLE)
        return {"X-Consul-Token": header_value(token)} if token else {}

    def _scope(self) -> dict[str, str | None]:
        config = self._config
        return {"dc": config.dc, "ns": config.namespace, "partition": config.partition}

    async def _membership(self, client: httpx.AsyncClient, answer: httpx.Response) -> Membership:
        replicas, remarks = instances(_json(answer), self._config)
        empty = ""
        if not replicas and not remarks:
            empty = await self._why_empty(client, answer)
        remarks += [f"agent {agent}: {why}" for agent, why in sorted(self._failed.items())]
        return Membership(replicas, f"consul {self._config.service}", tuple(remarks), empty)

    async def _why_empty(self, client: httpx.AsyncClient, answer: httpx.Response) -> str:
        """Consul answers 200 and ``[]`` for a service that the token may not read, as for one that is not there.

        Raises DiscoveryError if it is known to be the former: then the answer says nothing. Newer versions say it in
        a header; others tell, as they do their own web pages, what a token may do.
        """
        service = self._config.service
        if answer.headers.get("X-Consul-Results-Filtered-By-ACLs", "").lower() == "true":
            raise DiscoveryError(
                f"the ACL token may not read service {service!r} or its nodes: the answer was filtered"
            )
        questions = [
            {"Resource": "service", "Access": "read", "Segment": service},
            {"Resource": "node", "Access": "read", "Segment": ""},
        ]
        nobody = f"no instance of service {service!r} is registered" + (
            f" with tags {', '.join(self._config.tags)}" if self._config.tags else ""
        )
        try:
            told = await client.post(
                "/v1/internal/acl/authorize",
                params={key: value for key, value in self._scope().items() if value is not None},
                json=questions,
                headers=await self._headers(),
                timeout=_MARGIN_S,
            )
        except (httpx.HTTPError, OSError):
            return f"{nobody}, or the ACL token may not read it"
        match told.status_code, _allowed(told):
            case 401, _:
                return nobody  # ACLs are off
            case 200, [False, *_]:
                raise DiscoveryError(
                    f"the ACL token may not read service {service!r}: Consul answers with an empty list"
                )
            case 200, [True, False]:
                return f"{nobody}, or on nodes only that the ACL token may not read"
            case 200, [True, True]:
                return nobody
        return f"{nobody}, or the ACL token may not read it"


def _index(answer: httpx.Response) -> int:
    text = answer.headers.get("X-Consul-Index", "")
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise DiscoveryError("the answer has no X-Consul-Index: this is not Consul's API")
    return int(text)


def _json(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except (ValueError, RecursionError) as error:
        raise DiscoveryError("the answer is not JSON") from error


def _allowed(answer: httpx.Response) -> list[bool]:
    try:
        return [entry["Allow"] is True for entry in answer.json()]
    except (ValueError, RecursionError, TypeError, KeyError):
        return []
