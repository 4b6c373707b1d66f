"""A real name server on loopback. dnsmasq does not re-read SRV records, so a change is a restart, of milliseconds."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.exception
import dns.message
import dns.query

from ..conftest import eventually
from .packages import Program
from .process import Owned, free_ports


class Dnsmasq:
    """Serves ``llm.test``. A context manager; ``port`` stays the same through restarts."""

    def __init__(self, program: Program, ttl_s: int = 1) -> None:
        self._owned = Owned(program)
        self._ttl_s = ttl_s
        self._folder = tempfile.TemporaryDirectory()
        (self.port,) = free_ports(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._owned.close()
        self._folder.cleanup()

    def serve(self, records: Iterable[str], *more: str) -> None:
        """Serve these records, as lines of dnsmasq's configuration, from now on and no others."""
        config = Path(self._folder.name, "dnsmasq.conf")
        lines = [
            "keep-in-foreground",
            "no-resolv",
            "no-hosts",
            f"port={self.port}",
            "listen-address=127.0.0.1",
            "bind-interfaces",
            "pid-file=",
            f"local-ttl={self._ttl_s}",
            "cache-size=0",
            *(more or ("local=/llm.test/",)),
            *records,
        ]
        config.write_text("\n".join(lines) + "\n")
        self.kill()
        self._owned.spawn(["--conf-file=" + str(config), "--user="])
        assert eventually(self._answers), self._owned.said()

    def set_hosts(self, *addresses: str) -> None:
        """Give ``llm.test`` these addresses, without a restart; ``serve`` must have named the file."""
        self.hosts.write_text("".join(f"{address} llm.test\n" for address in addresses))
        if self._owned.runs:
            self._owned.signal(signal.SIGHUP)

    @property
    def hosts(self) -> Path:
        """A file for ``addn-hosts``."""
        return Path(self._folder.name, "hosts")

    def kill(self) -> None:
        self._owned.kill()

    def _answers(self) -> bool:
        assert self._owned.runs, self._owned.said()
        try:
            dns.query.udp(dns.message.make_query("version.bind", "TXT", "CH"), "127.0.0.1", 0.2, self.port)
        except (dns.exception.DNSException, OSError):
            return False
        return True


def srv(
    target: str, port: int, priority: int = 0, weight: int = 1, *, service: str = "_llm._tcp.llm.test"
) -> str:
    """One SRV record."""
    return f"srv-host={service},{target},{port},{priority},{weight}"


def host(name: str, *addresses: str) -> str:
    """A and AAAA records of one name."""
    return f"host-record={name},{','.join(addresses)}"
