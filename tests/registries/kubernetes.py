"""A fake of the Kubernetes API's list and watch for EndpointSlices, made after its documentation, not recorded.

Versions count up over all objects; watches get what came after their version, bookmarks when told, and 410 once
history was compacted. Lists come in pages. A bearer token is demanded.
"""

from __future__ import annotations

import json
import threading
from copy import deepcopy
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from ..scripted import Exchange, Scripted

TOKEN = "service-account-token"
PATH = "/apis/discovery.k8s.io/v1/namespaces/team/endpointslices"
SELECTOR = "kubernetes.io/service-name=llm"


def endpoint(
    name: str, address: str, *, zone: str = "zone-a", hint: str | None = None, **conditions: bool
) -> dict[str, Any]:
    """One as the controller writes it for a pod."""
    made: dict[str, Any] = {
        "addresses": [address],
        "conditions": {"ready": True, "serving": True, "terminating": False, **conditions},
        "nodeName": "node-1",
        "targetRef": {"kind": "Pod", "namespace": "team", "name": name, "uid": f"uid-of-{name}"},
        "zone": zone,
    }
    if hint is not None:
        made["hints"] = {"forZones": [{"name": hint}]}
    return made


def endpoint_slice(
    name: str, endpoints: list[dict[str, Any]], port: int, *, family: str = "IPv4", port_name: str = "http"
) -> dict[str, Any]:
    """One as the controller writes it."""
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": {
            "name": name,
            "generateName": "llm-",
            "namespace": "team",
            "uid": f"uid-of-{name}",
            "generation": 1,
            "labels": {
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": "llm",
            },
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
    }


class Api:
    """The server. A context manager; its objects may be changed at any time."""

    def __init__(self, *, page: int = 2) -> None:
        self._changed = threading.Condition()
        self._version = 100
        self._history: list[tuple[int, str, dict[str, Any]]] = []
        self._compacted = 0
        self._slices: dict[str, dict[str, Any]] = {}
        self._page = page
        self._cut = 0
        self.token = TOKEN
        self.lists = 0
        self.watched_from: list[str] = []
        self.server = Scripted(self._serve)

    @property
    def address(self) -> str:
        return f"http://{self.server.address}"

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()
        self.server.__exit__(None, None, None)

    def put(self, item: dict[str, Any]) -> None:
        with self._changed:
            kind = "MODIFIED" if item["metadata"]["name"] in self._slices else "ADDED"
            self._record(kind, item)

    def delete(self, name: str) -> None:
        with self._changed:
            self._record("DELETED", self._slices[name])

    def bookmark(self) -> None:
        """Other objects move the version on; watches are told."""
        with self._changed:
            self._version += 50
            item = {
                "kind": "EndpointSlice",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": {"creationTimestamp": None},
            }
            self._append("BOOKMARK", item)

    def compact(self) -> None:
        """Forget all history: watches from before are told that they are too old."""
        with self._changed:
            self._version += 1
            self._compacted = self._version
            self._history.clear()
            self._changed.notify_all()

    def send(self, line: bytes) -> None:
        """Let all watches say something of no kind."""
        with self._changed:
            self._version += 1
            self._history.append((self._version, "raw", {"line": line.decode("latin-1")}))
            self._changed.notify_all()

    def cut(self) -> None:
        """Break all watches."""
        with self._changed:
            self._cut += 1
            self._changed.notify_all()

    def _record(self, kind: str, item: dict[str, Any]) -> None:
        self._version += 1
        made = deepcopy(item)
        made["metadata"]["resourceVersion"] = str(self._version)
        if kind == "DELETED":
            del self._slices[made["metadata"]["name"]]
        else:
            self._slices[made["metadata"]["name"]] = made
        self._history.append((self._version, kind, made))
        self._changed.notify_all()

    def _append(self, kind: str, item: dict[str, Any]) -> None:
        item["metadata"]["resourceVersion"] = str(self._version)
        self._history.append((self._version, kind, item))
        self._changed.notify_all()

    def _serve(self, exchange: Exchange) -> None:
        cut = self._cut  # before the token is looked at: who came in with the old one is cut too
        url = urlsplit(exchange.path)
        asked = {key: values[0] for key, values in parse_qs(url.query).items()}
        if exchange.header("authorization") != f"Bearer {self.token}":
            exchange.answer(401, status(401, "Unauthorized", "Unauthorized"))
        elif url.path != PATH or asked.get("labelSelector") != SELECTOR:
            exchange.answer(403, status(403, "Forbidden", "endpointslices.discovery.k8s.io is forbidden"))
        elif asked.get("watch") == "true":
            self._watch(exchange, asked, cut)
        else:
            self._list(exchange, asked)

    def _list(self, exchange: Exchange, asked: dict[str, str]) -> None:
        self.lists += 1
        with self._changed:
            start = int(asked.get("continue", 0))
            items = list(self._slices.values())[start : start + self._page]
            metadata = {"resourceVersion": str(self._version)}
            if start + self._page < len(self._slices):
                metadata["continue"] = str(start + self._page)
        exchange.answer(
            200,
            {
                "kind": "EndpointSliceList",
                "apiVersion": "discovery.k8s.io/v1",
                "metadata": metadata,
                "items": items,
            },
        )

    def _watch(self, exchange: Exchange, asked: dict[str, str], cut: int) -> None:
        version = int(asked["resourceVersion"])
        self.watched_from.append(asked["resourceVersion"])
        exchange.start_stream()
        while True:
            with self._changed:
                while (
                    not (news := [h for h in self._history if h[0] > version]) and version >= self._compacted
                ):
                    if self._cut != cut:
                        exchange.reset()
                        return
                    self._changed.wait(5)
                expired = version < self._compacted
            if expired:
                gone = status(410, "Expired", f"too old resource version: {version} ({self._compacted})")
                exchange.chunk(json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
                exchange.end_stream()
                return
            version = news[-1][0]
            for _, kind, item in news:
                line = (
                    item["line"].encode("latin-1")
                    if kind == "raw"
                    else json.dumps({"type": kind, "object": item}).encode()
                )
                exchange.chunk(line[:20])
                exchange.chunk(line[20:] + b"\n")


def status(code: int, reason: str, message: str) -> dict[str, Any]:
    """An error as the API tells it."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
