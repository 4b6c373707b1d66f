"""Puts a call on the wire to a replica."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, Awaitable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..calls import NO_WISHES, CallOptions
from ..config import HttpConfig
from ..core.fleet import Pick
from ..core.model import Replica
from ..errors import ConfigError
from ..wire import Origin, Resending, Timeouts, Wire, WireAnswer, WireRequest
from .reporting import Reporting

Headers = list[tuple[bytes, bytes]]

_VERSION = re.compile(r"/v[0-9]\w*\Z", re.ASCII)
_BEHIND_VERSION = (b"", b"/", b"?")


@dataclass(slots=True)
class Request:
    """A call as the engine takes it. ``target``: path and query within the fleet; ``host``: None for the replica's."""

    method: str
    target: bytes
    headers: Headers
    body: bytes | AsyncIterable[bytes]
    options: CallOptions = NO_WISHES
    timeouts: Timeouts | None = None
    extensions: dict[str, Any] = field(default_factory=dict)
    host: bytes | None = None


class Sender:
    """One client's; knows where its replicas are."""

    def __init__(self, http: HttpConfig, wire: Wire, reporting: Reporting) -> None:
        self._wire = wire
        self._reporting = reporting
        self._timeouts = Timeouts(http.connect_timeout_s, http.read_timeout_s, http.write_timeout_s)
        self._origins: dict[tuple[str, str | None], tuple[Origin, bytes, bytes, bytes]] = {}

    def open(
        self, request: Request, pick: Pick, acked_by: int, resending: Resending | None
    ) -> Awaitable[WireAnswer]:
        """Send it to the picked replica and wait for the head of its answer. The wait raises WireError.

        ``resending``: as in WireRequest. Raises ConfigError for a path that no replica has.
        """
        origin, authority, prefix, version = self._origin(pick.replica)
        if version and request.target.startswith(version):
            _check_path(pick.replica.url, version, request.target)
        headers = [
            (b"Host", request.host or authority),
            *request.headers,
            *self._reporting.asks(pick, acked_by),
        ]
        return self._wire.open(
            origin,
            WireRequest(
                request.method.encode("ascii"),
                prefix + request.target,
                headers,
                request.body,
                request.timeouts or self._timeouts,
                request.extensions,
                resending,
            ),
        )

    def keep(self, replicas: tuple[Replica, ...]) -> None:
        """Let go of connections to who is no longer there, or is to be verified by another name."""
        for replica in replicas:
            self._origin(replica)  # whoever opens connections there
        here = {(replica.url, replica.tls_name) for replica in replicas}
        gone = [self._origins.pop(place)[0] for place in list(self._origins) if place not in here]
        kept = {origin for origin, *_ in self._origins.values()}
        for origin in gone:
            if origin not in kept:
                self._wire.forget(origin)

    def _origin(self, replica: Replica) -> tuple[Origin, bytes, bytes, bytes]:
        """Where it is, as whom to address it, and what goes before every path, of which the API's version by itself."""
        place = replica.url, replica.tls_name
        known = self._origins.get(place)
        if known is None:
            parts = urlsplit(replica.url)
            origin = Origin.from_url(*place)
            words = parts.netloc, parts.path.rstrip("/"), api_version(replica.url)
            authority, prefix, version = (word.encode("ascii") for word in words)
            known = origin, authority, prefix, version
            self._origins[place] = known
        return known


def api_version(url: str) -> str:
    """What a replica's URL ends with if that looks like the version of an API, as in an SDK's base_url; or nothing."""
    found = _VERSION.search(urlsplit(url).path.rstrip("/"))
    return "" if found is None else found[0]


def version_twice(url: str, version: str, what: str) -> str:
    """What to say of such a URL. ``what``: the requests that it does not suit."""
    return (
        f"the replica {url} has {version} in its URL, which goes before the path of every request, and {what} begins "
        f"with {version} too: leave it out of the target, as in {url.removesuffix(version)}"
    )


def _check_path(url: str, version: bytes, target: bytes) -> None:
    """Who takes an SDK's base_url for a replica's URL would only hear of a 404."""
    if target[len(version) : len(version) + 1] in _BEHIND_VERSION:
        raise ConfigError(version_twice(url, version.decode("ascii"), "this one's"))
