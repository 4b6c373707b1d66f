"""The client's side of the load stream (design, section 6): bytes in, reports and prefix deltas out. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from mlbalance_client.core.load_format import LoadFormatError, PrefixDelta, decode_load, decode_prefixes
from mlbalance_client.core.load_report import LoadReport
from mlbalance_client.core.sse import EventReader

from .base import ReportError

PATH = "/mlbalance/v1/load"
CLIENT_HEADER = b"x-mlbalance-client"
CALL_HEADER = b"x-mlbalance-call"

_MOST_EVENT_BYTES = 2 << 20
_MOST_EVENTS_PER_S = 200


class StreamReader:
    """Reads one connection's events. ``client``: whose ``acked`` is meant; ``scheme``: the hashes that mean something.

    Malformed events are dropped and counted in ``malformed``; ``doubt`` says what was wrong with the first.
    """

    def __init__(self, client: str, scheme: str) -> None:
        self._events = EventReader()
        self._client = client
        self._scheme = scheme
        self._pending = 0
        self._window_at = float("-inf")
        self._in_window = 0
        self.malformed = 0
        self.doubt: str | None = None

    @property
    def last_id(self) -> str | None:
        """The place in the stream, for coming back to it."""
        return self._events.last_id

    def feed(self, chunk: bytes, at: float) -> Iterator[LoadReport | PrefixDelta]:
        """What ``chunk`` completes. Raises ReportError for an event without end."""
        self._pending += len(chunk)
        for kind, data in self._events.feed(chunk):
            self._pending = 0
            self._in_window += 1
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
        """Whether there were more events within a second than anybody needs."""
        if now - self._window_at >= 1.0:
            self._window_at, self._in_window = now, 0
        return self._in_window > _MOST_EVENTS_PER_S

    def _event(self, kind: str, data: bytes, at: float) -> LoadReport | PrefixDelta | None:
        match kind:
            case "load":
                return decode_load(data, at=at, client=self._client)
            case "prefixes":
                delta = decode_prefixes(data)
                if delta.scheme != self._scheme:
                    raise LoadFormatError(
                        f"hashes of scheme {delta.scheme!r}, where this client's are {self._scheme!r}"
                    )
                return delta
            case _:
                return None
