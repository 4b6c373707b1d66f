"""The wire's one exception, and httpcore's translated into it."""

from __future__ import annotations

from collections.abc import Mapping

import h11
import httpcore

from mlbalance_client.errors import FailureKind


class WireError(Exception):
    """An exchange failed. ``kind`` says where; what never stood a connection was never sent."""

    def __init__(self, kind: FailureKind, detail: str) -> None:
        super().__init__(detail or kind.value)
        self.kind = kind

    @property
    def sent(self) -> bool:
        """Whether the replica may have seen the request."""
        return not self.kind.never_sent


_KINDS: tuple[tuple[type[Exception], FailureKind], ...] = (
    (httpcore.ConnectTimeout, FailureKind.CONNECT_TIMEOUT),
    (httpcore.ConnectError, FailureKind.CONNECT),
    (httpcore.ReadTimeout, FailureKind.READ_TIMEOUT),
    (httpcore.ReadError, FailureKind.READ),
    (httpcore.WriteTimeout, FailureKind.WRITE_TIMEOUT),
    (httpcore.WriteError, FailureKind.WRITE),
    (httpcore.LocalProtocolError, FailureKind.REQUEST),
    (h11.LocalProtocolError, FailureKind.REQUEST),
)

# Where httpcore's own speak of cancel scopes, or quote a header, which may hold a secret.
_OWN_WORDS = {
    FailureKind.CONNECT_TIMEOUT: "no connection within",
    FailureKind.READ_TIMEOUT: "nothing came within",
    FailureKind.WRITE_TIMEOUT: "the request was not taken in within",
    FailureKind.REQUEST: "a header's name or value, or the body's length, is not one that HTTP can carry",
}

# What httpcore lets through: its own errors, and others' where it maps none (a closed stream, a body of wrong length).
EXPECTED = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    h11.LocalProtocolError,
    OSError,
)


def translate(error: Exception, allowed: Mapping[FailureKind, str]) -> WireError:
    """The wire's form of an error that came out of httpcore. ``allowed``: how long it might take, in words."""
    kind = next((kind for known, kind in _KINDS if isinstance(error, known)), FailureKind.PROTOCOL)
    if isinstance(cause := error.__cause__, TimeoutError) and cause.errno is not None:
        return WireError(kind, _words(error))  # the system's own patience has ended, not ours
    said = _OWN_WORDS.get(kind)
    if said is None:
        return WireError(kind, _words(error) or type(error).__name__)
    return WireError(kind, f"{said} {allowed[kind]}" if kind in allowed else said)


def _words(error: BaseException | None) -> str:
    """What the cause says that lies deepest: above a refused connection it is only said that all attempts failed."""
    said = ""
    while error is not None:
        said = str(error) or said
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        else:
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return said
