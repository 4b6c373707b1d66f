"""What both faces (httpx and httpx2) share: checking options, translating headers, timeouts and errors.

``library`` is always the module ``httpx`` or ``httpx2``; nothing here imports either.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread

from . import errors
from .answer import AnswerBody, HeldBody
from .calls import HEADER_PREFIX, NO_WISHES, CallOptions
from .config import BalancerConfig
from .config.urls import shown
from .core.report import Explanation
from .engine import Answer, Engine, Headers, Request
from .errors import BalancerError, ConfigError, FailureKind
from .wire import Timeouts, WireOptions

Target = str | Path | BalancerConfig | None

FLEET_URL = "http://fleet"
OUR_OPTIONS = (
    "verify", "cert", "trust_env", "http1", "http2", "limits", "local_address", "socket_options", "dialects",
)  # fmt: skip
_PREFIX = HEADER_PREFIX.encode()
_FOR_OTHERS = ("verify", "cert", "trust_env", "local_address", "socket_options")
_REFUSED = {
    "proxy": "a balancer talks to its replicas directly; leave proxy out",
    "proxies": "a balancer talks to its replicas directly; leave proxies out",
    "mounts": "every request goes through the balancer; leave mounts out",
    "transport": "the balancer is the transport; use AsyncBalancerTransport or BalancerTransport in a plain client",
    "app": "the balancer talks HTTP; to call an app in process use the library's ASGI or WSGI transport",
}


class Face:
    """What a transport of either library needs besides its own types."""

    def __init__(self, library: Any, target: Target, fleet_url: str | None, options: dict[str, Any]) -> None:
        self.config = BalancerConfig.from_target(target)
        dialects = tuple(options.pop("dialects", ()))
        self.others: dict[str, Any] | None = None
        if self.config.http.allow_other_hosts:
            if fleet_url is None:
                raise ConfigError(
                    "http.allow_other_hosts: give the transport fleet_url, to tell the fleet from others"
                )
            self.others = {name: options[name] for name in _FOR_OTHERS if name in options}
        wire = wire_options(library, self.config, options)
        if options:
            raise ConfigError(
                f"unknown option(s) {', '.join(map(repr, sorted(options)))}; a transport takes {', '.join(OUR_OPTIONS)}"
            )
        self.engine = Engine(self.config, wire=wire, dialects=dialects)
        self._fleet_url = fleet_url
        self._fleet_host = None if fleet_url is None else library.URL(fleet_url).host

    def elsewhere(self, host: str) -> bool:
        """Whether a request's host is another than the fleet's."""
        return self._fleet_host is not None and host not in ("", self._fleet_host)

    def refusal(self, url: str) -> ConfigError:
        """The error for a request to a stranger."""
        return ConfigError(
            f"{shown(url)} is not the fleet ({shown(self._fleet_url or FLEET_URL)}): use a relative URL, or set "
            f"http.allow_other_hosts = true to let other hosts through unbalanced"
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
                return _rest(chunks, pieces)
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
                return _rest(chunks, _in_thread(pieces))
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
        request = Request(
            method=method,
            target=target,
            headers=travelling,
            body=body,
            options=options.with_headers(wishes) if wishes else options,
            timeouts=_timeouts(extensions.get("timeout")),
            extensions={name: extensions[name] for name in _PASSED if name in extensions},
            host=host,
        )
        return request, sdk_retries


_PASSED = ("trace", "sni_hostname")


def _timeouts(given: Mapping[str, float | None] | None) -> Timeouts | None:
    # There is no "pool" among them: nobody waits for a connection.
    return None if given is None else Timeouts(given.get("connect"), given.get("read"), given.get("write"))


async def _rest(chunks: list[bytes], pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    async for chunk in pieces:
        yield chunk


async def _in_thread(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    while (chunk := await to_thread.run_sync(next, pieces, None)) is not None:
        yield chunk


def client_options(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A client's options, sorted into the transport's and the library client's own. Raises ConfigError."""
    ours = {name: options.pop(name) for name in (*OUR_OPTIONS, *_REFUSED) if name in options}
    if "trust_env" in ours:
        options["trust_env"] = ours["trust_env"]
    return ours, options


def wire_options(library: Any, config: BalancerConfig, options: dict[str, Any]) -> WireOptions:
    """Take the options that concern connections out of ``options``. Raises ConfigError for what cannot be honoured."""
    for name, why in _REFUSED.items():
        if options.pop(name, None) is not None:
            raise ConfigError(f"option {name!r} is not supported: {why}")
    if options.pop("http2", False):
        raise ConfigError("option 'http2' is not supported: replicas are spoken to in HTTP/1.1; leave it out")
    if not options.pop("http1", True):
        raise ConfigError("option 'http1' cannot be False: replicas are spoken to in HTTP/1.1; leave it out")
    limits = options.pop("limits", None)
    expiry_s: float | None = config.http.keepalive_expiry_s
    most_idle = None
    if limits is not None:
        if limits.max_connections is not None:
            raise ConfigError(
                "option 'limits': max_connections is not supported, a pool that makes calls wait loses "
                "connections when they are cancelled; give Limits(max_connections=None, ...)"
            )
        most_idle = limits.max_keepalive_connections
        expiry_s = limits.keepalive_expiry
    return WireOptions(
        ssl_context=_ssl_context(library, options),
        keepalive_expiry_s=expiry_s,
        max_idle_per_replica=most_idle,
        local_address=options.pop("local_address", None),
        socket_options=options.pop("socket_options", None),
    )


def _ssl_context(library: Any, options: dict[str, Any]) -> ssl.SSLContext | Callable[[], ssl.SSLContext]:
    verify, cert, trust_env = (
        options.pop("verify", True),
        options.pop("cert", None),
        options.pop("trust_env", True),
    )
    if isinstance(verify, ssl.SSLContext) and cert is None:
        return verify
    # Made when the first https replica is met: it takes 20 ms, and most fleets are spoken to in the clear.
    return partial(library.create_ssl_context, verify=verify, cert=cert, trust_env=trust_env)


def come_home(engine: Engine, answer: Answer, requested: str) -> Headers:
    """The answer's headers; a redirect that names a replica is turned back to the fleet."""
    if not 300 <= answer.status < 400:
        return answer.headers
    scheme, _, rest = requested.partition("://")
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
    """Explain a call given as a JSON-able mapping or as bytes."""
    return engine.explain(path, body if isinstance(body, bytes) else json.dumps(body).encode(), options)


def synthesised(error: BalancerError) -> dict[str, Any] | None:
    """A 503 that tells an SDK not to retry what we have tried already; None if the error should be raised.

    The caller's own timeouts stay timeouts.
    """
    if isinstance(error, errors.AttemptsExhausted):
        if error.kind.by_caller:
            return None
    elif not isinstance(error, errors.NoReplicas | errors.NoCapacity):
        return None
    retry_after_s = getattr(error, "retry_after_s", None) or 1.0
    return {
        "status_code": 503,
        "headers": {"x-should-retry": "false", "retry-after": f"{retry_after_s:.0f}"},
        "json": {"error": {"message": str(error), "type": type(error).__name__, "param": None, "code": 503}},
    }


class ErrorTable:
    """Our errors as subclasses that are also the matching class of ``library``, so that its handlers catch them."""

    def __init__(self, library: Any) -> None:
        by_kind = {
            FailureKind.CONNECT: library.ConnectError,
            FailureKind.CONNECT_TIMEOUT: library.ConnectTimeout,
            FailureKind.WRITE: library.WriteError,
            FailureKind.WRITE_TIMEOUT: library.WriteTimeout,
            FailureKind.READ: library.ReadError,
            FailureKind.READ_TIMEOUT: library.ReadTimeout,
            FailureKind.UNREAD: library.ReadTimeout,
            FailureKind.REQUEST: library.LocalProtocolError,
        }
        self._exhausted = self._per_kind(errors.AttemptsExhausted, by_kind, library.RemoteProtocolError)
        self._interrupted = self._per_kind(errors.StreamInterrupted, by_kind, library.RemoteProtocolError)
        self._others: dict[type[BalancerError], type[BalancerError]] = {
            errors.NoReplicas: _join(errors.NoReplicas, library.ConnectError),
            errors.NoCapacity: _join(errors.NoCapacity, library.PoolTimeout),
            errors.QueueTimeout: _join(errors.QueueTimeout, library.PoolTimeout),
            errors.DeadlineExceeded: _join(errors.DeadlineExceeded, library.ReadTimeout),
        }

    def translate(self, error: BalancerError, request: Any) -> BalancerError:
        """The face's form of ``error``; ConfigError and unknown ones stay as they are."""
        if isinstance(error, errors.AttemptsExhausted):
            face = self._exhausted[error.kind]
        elif isinstance(error, errors.StreamInterrupted):
            face = self._interrupted[error.kind]
        else:
            known = self._others.get(type(error))
            if known is None:
                return error
            face = known
        twin = face.__new__(face)
        twin.args = error.args
        twin.__dict__.update(error.__dict__)
        twin.request = request  # type: ignore[attr-defined]
        twin.__cause__ = error.__cause__
        return twin

    @staticmethod
    def _per_kind(
        base: type[BalancerError], by_kind: Mapping[FailureKind, type[Exception]], other: type[Exception]
    ) -> dict[FailureKind, type[BalancerError]]:
        return {kind: _join(base, by_kind.get(kind, other)) for kind in FailureKind}


def _join(ours: type[BalancerError], theirs: type[Exception]) -> type[BalancerError]:
    return type(ours.__name__, (ours, theirs), {"__module__": ours.__module__, "__doc__": ours.__doc__})


Body = AnswerBody | HeldBody
