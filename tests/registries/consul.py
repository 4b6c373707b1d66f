"""A real Consul agent on loopback, in dev mode: nothing outlives the process."""

from __future__ import annotations

import json
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..conftest import eventually
from .packages import Program
from .process import Owned, free_ports

MASTER = "11111111-2222-3333-4444-555555555555"
_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Consul:
    """One agent. A context manager; the port stays the same through restarts. ``acl``: deny by default."""

    def __init__(self, program: Program, *, acl: bool = False) -> None:
        self._owned = Owned(program)
        self._folder = tempfile.TemporaryDirectory()
        self._acl = acl
        self._ports = free_ports(3)
        self._policies = 0
        self._policy_of: dict[str, dict[str, Any]] = {}

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._ports[0]}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owned.close()
        self._folder.cleanup()

    def start(self) -> None:
        http, serf, server = self._ports
        options = {
            "bind": "127.0.0.1",
            "client": "127.0.0.1",
            "http-port": http,
            "grpc-port": -1,
            "dns-port": -1,
            "serf-lan-port": serf,
            "serf-wan-port": -1,
            "server-port": server,
            "node": "node-1",
        }
        arguments = [f"-{key}={value}" for key, value in options.items()]
        if self._acl:
            config = Path(self._folder.name, "acl.json")
            rules = {"enabled": True, "default_policy": "deny", "tokens": {"master": MASTER}}
            config.write_text(json.dumps({"acl": rules}))
            arguments.append(f"-config-file={config}")
        self._owned.spawn(["agent", "-dev", "-disable-host-node-id", *arguments])
        assert eventually(self._leads), self._owned.said()

    def kill(self) -> None:
        self._owned.kill()

    def register(self, id_: str, address: str, *, check: str | None = None, **more: Any) -> None:
        """Register an instance of ``llm``; ``check``: passing, warning or critical, of a check named ``check:ID``."""
        host, _, port = address.partition(":")
        body: dict[str, Any] = {"ID": id_, "Name": "llm", "Address": host, "Port": int(port), **more}
        if check is not None:
            body["Check"] = {"CheckID": f"check:{id_}", "Name": f"ping {id_}", "TTL": "1h", "Status": check}
        self.put("agent/service/register", body)

    def deregister(self, id_: str) -> None:
        self.put(f"agent/service/deregister/{id_}")

    def set_check(self, id_: str, status: str) -> None:
        self.put(f"agent/check/update/check:{id_}", {"Status": status})

    def maintain(self, id_: str, on: bool, reason: str = "upgrade") -> None:
        self.put(f"agent/service/maintenance/{id_}?enable={str(on).lower()}&reason={reason}")

    def change(self, *, add: dict[str, str], remove: Iterable[str] = ()) -> None:
        """Change instances of a node without an agent, in as few steps as Consul takes: 60 in one, none seen apart."""
        node = {"Node": {"Verb": "set", "Node": {"Node": "outside", "Address": "127.0.0.1"}}}
        values: list[tuple[str, dict[str, Any]]] = [
            ("delete", {"ID": id_, "Service": "llm"}) for id_ in remove
        ]
        for id_, address in add.items():
            host, _, port = address.partition(":")
            values.append(("set", {"ID": id_, "Service": "llm", "Address": host, "Port": int(port)}))
        operations = [
            {"Service": {"Verb": verb, "Node": "outside", "Service": value}} for verb, value in values
        ]
        for start in range(0, len(operations), 60):
            self.put("txn", [node, *operations[start : start + 60]])

    def token(self, rules: str) -> tuple[str, str]:
        """A new token with these rules, in a policy of its own: its accessor and its secret."""
        self._policies += 1
        policy = self.put("acl/policy", {"Name": f"policy-{self._policies}", "Rules": rules})
        made = self.put("acl/token", {"Policies": [{"ID": policy["ID"]}]})
        self._policy_of[made["AccessorID"]] = policy
        return made["AccessorID"], made["SecretID"]

    def set_rules(self, accessor: str, rules: str) -> None:
        """Change what a token may do."""
        policy = self._policy_of[accessor]
        self.put(f"acl/policy/{policy['ID']}", {**policy, "Rules": rules})

    def revoke(self, accessor: str) -> None:
        self.call("DELETE", f"acl/token/{accessor}")

    def put(self, path: str, body: Any = None) -> Any:
        return self.call("PUT", path, body)

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://{self.address}/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"X-Consul-Token": MASTER} if self._acl else {},
        )
        with _NO_PROXY.open(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text.strip() else None

    def _leads(self) -> bool:
        assert self._owned.runs, self._owned.said()
        try:
            if not self.call("GET", "status/leader"):
                return False
            if self._acl:
                self.call("GET", "acl/token/self")
            return bool(self.call("GET", "catalog/nodes"))
        except (OSError, ValueError):
            return False
