"""Passes bytes on between clients and an HTTP server on loopback, and counts what is asked and answered."""

from __future__ import annotations

import socket
import threading
from types import TracebackType
from typing import Self


class Counting:
    """Before ``upstream`` (host:port). A context manager. ``marker``: how the requests begin that count."""

    def __init__(self, upstream: str, marker: bytes) -> None:
        host, _, port = upstream.partition(":")
        self._upstream = host, int(port)
        self._marker = marker
        self._changed = threading.Condition()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._asked = self._answered = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    @property
    def counts(self) -> tuple[int, int]:
        """What was asked and what was answered so far."""
        with self._changed:
            return self._asked, self._answered

    def wait_asked(self, count: int) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._asked >= count, 20)

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._threads[0].join(10)
        for each in self._sockets:
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        for thread in self._threads[1:]:
            thread.join(10)
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._upstream)
            self._sockets += [client, server]
            for pair in ((client, server, True), (server, client, False)):
                thread = threading.Thread(target=self._pass_on, args=pair, daemon=True)
                self._threads.append(thread)
                thread.start()

    def _pass_on(self, here: socket.socket, there: socket.socket, asking: bool) -> None:
        try:
            while data := here.recv(65536):
                with self._changed:
                    if asking:
                        self._asked += data.startswith(self._marker)
                    else:
                        self._answered += data.startswith(b"HTTP/1.1 200")
                    self._changed.notify_all()
                there.sendall(data)
            there.shutdown(socket.SHUT_WR)
        except OSError:
            pass
