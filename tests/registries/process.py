"""A server process that a test owns."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import tempfile
from collections.abc import Sequence

from .packages import Program


class Owned:
    """Starts, kills and starts again one program; its output is kept for when it fails."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process

    def spawn(self, arguments: Sequence[str]) -> None:
        assert self._process is None
        self._process = subprocess.Popen(
            [str(self._program.path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self._program.environment},
        )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-2000:]

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it without warning."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        self._log.close()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that were free a moment ago, for both TCP and UDP.

    Below those that systems give to outgoing connections, one of which could take it while its server restarts.
    """
    held: list[socket.socket] = []
    ports: list[int] = []
    try:
        while len(ports) < count:
            tcp, udp = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
            held += [tcp, udp]
            place = "127.0.0.1", random.randrange(20_000, 32_000)
            try:
                tcp.bind(place)
                udp.bind(place)
            except OSError:
                continue
            ports.append(tcp.getsockname()[1])
    finally:
        for each in held:
            each.close()
    return ports
