"""A name server in a thread, for answers that dnsmasq does not give: chosen failures, and any bytes at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

import dns.exception
import dns.message
import dns.rcode

Respond = Callable[[dns.message.Message], bytes]


def failing(rcode: int) -> Respond:
    """Answer everything with one code."""

    def respond(query: dns.message.Message) -> bytes:
        response = dns.message.make_response(query)
        response.set_rcode(rcode)
        return response.to_wire()

    return respond


class NameServer:
    """Answers over UDP on loopback. A context manager; ``respond`` may be changed at any time."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.asked = 0
        self._socket = socket.socket(type=socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as end:
            end.sendto(b"end", self._socket.getsockname())
        self._thread.join(10)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            data, client = self._socket.recvfrom(65535)
            if data == b"end":
                return
            try:
                query = dns.message.from_wire(data)
            except dns.exception.DNSException:
                continue
            self.asked += 1
            self._socket.sendto(self.respond(query), client)
