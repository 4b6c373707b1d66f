"""Which of a client's calls are counted in: the greatest number of each client, for the most recent clients."""

from __future__ import annotations

import re
from collections import OrderedDict

_NAME = re.compile(r"[0-9A-Za-z_-]{1,64}\Z")
_CALL = re.compile(r"([0-9A-Za-z_-]{1,64})\.([0-9]{1,15})\Z")
_MOST_CLIENTS = 4096


def client_name(text: str) -> str | None:
    """A client's name as it is, or None if it cannot be one."""
    return text if _NAME.match(text) else None


class _Client:
    __slots__ = ("before", "calls", "newest", "seq")

    def __init__(self) -> None:
        self.newest = self.before = -1
        self.seq = -1
        self.calls = 0


class Acks:
    """``seq`` is that of the last report made: a call is counted in reports after it only."""

    def __init__(self, most_clients: int = _MOST_CLIENTS) -> None:
        self._clients: OrderedDict[str, _Client] = OrderedDict()
        self._most = most_clients

    def __len__(self) -> int:
        return len(self._clients)

    def count(self, call_id: str, seq: int) -> str | None:
        """Note a call by its ``<client>.<n>``; the client's name, or None if that is not one."""
        if (found := _CALL.match(call_id)) is None:
            return None
        name, number = found[1], int(found[2])
        client = self._clients.get(name)
        if client is None:
            client = self._clients[name] = _Client()
            if len(self._clients) > self._most:
                self._clients.popitem(last=False)
        else:
            self._clients.move_to_end(name)
        if client.seq != seq:
            client.before, client.seq = client.newest, seq
        client.newest = max(client.newest, number)
        client.calls += 1
        return name

    def acked(self, name: str | None, seq: int) -> int | None:
        """The greatest number of the client that report ``seq`` counts in."""
        client = self._clients.get(name) if name is not None else None
        if client is None:
            return None
        number = client.newest if client.seq < seq else client.before
        return number if number >= 0 else None

    def calls_since(self, name: str | None) -> int:
        """How many calls of the client came since this was asked last."""
        client = self._clients.get(name) if name is not None else None
        if client is None:
            return 0
        calls, client.calls = client.calls, 0
        return calls
