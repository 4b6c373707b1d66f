"""Every public error can go to another process and be raised there as what it is."""

from __future__ import annotations

import inspect
import pickle

import httpx
import httpx2
import pytest

from mlbalance_client import errors
from mlbalance_client.errors import AttemptReport, BalancerError, FailureKind
from mlbalance_client.face import ErrorTable

REPORT = AttemptReport(1, "a", "http://a", 0.0, 1.0, None, FailureKind.READ, "reset")
MADE = {
    errors.AttemptsExhausted: lambda: errors.AttemptsExhausted([REPORT]),
    errors.StreamInterrupted: lambda: errors.StreamInterrupted(
        "broke", bytes_delivered=3, kind=FailureKind.READ
    ),
    errors.NoCapacity: lambda: errors.NoCapacity("full", retry_after_s=2.0),
}
PUBLIC = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BalancerError)]


@pytest.mark.parametrize("kind", PUBLIC)
@pytest.mark.parametrize("library", [None, httpx, httpx2])
def test_errors_can_be_pickled(kind: type[BalancerError], library: object) -> None:
    error = MADE.get(kind, lambda: kind("said"))()
    sent = error if library is None else ErrorTable(library).translate(error, httpx.Request("GET", "/"))

    arrived = pickle.loads(pickle.dumps(sent))

    assert type(arrived) is kind
    assert (str(arrived), arrived.__dict__) == (str(error), error.__dict__)
