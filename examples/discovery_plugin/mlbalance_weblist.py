"""Replicas from a JSON document on a web server: ``{"a": "10.0.0.1:8000"}``, address by id."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import anyio
import httpx
from pydantic import Field, SecretStr

from mlbalance_client.config import RegistryConfig, TargetURL
from mlbalance_client.discovery import Membership, make_replica
from mlbalance_client.errors import ConfigError, DiscoveryError


class WebListConfig(RegistryConfig):
    """The section of this kind. RegistryConfig brings the keys that all kinds share: start_timeout_s and so on."""

    kind: Literal["weblist"] = "weblist"
    url: str = Field(description="Where the document is.")
    poll_s: float = Field(default=5.0, gt=0, description="How often it is asked for, in seconds.")
    token: SecretStr | None = Field(default=None, description="Bearer token; never shown, refused in URLs.")

    @classmethod
    def from_url(cls, url: TargetURL) -> dict[str, Any]:
        """``weblist://host:port/path[?poll_s=1]``."""
        return {"kind": "weblist", "url": f"http://{url.authority}{url.path}", **cls.from_query(url)}


class WebList:
    """Called with its configuration; gives the library what it needs of a source: ``initial`` and ``run``."""

    config_type = WebListConfig

    def __init__(self, config: WebListConfig) -> None:
        self._config = config

    def initial(self) -> Membership | None:
        """Nothing is known before the server was asked."""
        return None

    async def run(self, publish: Callable[[Membership], None]) -> None:
        """Publish full lists for ever. What fails raises DiscoveryError: the library keeps the last list and waits."""
        token = self._config.token
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        async with httpx.AsyncClient(headers=headers, trust_env=False) as client:
            while True:
                publish(await self._ask(client))
                await anyio.sleep(self._config.poll_s)

    async def _ask(self, client: httpx.AsyncClient) -> Membership:
        try:
            answer = await client.get(self._config.url)
            answer.raise_for_status()
            listed = answer.json()
            replicas = tuple(make_replica(f"http://{address}", id=id_) for id_, address in listed.items())
        except (httpx.HTTPError, ConfigError, ValueError, AttributeError) as error:
            raise DiscoveryError(f"{self._config.url}: {error or type(error).__name__}") from error
        return Membership(replicas, "weblist", empty_because=f"{self._config.url} lists nobody")
