"""Ends TLS before a plain server on loopback, byte for byte."""

from __future__ import annotations

import select
import socket
import ssl
import threading
from types import TracebackType
from typing import Self


class TlsFront:
    """Listens with ``context`` and passes on to ``upstream`` (host:port). A context manager."""

    def __init__(self, context: ssl.SSLContext, upstream: str) -> None:
        host, _, port = upstream.partition(":")
        self._context = context
        self._upstream = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._connections: list[threading.Thread] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._thread, *self._connections):
            thread.join(10)

    def _accept(self) -> None:
        while True:
            try:
                raw, _ = self._listener.accept()
            except OSError:
                return
            connection = threading.Thread(target=self._serve, args=(raw,), daemon=True)
            self._connections.append(connection)
            connection.start()

    def _serve(self, raw: socket.socket) -> None:
        with raw:
            try:
                with self._context.wrap_socket(raw, server_side=True) as tls:
                    with socket.create_connection(self._upstream) as upstream:
                        _pass_on(tls, upstream)
            except OSError:
                return


def _pass_on(tls: ssl.SSLSocket, upstream: socket.socket) -> None:
    while True:
        ready = [tls] if tls.pending() else select.select([tls, upstream], [], [])[0]
        for here, there in ((tls, upstream), (upstream, tls)):
            if here in ready:
                if not (data := here.recv(65536)):
                    return
                there.sendall(data)
