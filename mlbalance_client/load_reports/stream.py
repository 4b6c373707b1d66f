"""The client's side of the load stream (design, section 6): bytes in, reports and prefix deltas out. No I/O."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from mlbalance_client.core.load.format import LoadFormatError, PrefixDelta, decode_load, decode_prefixes
from mlbalance_client.core.load.prefix_delta import Hashing
from mlbalance_client.core.load.report import LoadReport
from mlbalance_client.core.sse import EventReader

from .base import ReportError

PATH = "/mlbalance/v1/load"
CLIENT_HEADER = b"x-mlbalance-client"
CALL_HEADER = b"x-mlbalance-call"

_MOST_EVENT_BYTES = 2 << 20
_LONGEST_ID = 20
# What a second may cost, an event counting 1: no honest replica sends 20 in a second.
_MOST_COST_PER_S = 200.0
_COST_PER_BYTE = 1e-4
_COST_OF_RESET = 100.0


class StreamReader:
    """Reads one connection's events. ``client``: whose ``acked`` is meant; ``hashing``: that which means something.

    Malformed events are dropped and counted in ``malformed``; ``doubt`` says what was wrong with the first.
    """

    def __init__(self, client: str, hashing: Hashing) -> None:
        self._events = EventReader()
        self._client = client
        self._hashing = hashing
        self._pending = 0
        self._window_at = float("-inf")
        self._cost = 0.0
        self.malformed = 0
        self.doubt: str | None = None

    @property
    def last_id(self) -> str | None:
        """The place in the stream, for coming back to it; what is no number came from no reporter of ours."""
        last = self._events.last_id
        return last if last and len(last) <= _LONGEST_ID and last.isascii() and last.isdigit() else None

    def feed(self, chunk: bytes, at: float) -> Iterator[LoadReport | PrefixDelta]:
        """What ``chunk`` completes; ask ``flooded`` after each. Raises ReportError for an event without end."""
        self._pending += len(chunk)
        for kind, data in self._events.feed(chunk):
            self._pending = 0
            self._cost += 1.0 + len(data) * _COST_PER_BYTE
            try:
                found = self._event(kind, data, at)
            except LoadFormatError as error:
                self.malformed += 1
                self.doubt = self.doubt or f"event {kind!r:.20}: {error!s:.200}"
            else:
                if found is not None:
                    yield found
        if self._pending > _MOST_EVENT_BYTES:
            raise ReportError(f"{PATH}: an event of more than {_MOST_EVENT_BYTES} bytes")

    def flooded(self, now: float) -> bool:
        """Whether there was more within a second than anybody needs."""
        if now - self._window_at >= 1.0:
            self._window_at, self._cost = now, 0.0
        return self._cost > _MOST_COST_PER_S

    def _event(self, kind: str, data: bytes, at: float) -> LoadReport | PrefixDelta | None:
        match kind:
            case "load":
                report = decode_load(data, at=at, client=self._client)
                # It names the calls of this client that it counts in, so that naming none is counting none.
                return replace(report, pushed=True, acked=report.acked or 0)
            case "prefixes":
                delta = decode_prefixes(data)
                theirs, ours = delta.hashing, self._hashing
                if theirs.scheme != ours.scheme:
                    raise LoadFormatError(
                        f"hashes of scheme {theirs.scheme!r}, where this client's are {ours.scheme!r}"
                    )
                if theirs.by_another_key(ours):
                    raise LoadFormatError(
                        "hashes by another secret than this client's picking.fingerprint_secret"
                    )
                self._cost += _COST_OF_RESET if delta.reset else 0.0
                return delta
            case _:
                return None
