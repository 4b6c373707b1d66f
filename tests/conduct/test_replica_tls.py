"""TLS to replicas that discovery names by address: verified by the name that the user gave, or nothing is sent."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trustme

import mlbalance_client as mlb
from mlbalance_client.events import ReplicasChanged

from ..discovery.test_discovery_dns import NAME, answering
from ..registries.nameserver import NameServer
from ..scripted import Exchange, Scripted
from ..tls_front import TlsFront

pytestmark = pytest.mark.anyio


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def plain() -> Iterator[Scripted]:
    with Scripted(Exchange.answer) as server:
        yield server


@pytest.fixture
def front(authority: trustme.CA, plain: Scripted) -> Iterator[TlsFront]:
    """Has a certificate for llm.test, and no other."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("llm.test").configure_cert(context)
    with TlsFront(context, plain.address) as running:
        yield running


async def get(authority: trustme.CA, discovery: dict[str, Any]) -> int:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    headers = {"Authorization": "Bearer key"}
    config = mlb.BalancerConfig(discovery=discovery, load_reports={"kind": "none"})
    async with mlb.AsyncClient(config, verify=trusting, headers=headers) as client:
        return (await client.get("/")).status_code


@pytest.mark.parametrize("name", ["llm.test", None, "other.test"])
async def test_by_the_name_in_a_file(
    authority: trustme.CA, plain: Scripted, front: TlsFront, tmp_path: Path, name: str | None
) -> None:
    table = {"url": f"https://{front.address}", **({"tls_server_name": name} if name else {})}
    (tmp_path / "fleet.json").write_text(json.dumps([table]))
    discovery = {"kind": "file", "path": str(tmp_path / "fleet.json")}
    if name == "llm.test":
        assert await get(authority, discovery) == 200
    else:
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await get(authority, discovery)
        assert not plain.exchanges


@pytest.mark.parametrize("target", ["llm.test.", "evil.test."])
async def test_by_the_name_that_srv_was_asked_for_and_not_by_what_dns_says(
    authority: trustme.CA, plain: Scripted, front: TlsFront, target: str
) -> None:
    port = front.address.partition(":")[2]
    records = f"{NAME} SRV 0 1 {port} {target}", f"{target} A 127.0.0.1"
    with NameServer(answering(*records)) as server:
        names = {"nameservers": ["127.0.0.1"], "nameserver_port": server.port, "tls": True}
        assert await get(authority, {"kind": "srv", "name": NAME, **names}) == 200
        other = {"kind": "srv", "name": NAME, **names, "tls_server_name": "evil.test"}
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await get(authority, other)
    assert len(plain.exchanges) == 1


async def test_a_connection_that_was_verified_for_another_name_is_not_used(
    authority: trustme.CA, plain: Scripted, front: TlsFront, tmp_path: Path
) -> None:
    path, new = tmp_path / "fleet.json", tmp_path / "new"

    def name(name: str) -> None:
        new.write_text(json.dumps([{"url": f"https://{front.address}", "id": "a", "tls_server_name": name}]))
        new.replace(path)

    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    name("llm.test")
    config = mlb.BalancerConfig(
        discovery={"kind": "file", "path": str(path), "poll_s": 0.02}, load_reports={"kind": "none"}
    )
    async with mlb.AsyncClient(config, verify=trusting) as client:
        changed = anyio.Event()
        assert (await client.get("/")).status_code == 200
        client.subscribe(lambda event: changed.set() if isinstance(event, ReplicasChanged) else None)
        name("other.test")
        with anyio.fail_after(10):
            await changed.wait()
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get("/")
        assert await anyio.to_thread.run_sync(plain.exchanges[0].wait_gone), "the connection is closed"
    assert len(plain.exchanges) == 1


async def test_a_callers_own_name_is_verified_too(
    authority: trustme.CA, plain: Scripted, front: TlsFront
) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    replica = {"url": f"https://{front.address}", "tls_server_name": "llm.test"}
    config = mlb.BalancerConfig(
        discovery={"kind": "static", "replicas": [replica]}, load_reports={"kind": "none"}
    )
    async with mlb.AsyncClient(config, verify=trusting) as client:
        assert (await client.get("/")).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get("/", extensions={"sni_hostname": "other.test"})
        assert (await client.get("/")).status_code == 200
    assert len(plain.exchanges) == 2
    assert plain.connections == 1
