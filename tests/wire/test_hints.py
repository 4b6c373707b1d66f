"""Retry-After in all its forms, and in none."""

import pytest

from mlbalance_client.wire import read_hints

NOW = 1_700_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        ([(b"Retry-After", b"3")], 3.0),
        ([(b"retry-after", b"0.5")], 0.5),
        ([(b"Retry-After", b"Tue, 14 Nov 2023 22:13:30 GMT")], 10.0),
        ([(b"Retry-After", b"Thu, 01 Jan 1970 00:00:00 GMT")], 0.0),
        ([(b"Retry-After-Ms", b"250"), (b"Retry-After", b"9")], 0.25),
        ([(b"Retry-After-Ms", b"soon"), (b"Retry-After", b"9")], 9.0),
        ([(b"Retry-After", b"1e99")], 1e99),
        ([(b"Retry-After", b"nan")], None),
        ([(b"Retry-After", b"-1")], None),
        ([(b"Retry-After", b"inf")], None),
        ([(b"Retry-After", b"\xff\x00")], None),
        ([(b"Retry-After", b"Tue, 99 Nov 99999 22:13:30 GMT")], None),
    ],
)
def test_what_it_says(headers: list[tuple[bytes, bytes]], seconds: float | None) -> None:
    assert read_hints(headers, NOW).after_s == seconds
