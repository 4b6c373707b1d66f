"""The conformance suite against this plugin: pip install . and pytest are all it needs."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mlbalance_client.testing import DiscoveryConformance


class Server:
    """A registry that the suite can change and break."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if outer.works else 500)
                self.end_headers()
                self.wfile.write(json.dumps(outer.replicas).encode())

            def log_message(self, *_: Any) -> None:
                pass

        self.replicas: dict[str, str] = {}
        self.works = True
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Server:  # noqa: PYI034
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def config(self) -> dict[str, Any]:
        port = self._server.server_address[1]
        return {"kind": "weblist", "url": f"http://127.0.0.1:{port}/replicas.json", "poll_s": 0.02}

    def register(self, replicas: Mapping[str, str]) -> None:
        self.replicas = dict(replicas)

    def fail(self) -> None:
        self.works = False

    def mend(self) -> None:
        self.works = True


class TestWebList(DiscoveryConformance):
    def registry(self) -> Server:
        return Server()
