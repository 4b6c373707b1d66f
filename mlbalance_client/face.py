"""What both faces (httpx and httpx2) share: requests in, answers out, and who is a stranger.

``library`` is always the module ``httpx`` or ``httpx2``; nothing here imports either.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from anyio import to_thread

from .calls import HEADER_PREFIX, NO_WISHES, CallOptions
from .conduct.answer import AnswerBody, HeldBody
from .conduct.engine import Answer, Engine, Headers, Request
from .conduct.sending import CONFIGURED
from .config import BalancerConfig, HttpConfig
from .config.urls import shown
from .core.report import Explanation
from .errors import ConfigError
from .options import FOR_OTHERS, OUR_OPTIONS, refuse_unknown, wire_options
from .wire import Timeouts

Target = str | Path | BalancerConfig | None

FLEET_URL = "http://fleet"
# Or nothing but a path, below which the calls are.
_FLEET_STARTS = ("http://", "https://", "/")
_PREFIX = HEADER_PREFIX.encode()


class Face:
    """What a transport of either library needs besides its own types."""

    def __init__(self, library: Any, target: Target, fleet_url: str | None, options: dict[str, Any]) -> None:
        if fleet_url and not fleet_url.lower().startswith(_FLEET_STARTS):
            raise ConfigError(
                f"base_url (of a transport: fleet_url) {shown(fleet_url)!r} must start with http:// or https://, as in "
                f"{FLEET_URL} or {FLEET_URL}/v1"
            )
        self.config = BalancerConfig.from_target(target)
        dialects = tuple(options.pop("dialects", ()))
        self.others: dict[str, Any] | None = None
        if self.config.http.allow_other_hosts:
            if fleet_url is None:
                raise ConfigError(
                    "http.allow_other_hosts: give the transport fleet_url, to tell the fleet from others"
                )
            self.others = {name: options[name] for name in FOR_OTHERS if name in options}
        wire = wire_options(library, self.config, options)
        refuse_unknown(options, ("target", "fleet_url", *OUR_OPTIONS))
        self.engine = Engine(self.config, wire=wire, dialects=dialects)
        # Most calls have the same ones.
        self._timeouts = lru_cache(maxsize=16)(partial(_timeouts, self.config.http))
        self._fleet_url = fleet_url
        self._fleet_host = None if fleet_url is None else library.URL(fleet_url).host

    def elsewhere(self, host: str) -> bool:
        """Whether a request's host is another than the fleet's."""
        return self._fleet_host is not None and host not in ("", self._fleet_host)

    def refusal(self, url: str) -> ConfigError:
        """The error for a request to a stranger."""
        fleet = shown(self._fleet_url or FLEET_URL).rstrip("/")
        return ConfigError(
            f"{shown(url)} is not the fleet ({fleet}): use a relative URL, or give an "
            f"SDK base_url={fleet + '/v1'!r}; http.allow_other_hosts = true lets other hosts through unbalanced"
        )

    @staticmethod
    def to_stranger(headers: Any) -> None:
        """Take our wishes out of a request that does not go to the fleet."""
        for name in [name for name in headers if name.lower().startswith(HEADER_PREFIX)]:
            del headers[name]

    def default_timeouts(self) -> dict[str, float | None]:
        """The configured timeouts in the library's words."""
        http = self.config.http
        return {
            "connect": http.connect_timeout_s,
            "read": http.read_timeout_s,
            "write": http.write_timeout_s,
            "pool": None,
        }

    async def collect(self, stream: Any) -> bytes | AsyncIterable[bytes]:
        """A body that is not in memory: read whole if it may be kept for a second attempt, else handed on."""
        chunks: list[bytes] = []
        size = 0
        pieces: AsyncIterator[bytes] = aiter(stream)
        async for chunk in pieces:
            chunks.append(chunk)
            size += len(chunk)
            if size > self.config.http.max_replay_body_bytes:
                return _Rest(chunks, pieces)
        return b"".join(chunks)

    def collect_sync(self, stream: Any) -> bytes | AsyncIterable[bytes]:
        """The same for a synchronous body; what is handed on is read in a thread of its own."""
        chunks: list[bytes] = []
        size = 0
        pieces: Iterator[bytes] = iter(stream)
        for chunk in pieces:
            chunks.append(chunk)
            size += len(chunk)
            if size > self.config.http.max_replay_body_bytes:
                return _Rest(chunks, _in_thread(pieces))
        return b"".join(chunks)

    def prepare(
        self,
        method: str,
        target: bytes,
        authority: bytes,
        raw_headers: Headers,
        body: bytes | AsyncIterable[bytes],
        extensions: Mapping[str, Any],
    ) -> tuple[Request, bool]:
        """The engine's request, and whether an SDK above us retries. Raises ConfigError for wishes we do not know.

        A Host that merely repeats ``authority`` (the fleet's) becomes the replica's.
        """
        travelling: Headers = []
        wishes: dict[str, str] = {}
        host: bytes | None = None
        sdk_retries = False
        for pair in raw_headers:
            name = pair[0].lower()
            if name == b"host":
                host = None if pair[1] == authority else pair[1]
            elif name.startswith(_PREFIX):
                wishes[name.decode("ascii")] = pair[1].decode("latin-1")
            else:
                sdk_retries = sdk_retries or name == b"x-stainless-retry-count"
                travelling.append(pair)
        options = extensions.get("mlbalance", NO_WISHES)
        if not isinstance(options, CallOptions):
            kind = type(options).__name__
            raise ConfigError(f'extensions["mlbalance"] must be a mlbalance_client.CallOptions, not {kind}')
        if wishes:
            options = options.with_headers(wishes)
        given = extensions.get("timeout")
        # There is no "pool" among them: nobody waits for a connection.
        timeouts = (
            None
            if given is None
            else self._timeouts(given.get("connect"), given.get("read"), given.get("write"))
        )
        passed = {name: extensions[name] for name in _PASSED if name in extensions}
        # By position, as all that is made for every call: to call a class by keywords costs twice as much.
        request = Request(method, target, travelling, body, options, timeouts, passed, host)
        return request, sdk_retries


_PASSED = ("trace", "sni_hostname")


def _timeouts(http: HttpConfig, *given: float | None) -> Timeouts:
    connect_s, read_s, write_s = given
    configured = given == (http.connect_timeout_s, http.read_timeout_s, http.write_timeout_s)
    return Timeouts(connect_s, read_s, write_s, CONFIGURED if configured else "timeout")


class _Rest:
    """What was read of a body, then the rest. No generator: a failing call would leave it to the collector."""

    def __init__(self, chunks: list[bytes], pieces: AsyncIterator[bytes]) -> None:
        self._chunks = chunks[::-1]
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        return self._chunks.pop() if self._chunks else await self._pieces.__anext__()


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await to_thread.run_sync(next, pieces, None)) is not None:
        yield chunk


def come_home(engine: Engine, answer: Answer, requested: object) -> Headers:
    """The answer's headers; a redirect that names a replica is turned back to the fleet. ``requested``: its URL."""
    if not 300 <= answer.status < 400:
        return answer.headers
    scheme, _, rest = str(requested).partition("://")
    fleet_url = f"{scheme}://{rest.partition('/')[0]}"
    return [
        (
            name,
            _fleet_location(engine, answer.report.url, value, fleet_url)
            if name.lower() == b"location"
            else value,
        )
        for name, value in answer.headers
    ]


def _fleet_location(engine: Engine, answered_by: str, location: bytes, fleet_url: str) -> bytes:
    text = location.decode("latin-1")
    prefix = "/" + answered_by.partition("://")[2].partition("/")[2]
    if prefix != "/" and text.startswith(prefix + "/"):
        return text[len(prefix) :].encode("latin-1")
    for replica in engine.fleet.replicas:
        if text == replica.url or text.startswith(replica.url + "/"):
            return (fleet_url + text[len(replica.url) :]).encode("latin-1")
    return location


async def read_ahead(engine: Engine, request: Request) -> tuple[Answer, list[bytes]]:
    """Perform a call and, unless it streams, read what comes of its body in the same visit to the loop."""
    answer = await engine.send(request)
    ahead: list[bytes] = []
    size = 0
    while not answer.streaming and size < _AHEAD_BYTES:
        chunk = await anext(answer.body, None)
        if chunk is None:
            break
        ahead.append(chunk)
        size += len(chunk)
    return answer, ahead


_AHEAD_BYTES = 256 * 1024


def explained(
    engine: Engine, path: str, body: Mapping[str, Any] | bytes, options: CallOptions
) -> Explanation:
    """Explain a call given as a JSON-able mapping or as bytes. Raises ConfigError for other things."""
    if not isinstance(body, bytes | Mapping):
        raise ConfigError(f"explain takes a call's body, a mapping or bytes, not a {type(body).__name__}")
    return engine.explain(path, body if isinstance(body, bytes) else json.dumps(dict(body)).encode(), options)


Body = AnswerBody | HeldBody
