"""The httpx face: drop-ins for its clients, and the transports alone. ``httpx2.py`` is this file for httpx2."""

from __future__ import annotations

import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, NoReturn, Self

import httpx as library

from .calls import CallOptions, check_ascii
from .core.report import Explanation, FleetSnapshot
from .errors import BalancerError, ClientClosed
from .events import Subscriber
from .face import FLEET_URL, Body, Face, Target, come_home, explained, read_ahead
from .face_errors import ErrorTable, synthesised
from .loop_thread import LoopThread
from .options import client_options

__all__ = ["AsyncBalancerTransport", "AsyncClient", "BalancerTransport", "Client"]

# Bound once: each stream refers to it.
_translate = ErrorTable(library).translate


class _AsyncStream(library.AsyncByteStream):
    def __init__(self, body: Body, request: library.Request) -> None:
        self._body = body.translated(_translate, request)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._body

    async def aclose(self) -> None:
        await self._body.aclose()


class AsyncBalancerTransport(library.AsyncBaseTransport):
    """Sends each request to the replica that suits it best.

    ``target``: a discovery URL, a BalancerConfig, the path of a TOML file, or None for ``MLBALANCE_TARGET``.
    ``fleet_url``: requests to another host than this are refused; None takes every host to mean the fleet.
    ``options``: those of the library's own transport (verify, cert, trust_env, limits, local_address,
    socket_options), and ``dialects``: Dialect objects that are asked before the built-in ones. Raises ConfigError.
    """

    def __init__(self, target: Target = None, *, fleet_url: str | None = None, **options: Any) -> None:
        self.face = Face(library, target, fleet_url, options)
        self.engine = self.face.engine
        others = self.face.others
        self._others = None if others is None else library.AsyncHTTPTransport(**others)

    async def handle_async_request(self, request: library.Request) -> library.Response:
        """Perform one call; its errors are in docs/errors.md."""
        face, url = self.face, request.url
        if face.elsewhere(url.host):
            if self._others is None:
                raise face.refusal(str(url))
            face.to_stranger(request.headers)
            return await self._others.handle_async_request(request)
        stream = request.stream
        body = b"".join(stream) if isinstance(stream, library.ByteStream) else await face.collect(stream)
        call, sdk_retries = face.prepare(
            request.method, url.raw_path, url.netloc, request.headers.raw, body, request.extensions
        )
        try:
            answer = await self.engine.send(call)
        except BalancerError as error:
            if sdk_retries and (substitute := synthesised(error)) is not None:
                return library.Response(**substitute)
            raise _translate(error, request) from error.__cause__
        return library.Response(
            answer.status,
            headers=come_home(self.engine, answer, url),
            stream=_AsyncStream(answer.body, request),
            extensions=answer.extensions,
        )

    async def __aexit__(self, *error: object) -> None:
        if error[0] is not None:
            self.engine.drain_s = 0.0
        await self.aclose()

    async def aclose(self) -> None:
        """Let calls under way and streams that are being read end, at most ``http.drain_s``; then close all."""
        await self.engine.aclose()
        if self._others is not None:
            await self._others.aclose()


class _SyncStream(library.SyncByteStream):
    def __init__(self, thread: LoopThread, body: Body, ahead: list[bytes], request: library.Request) -> None:
        self._thread = thread
        self._body = body
        self._ahead = ahead
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        yield from self._ahead
        try:
            while (chunk := self._thread.call(_next(self._body))) is not None:
                yield chunk
        except BalancerError as error:
            raise _translate(error, self._request) from error.__cause__

    def close(self) -> None:
        with suppress(ClientClosed):  # which has closed this too
            self._thread.call(self._body.aclose())


async def _next(body: Body) -> bytes | None:
    return await anext(body, None)


class BalancerTransport(library.BaseTransport):
    """The same for synchronous clients, from any number of threads: a facade over one event loop in a thread."""

    def __init__(self, target: Target = None, *, fleet_url: str | None = None, **options: Any) -> None:
        self.face = Face(library, target, fleet_url, options)
        self.engine = self.face.engine
        self._thread = LoopThread("mlbalance", self.engine.aclose)
        self._stop = weakref.finalize(self, self._thread.stop)
        others = self.face.others
        self._others = None if others is None else library.HTTPTransport(**others)

    def handle_request(self, request: library.Request) -> library.Response:
        """Perform one call; its errors are in docs/errors.md."""
        face, url = self.face, request.url
        if face.elsewhere(url.host):
            if self._others is None:
                raise face.refusal(str(url))
            face.to_stranger(request.headers)
            return self._others.handle_request(request)
        body = face.collect_sync(request.stream)
        call, sdk_retries = face.prepare(
            request.method, url.raw_path, url.netloc, request.headers.raw, body, request.extensions
        )
        try:
            answer, ahead = self._thread.call(read_ahead(self.engine, call))
        except BalancerError as error:
            if sdk_retries and (substitute := synthesised(error)) is not None:
                return library.Response(**substitute)
            raise _translate(error, request) from error.__cause__
        return library.Response(
            answer.status,
            headers=come_home(self.engine, answer, url),
            stream=_SyncStream(self._thread, answer.body, ahead, request),
            extensions=answer.extensions,
        )

    def run(self, work: Callable[[], Any]) -> Any:
        """Run a function in the event loop that owns the balancer's state; at once if that is where we are."""
        if self._thread.inside:
            return work()

        async def in_loop() -> Any:
            return work()

        return self._thread.call(in_loop())

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self.engine.drain_s = 0.0
        self.close()

    def close(self) -> None:
        """Let calls under way and streams that are being read end, at most ``http.drain_s``; then close all."""
        self._stop()
        self._thread.join()
        if self._others is not None:
            self._others.close()


class _Cookies(library.Cookies):
    """The library's, but for answers without cookies, which models' all are: it takes apart each request for them."""

    def extract_cookies(self, response: library.Response) -> None:
        if "set-cookie" in response.headers:
            super().extract_cookies(response)


def _closed(request: library.Request | None = None) -> Exception:
    return _translate(ClientClosed("this client is closed"), request)


def _refuse(request: library.Request, **options: Any) -> NoReturn:
    raise _closed(request)


# By path and a call's headers: all its headers; and those of its request with a body, unless they tell its length.
_Known = dict[tuple[str, tuple[tuple[str, str], ...]], tuple[library.Headers, library.Headers | None]]


class _Spared:
    """Spares a client of the library what costs as much as a pick and comes to the same for every call to a model."""

    _MOST_KNOWN = 256
    # All that a request may differ in from one before without being taken apart anew.
    _OWN = frozenset({"content", "json", "headers", "timeout", "extensions"})

    def _spare(self, cookies: Any) -> None:
        self._jar = _Cookies(cookies)
        self._base: library.URL | None = None
        self._absolute: dict[str, library.URL] = {}
        # With the client's own.
        self._merged: tuple[list[tuple[bytes, bytes]], _Known] = [], {}

    def _shut(self) -> None:
        # In place of the method, so that no call pays for the question.
        vars(self)["send"] = _refuse

    @property
    def cookies(self) -> library.Cookies:
        """As the library's."""
        return self._jar

    @cookies.setter
    def cookies(self, cookies: Any) -> None:
        self._jar = _Cookies(cookies)

    def build_request(self, method: str, url: library.URL | str, **given: Any) -> library.Request:
        """As the library's; a path and headers that were given before are not taken apart again."""
        client: Any = self
        if client.base_url is not self._base:
            self._base, self._absolute, self._merged = client.base_url, {}, ([], {})
        plain = given.get("params") is None and not client.params
        path = url if plain and isinstance(url, str) else None
        known = None if path is None else self._absolute.get(path)
        try:
            if (
                path is not None
                and known is not None
                and not self._jar
                and self._OWN.issuperset(name for name, value in given.items() if value is not None)
            ):
                headers = self._known_headers(client, path, known, given.get("headers"))
                if headers is not None:
                    return self._known_request(client, method, known, *headers, given)
            # A mixin's super is not known to be the library's client.
            request: library.Request = super().build_request(method, known or url, **given)  # type: ignore[misc]
        except UnicodeEncodeError:
            check_ascii(given.get("headers"))
            raise
        if path is not None and known is None and len(self._absolute) < self._MOST_KNOWN:
            self._absolute[path] = request.url
        return request

    @staticmethod
    def _known_request(
        client: Any,
        method: str,
        url: library.URL,
        headers: library.Headers,
        unsized: library.Headers | None,
        given: dict[str, Any],
    ) -> library.Request:
        extensions = given.get("extensions") or {}
        if "timeout" not in extensions:
            timeout = given.get("timeout", library.USE_CLIENT_DEFAULT)
            timeout = client.timeout if timeout is library.USE_CLIENT_DEFAULT else library.Timeout(timeout)
            extensions = {**extensions, "timeout": timeout.as_dict()}
        content = given.get("content")
        if unsized is None or not content or type(content) is not bytes:
            return library.Request(
                method, url, headers=headers, content=content, json=given.get("json"), extensions=extensions
            )
        # All that the library would add is how long it is, for which it goes through all headers several times.
        stream = library.ByteStream(content)
        request = library.Request(method, url, headers=unsized, stream=stream, extensions=extensions)
        request.headers["Content-Length"] = str(len(content))
        request.read()
        return request

    def _known_headers(
        self, client: Any, path: str, url: library.URL, given: Any
    ) -> tuple[library.Headers, library.Headers | None] | None:
        """The client's headers with those of a call, if these are plain text."""
        if given is not None and type(given) is not dict:
            return None
        own, known = self._merged  # one pair: another thread may exchange it
        if client.headers.raw != own:
            own, known = self._merged = client.headers.raw, {}
        try:
            headers = known.get(key := (path, tuple(given.items()) if given else ()))
        except TypeError:
            return None
        if headers is None:
            merged = library.Headers(own)
            merged.update(given)
            sized = "content-length" in merged or "transfer-encoding" in merged
            headers = merged, None if sized else library.Request("GET", url, headers=merged).headers
            if len(known) < self._MOST_KNOWN:
                known[key] = headers
        return headers


class AsyncClient(_Spared, library.AsyncClient):
    """A drop-in for the library's AsyncClient whose relative URLs go to the fleet.

    ``target`` as for AsyncBalancerTransport. Options of the library's client are honoured on the way to the
    replicas or refused with ConfigError; the host of ``base_url`` (default ``http://fleet``) means the fleet.
    """

    def __init__(self, target: Target = None, *, base_url: str = FLEET_URL, **options: Any) -> None:
        ours, theirs = client_options(library.AsyncClient, options)
        self.balancer = AsyncBalancerTransport(target, fleet_url=str(base_url), **ours)
        theirs.setdefault("timeout", library.Timeout(**self.balancer.face.default_timeouts()))
        super().__init__(transport=self.balancer, base_url=base_url, **theirs)
        self._spare(theirs.get("cookies"))

    async def __aenter__(self) -> Self:
        if self.is_closed:
            raise _closed()
        return await super().__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._shut()
        await super().__aexit__(kind, error, trace)

    async def aclose(self) -> None:
        """Take no more calls: they raise ClientClosed. Then as the transport's."""
        self._shut()
        await super().aclose()

    def snapshot(self) -> FleetSnapshot:
        """What the client believes of each replica."""
        return self.balancer.engine.snapshot()

    def explain(
        self, body: Mapping[str, Any] | bytes, *, path: str = "/v1/chat/completions", **wishes: Any
    ) -> Explanation:
        """Which replica a call with this body would go to now, and why; nothing is sent.

        Raises NoReplicas, ConfigError.
        """
        return explained(self.balancer.engine, path, body, CallOptions(**wishes))

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Hear every event (``mlbalance_client.events``) until the returned function is called."""
        return self.balancer.engine.events.subscribe(subscriber)


class Client(_Spared, library.Client):
    """The synchronous drop-in; see AsyncClient. Any number of threads may share one."""

    def __init__(self, target: Target = None, *, base_url: str = FLEET_URL, **options: Any) -> None:
        ours, theirs = client_options(library.Client, options)
        self.balancer = BalancerTransport(target, fleet_url=str(base_url), **ours)
        theirs.setdefault("timeout", library.Timeout(**self.balancer.face.default_timeouts()))
        super().__init__(transport=self.balancer, base_url=base_url, **theirs)
        self._spare(theirs.get("cookies"))

    def __enter__(self) -> Self:
        if self.is_closed:
            raise _closed()
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._shut()
        super().__exit__(kind, error, trace)

    def close(self) -> None:
        """Take no more calls: they raise ClientClosed. Then as the transport's."""
        self._shut()
        super().close()

    def snapshot(self) -> FleetSnapshot:
        """What the client believes of each replica."""
        snapshot: FleetSnapshot = self.balancer.run(self.balancer.engine.snapshot)
        return snapshot

    def explain(
        self, body: Mapping[str, Any] | bytes, *, path: str = "/v1/chat/completions", **wishes: Any
    ) -> Explanation:
        """Which replica a call with this body would go to now, and why; nothing is sent.

        Raises NoReplicas, ConfigError.
        """
        explanation: Explanation = self.balancer.run(
            partial(explained, self.balancer.engine, path, body, CallOptions(**wishes))
        )
        return explanation

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Hear every event (``mlbalance_client.events``), in the balancer's own thread."""
        return self.balancer.engine.events.subscribe(subscriber)
