"""Replicas by Kubernetes' EndpointSlices, by list and watch.

The rules (Kubernetes API concepts, "Efficient detection of changes"): a list names its version; a watch from there
brings every change and, in bookmarks, later versions to resume from. A version that is too old is 410 Gone, as a status
or within the stream; then one lists anew. Versions are opaque.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from contextlib import aclosing
from random import Random
from typing import Any, cast

import anyio
import httpx

from mlbalance_client.config import K8sConfig
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.errors import DiscoveryError

from .base import Publish
from .http import header_value, registry_client, secret, transport_error
from .k8s_events import Lines, check, event_of, listed, version_of
from .k8s_slices import Slice, replicas_of, slice_of

_MARGIN_S = 15.0
_BETWEEN_S = 0.05
_LEAST_WATCH_S = 1.0
_PAGE = 500
_MOST_PAGES = 200
_MOST_RESTARTS = 3


class _Expired(Exception):
    """The version is too old to watch from."""


class K8sDiscovery:
    """Keeps the slices by name, as the API server told them last. ``rng`` spreads the ends of watches."""

    config_type = K8sConfig

    def __init__(self, config: K8sConfig, rng: Random) -> None:
        self._config = config
        self._rng = rng
        self._slices: dict[str, Slice] = {}
        self._version = ""
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{config.namespace}/endpointslices"

    def initial(self) -> None:
        """Not without asking."""

    async def run(self, publish: Publish) -> None:
        """Publish the first list and every change. Raises DiscoveryError when the API server does not answer."""
        async with await registry_client(self._server(), ca_file=self._config.ca_file) as client:
            said = False
            while True:
                if not self._version:
                    await self._list(client)
                    publish(self._membership())
                    said = True
                began = anyio.current_time()
                try:
                    await self._watch(client, publish, said=said)
                except _Expired:
                    self._version = ""
                said = True
                await anyio.sleep(max(_BETWEEN_S, began + _LEAST_WATCH_S - anyio.current_time()))

    async def _list(self, client: httpx.AsyncClient) -> None:
        slices: dict[str, Slice] = {}
        page, seen, restarts = "", set[str](), 0
        while True:
            try:
                answer = await client.get(
                    self._path,
                    params=self._asked(limit=_PAGE, **({"continue": page} if page else {})),
                    headers=await self._headers(),
                )
            except (httpx.HTTPError, OSError) as error:
                raise DiscoveryError(transport_error(error)) from error
            if page and answer.status_code == 410 and restarts < _MOST_RESTARTS:
                slices, page, seen, restarts = {}, "", set(), restarts + 1
                await anyio.sleep(_BETWEEN_S)
                continue
            check(answer.status_code, answer.content)
            version, page, items = listed(answer.content)
            slices |= {each.metadata.name: each for each in map(slice_of, items)}
            if not page:
                self._slices, self._version = slices, version
                return
            if page in seen or len(seen) >= _MOST_PAGES:
                raise DiscoveryError("the list of EndpointSlices has no end: its pages go on and on")
            seen.add(page)

    async def _watch(self, client: httpx.AsyncClient, publish: Publish, *, said: bool) -> None:
        """Follow changes until the server ends the watch. Raises _Expired, DiscoveryError.

        ``said``: what is known was published since the last failure; if not, that a watch has begun ends the failure.
        """
        watch_s = self._config.watch_s * (1.0 + 0.1 * self._rng.random())
        asked = self._asked(
            watch="true",
            resourceVersion=self._version,
            allowWatchBookmarks="true",
            timeoutSeconds=int(watch_s),
        )
        timeout = httpx.Timeout(_MARGIN_S, read=watch_s + _MARGIN_S)
        try:
            async with client.stream(
                "GET", self._path, params=asked, headers=await self._headers(), timeout=timeout
            ) as answer:
                if answer.status_code == 410:
                    raise _Expired
                if answer.status_code != 200:
                    check(answer.status_code, await answer.aread())
                if not said:
                    publish(self._membership())
                lines = Lines()
                stream = cast(AsyncGenerator[bytes, None], answer.aiter_bytes())
                async with aclosing(stream) as pieces:
                    async for piece in pieces:
                        changed = [self._changed(line) for line in lines.feed(piece)]
                        if any(changed):
                            publish(self._membership())
        except (httpx.HTTPError, OSError) as error:
            raise DiscoveryError(transport_error(error)) from error

    def _changed(self, line: bytes) -> bool:
        """Apply one event; whether it changed the slices. What cannot be read makes us list anew."""
        version, self._version = self._version, ""
        kind, item = event_of(line)
        if kind == "ERROR":
            code = item.get("code")
            if code == 410:
                raise _Expired
            raise DiscoveryError(f"the watch ended with {code}: {str(item.get('message', ''))[:200]}")
        known = kind in ("ADDED", "MODIFIED", "DELETED")  # others may come with later versions of the API
        if known:
            each = slice_of(item)
            self._slices[each.metadata.name] = each
            if kind == "DELETED":
                del self._slices[each.metadata.name]
        self._version = version_of(item) or version
        return known

    def _membership(self) -> Membership:
        config = self._config
        replicas, remarks = replicas_of(self._slices.values(), config)
        name = f"{config.namespace}/{config.service}"
        what = (
            "has no endpoints"
            if self._slices
            else "has no EndpointSlices: there is no such service, or no pod matches"
        )
        return Membership(replicas, f"k8s {name}", remarks, f"service {name} {what}")

    def _asked(self, **more: Any) -> dict[str, Any]:
        return {"labelSelector": f"kubernetes.io/service-name={self._config.service}", **more}

    async def _headers(self) -> dict[str, str]:
        token = await secret(self._config.token, self._config.token_file or None)
        accept = {"Accept": "application/json"}
        return {**accept, "Authorization": f"Bearer {header_value(token)}"} if token else accept

    def _server(self) -> str:
        if self._config.address is not None:
            return self._config.address
        host, port = (
            os.environ.get("KUBERNETES_SERVICE_HOST"),
            os.environ.get("KUBERNETES_SERVICE_PORT", "443"),
        )
        if not host:
            raise DiscoveryError("not in a pod (KUBERNETES_SERVICE_HOST is not set); set discovery.address")
        return f"https://{f'[{host}]' if ':' in host else host}:{port}"
