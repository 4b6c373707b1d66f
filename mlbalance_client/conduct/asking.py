"""Gets pages and the load stream of one replica, and makes small calls, over the wire that calls use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from urllib.parse import urlsplit

import anyio
from pydantic import SecretStr

from ..load_reports import MOST_BYTES, Forbidden, NoAnswer, NotThere, Page
from ..load_reports.stream import CLIENT_HEADER, PATH
from ..wire import Origin, Timeouts, Wire, WireAnswer, WireError, WireRequest

Headers = Sequence[tuple[bytes, bytes]]


class _Always:
    """Reading twice harms nobody."""

    def begin_resend(self) -> bool:
        return True

    def end_resend(self, *, sent: bool) -> None:
        pass


_ALWAYS = _Always()
# The stream says something every two seconds; a replica that is silent for so long is gone.
_SILENCE_S = 10.0


class Asking:
    """A ``Fetch`` (load_reports.base). ``tls_name``: what the replica's certificate must be for, None for its host.

    ``headers``: more of them for each page and small call.
    """

    def __init__(
        self,
        wire: Wire,
        url: str,
        tls_name: str | None,
        timeout_s: float,
        token: SecretStr | None,
        clock: Callable[[], float],
        headers: Headers = (),
    ) -> None:
        parts = urlsplit(url)
        self._wire = wire
        self._origin = Origin.from_url(url, tls_name)
        self._authority = parts.netloc.encode("ascii")
        self._prefix = parts.path.rstrip("/").encode("ascii")
        self._timeout_s = timeout_s
        self._token = token
        self._clock = clock
        self._headers = headers
        self._others: set[Origin] = set()

    def forget(self) -> None:
        """The replica is gone: let go of connections to its other ports, which nobody else will."""
        for origin in self._others:
            self._wire.forget(origin)

    async def __call__(self, path: str, *, port: int | None = None, accept: str = "*/*") -> Page:
        """One page, read whole."""
        return await self.call("GET", path, headers=[(b"Accept", accept.encode("ascii"))], port=port)

    async def call(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        headers: Headers = (),
        port: int | None = None,
        timeout_s: float | None = None,
    ) -> Page:
        """A small call, its answer read whole. Raises NoAnswer."""
        began = self._clock()
        within_s = self._timeout_s if timeout_s is None else timeout_s
        origin = self._origin
        if port is not None and port != origin.port:
            origin = replace(origin, port=port)
            self._others.add(origin)
        chunks: list[bytes] = []
        size = 0
        try:
            with anyio.fail_after(within_s):
                sent = [*self._headers, *headers]
                if body:
                    sent.append((b"Content-Type", b"application/json"))
                    sent.append((b"Content-Length", b"%d" % len(body)))
                answer = await self._open(origin, path, sent, within_s, method, body)
                try:
                    async for chunk in answer:
                        chunks.append(chunk)
                        if (size := size + len(chunk)) > MOST_BYTES:
                            raise NoAnswer(f"{path}: longer than {MOST_BYTES} bytes")
                finally:
                    await answer.aclose()
        except WireError as error:
            raise NoAnswer(f"{path}: {error}", refused=error.kind.never_sent) from error
        except TimeoutError:
            raise NoAnswer(f"{path}: not there within {within_s:g} s") from None
        found = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        return Page(answer.status, found, b"".join(chunks), self._clock() - began)

    async def stream(self, client: str, last_id: str | None) -> WireAnswer:
        """The load stream, to be read and closed. Raises NotThere if the replica has none, Forbidden, NoAnswer."""
        headers = [(b"Accept", b"text/event-stream"), (CLIENT_HEADER, client.encode("ascii"))]
        if last_id is not None:
            headers.append((b"Last-Event-ID", last_id.encode("latin-1", "replace")))
        if self._token is not None:
            headers.append((b"Authorization", f"Bearer {self._token.get_secret_value()}".encode()))
        try:
            answer = await self._open(self._origin, PATH, headers, _SILENCE_S)
        except WireError as error:
            raise NoAnswer(f"{PATH}: {error}", refused=error.kind.never_sent) from error
        kind = next((value for name, value in answer.headers if name.lower() == b"content-type"), b"")
        if answer.status == 200 and kind.lower().startswith(b"text/event-stream"):
            return answer
        await answer.aclose()
        if answer.status in (401, 403):
            raise Forbidden(f"{PATH}: status {answer.status}; is load_reports.token right?")
        if answer.status >= 500 or answer.status == 429:
            raise NoAnswer(f"{PATH}: status {answer.status}")
        raise NotThere(f"{PATH}: status {answer.status}")

    async def _open(
        self,
        origin: Origin,
        path: str,
        headers: Headers,
        read_s: float,
        method: str = "GET",
        body: bytes = b"",
    ) -> WireAnswer:
        authority = self._authority
        if origin != self._origin:
            host = b"[%b]" % origin.host if b":" in origin.host else origin.host
            authority = b"%b:%d" % (host, origin.port)
        return await self._wire.open(
            origin,
            WireRequest(
                method=method.encode("ascii"),
                target=self._prefix + path.encode("ascii"),
                headers=[(b"Host", authority), (b"Accept-Encoding", b"identity"), *headers],
                body=body,
                timeouts=Timeouts(self._timeout_s, read_s, self._timeout_s),
                extensions={},
                resending=_ALWAYS,
            ),
        )
