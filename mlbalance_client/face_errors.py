"""Our errors as either library's users expect them.

``library`` is always the module ``httpx`` or ``httpx2``; nothing here imports either.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from . import errors
from .errors import BalancerError, FailureKind


def synthesised(error: BalancerError) -> dict[str, Any] | None:
    """A 503 that tells an SDK not to retry what we have tried already; None if the error should be raised.

    The caller's own timeouts stay timeouts.
    """
    if isinstance(error, errors.AttemptsExhausted):
        if error.kind.by_caller:
            return None
    elif not isinstance(error, errors.NoReplicas | errors.NoCapacity | errors.QueueTimeout):
        return None
    retry_after_s = getattr(error, "retry_after_s", None) or 1.0
    return {
        "status_code": 503,
        "headers": {"x-should-retry": "false", "retry-after": f"{ceil(retry_after_s)}"},
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
            FailureKind.FIRST_CONTENT_TIMEOUT: library.ReadTimeout,
            FailureKind.SILENT: library.ReadTimeout,
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
            errors.ClientClosed: _join(errors.ClientClosed, library.ReadError),
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
    own = {"__module__": ours.__module__, "__doc__": ours.__doc__, "neutral": ours}
    return type(ours.__name__, (ours, theirs), own)
