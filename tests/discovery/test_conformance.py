"""The suite for plugin authors, held against the kinds that we bring; and that it finds what is wrong."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import dns.rcode
import pytest

from mlbalance_client.core.members.membership import Membership
from mlbalance_client.discovery import make_replica
from mlbalance_client.errors import DiscoveryError
from mlbalance_client.testing import DiscoveryConformance, Registry

from ..registries import packages
from ..registries.conftest import had
from ..registries.consul import Consul
from ..registries.kubernetes import TOKEN, Api, endpoint, endpoint_slice
from ..registries.nameserver import NameServer, failing
from .test_discovery_dns import NAME, answering


class File:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = "[]"
        self.mend()

    def config(self) -> dict[str, Any]:
        return {"kind": "file", "path": str(self.path), "poll_s": 0.02}

    def register(self, replicas: Mapping[str, str]) -> None:
        self.text = json.dumps([{"url": f"http://{address}", "id": id_} for id_, address in replicas.items()])
        self.mend()

    def fail(self) -> None:
        self.path.write_text(self.text[:-1])

    def mend(self) -> None:
        self.path.write_text(self.text)


class TestFile(DiscoveryConformance):
    @contextmanager
    def registry(self) -> Iterator[Registry]:
        with tempfile.TemporaryDirectory() as folder:
            yield File(Path(folder, "replicas.json"))


class Srv(NameServer):
    def __init__(self) -> None:
        self._answer = answering()
        super().__init__(self._answer)

    def config(self) -> dict[str, Any]:
        names = {"nameservers": ["127.0.0.1"], "nameserver_port": self.port, "lookup_timeout_s": 1.0}
        return {"kind": "srv", "name": NAME, "min_refresh_s": 0.02, "max_refresh_s": 0.02, **names}

    def register(self, replicas: Mapping[str, str]) -> None:
        records: list[str] = []
        for id_, address in replicas.items():
            host, _, port = address.partition(":")
            records += [f"{NAME} SRV 0 1 {port} {id_}.test.", f"{id_}.test. A {host}"]
        self._answer = answering(*records, ttl=0)
        self.mend()

    def fail(self) -> None:
        self.respond = failing(dns.rcode.SERVFAIL)

    def mend(self) -> None:
        self.respond = self._answer


class TestSrv(DiscoveryConformance):
    def registry(self) -> AbstractContextManager[Registry]:
        return Srv()


class Kubernetes(Api):
    def config(self) -> dict[str, Any]:
        where = {"namespace": "team", "service": "llm", "address": self.address, "token": TOKEN}
        return {"kind": "k8s", **where}

    def register(self, replicas: Mapping[str, str]) -> None:
        by_port: dict[str, list[Any]] = {f"llm-{n}": [] for n in (1, 2, 3)}
        for id_, address in replicas.items():
            host, _, port = address.partition(":")
            by_port[f"llm-{port}"].append(endpoint(id_, host))
        for name, endpoints in by_port.items():
            self.put(endpoint_slice(name, endpoints, int(name[-1])))

    def fail(self) -> None:
        self.token = "another"
        self.cut()

    def mend(self) -> None:
        self.token = TOKEN


class TestKubernetes(DiscoveryConformance):
    def registry(self) -> AbstractContextManager[Registry]:
        return Kubernetes()


class RealConsul(Consul):
    _known: Mapping[str, str] = {}

    def config(self) -> dict[str, Any]:
        return {"kind": "consul", "service": "llm", "address": self.address}

    def register(self, replicas: Mapping[str, str], *_: Any, **__: Any) -> None:  # type: ignore[override]
        self.change(add=dict(replicas), remove=self._known.keys() - replicas.keys())
        self._known = replicas

    def fail(self) -> None:
        self.kill()

    def mend(self) -> None:
        self.start()
        known, self._known = self._known, {}
        self.register(known)


class TestConsul(DiscoveryConformance):
    within_s = 20.0

    def registry(self) -> AbstractContextManager[Registry]:
        return RealConsul(had(packages.consul))


WITHIN_S = 0.5


class Broken:
    """A source with a fault."""

    def __init__(self, fault: str, registry: File) -> None:
        self._fault = fault
        self._registry = registry
        self._times = 0

    def initial(self) -> None:
        return None

    async def run(self, publish: Any) -> None:
        try:
            await self._run(publish)
        finally:
            if self._fault == "slow to end":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(3 * WITHIN_S)

    async def _run(self, publish: Any) -> None:
        while True:
            self._times += 1
            try:
                found = json.loads(self._registry.path.read_text())
            except ValueError as error:
                if self._fault == "foreign errors":
                    raise
                words = f"failure {self._times}" if self._fault == "new words each time" else "broken"
                raise DiscoveryError(words) from error
            if self._fault == "ids of addresses":
                replicas = [make_replica(item["url"]) for item in found]
            else:
                replicas = [make_replica(item["url"], id=item["id"]) for item in found]
            if self._fault == "only additions":
                replicas = replicas[-1:]
            if replicas or self._fault != "silent when empty":
                publish(Membership(tuple(replicas), "broken"))
            await anyio.sleep(0.01)


@pytest.mark.parametrize(
    ("fault", "test"),
    [
        ("foreign errors", "test_a_failure_is_a_discovery_error_and_passes"),
        ("new words each time", "test_a_failure_is_a_discovery_error_and_passes"),
        ("ids of addresses", "test_a_replica_that_moves_keeps_its_id"),
        ("only additions", "test_it_names_what_is_registered_and_every_change"),
        ("silent when empty", "test_an_empty_registry_is_an_empty_list"),
        ("slow to end", "test_cancelling_ends_it_at_once"),
    ],
)
def test_the_suite_finds_faults(
    fault: str, test: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = File(tmp_path / "replicas.json")

    class Suite(DiscoveryConformance):
        within_s = WITHIN_S

        @contextmanager
        def registry(self) -> Iterator[Registry]:
            registry.register({})
            yield registry

    monkeypatch.setattr(
        "mlbalance_client.testing.discovery.create", lambda config, rng: Broken(fault, registry)
    )
    with pytest.raises((AssertionError, ExceptionGroup)):
        getattr(Suite(), test)()


@pytest.mark.parametrize("name", [name for name in vars(DiscoveryConformance) if name.startswith("test_")])
def test_a_source_without_faults_passes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = File(tmp_path / "replicas.json")

    class Suite(DiscoveryConformance):
        @contextmanager
        def registry(self) -> Iterator[Registry]:
            registry.register({})
            yield registry

    monkeypatch.setattr(
        "mlbalance_client.testing.discovery.create", lambda config, rng: Broken("none", registry)
    )
    getattr(Suite(), name)()
