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

# The keys that they are set by.
CONFIGURED = "http.{}_timeout_s"

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


@dataclass(frozen=True, slots=True)
class _Address:
    """Of a replica. ``prefix`` goes before every path; ``version``: of an API, if the prefix ends with one."""

    origin: Origin
    authority: bytes
    prefix: bytes
    version: bytes


class Sender:
    """One client's; knows where its replicas are."""

    def __init__(self, http: HttpConfig, wire: Wire, reporting: Reporting) -> None:
        self._wire = wire
        self._reporting = reporting
        self._timeouts = Timeouts(
            http.connect_timeout_s, http.read_timeout_s, http.write_timeout_s, CONFIGURED
        )
        self._addresses: dict[tuple[str, str | None], _Address] = {}

    def open(
        self, request: Request, pick: Pick, acked_by: int, resending: Resending | None
    ) -> Awaitable[WireAnswer]:
        """Send it to the picked replica and wait for the head of its answer. The wait raises WireError.

        ``resending``: as in WireRequest. Raises ConfigError for a path that no replica has.
        """
        at = self._address(pick.replica)
        if at.version and request.target.startswith(at.version):
            _check_path(pick.replica.url, at.version, request.target)
        headers = [
            (b"Host", request.host or at.authority),
            *request.headers,
            *self._reporting.asks(pick, acked_by),
        ]
        return self._wire.open(
            at.origin,
            WireRequest(
                request.method.encode("ascii"),
                at.prefix + request.target,
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
            self._address(replica)  # whoever opens connections there
        here = {(replica.url, replica.tls_name) for replica in replicas}
        gone = [self._addresses.pop(place).origin for place in list(self._addresses) if place not in here]
        kept = {address.origin for address in self._addresses.values()}
        for origin in gone:
            if origin not in kept:
                self._wire.forget(origin)

    def _address(self, replica: Replica) -> _Address:
        place = replica.url, replica.tls_name
        known = self._addresses.get(place)
        if known is None:
            parts = urlsplit(replica.url)
            words = parts.netloc, parts.path.rstrip("/"), api_version(replica.url)
            known = _Address(Origin.from_url(*place), *(word.encode("ascii") for word in words))
            self._addresses[place] = known
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
