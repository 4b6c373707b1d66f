"""The wire's one exception, and httpcore's translated into it."""

from __future__ import annotations

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

# What httpcore lets through: its own errors, and others' where it maps none (a closed stream, a body of wrong length).
EXPECTED = (
    httpcore.TimeoutException,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    h11.LocalProtocolError,
    OSError,
)


def translate(error: Exception) -> WireError:
    """The wire's form of an error that came out of httpcore."""
    kind = next((kind for known, kind in _KINDS if isinstance(error, known)), FailureKind.PROTOCOL)
    return WireError(kind, _words(error) or type(error).__name__)


def _words(error: BaseException | None) -> str:
    """What the first error says that says anything: on trio that a certificate is bad lies three causes deep."""
    while error is not None:
        if said := str(error):
            return said
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""
