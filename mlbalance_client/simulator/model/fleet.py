"""Simulated replicas as processes of their own, for as long as a ``with`` block lasts."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import asdict
from types import TracebackType
from typing import Any, Self

from .faults import Faults
from .spec import EngineSpec

_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_END_WITHIN_S = 5.0


class FleetError(RuntimeError):
    """The simulated fleet cannot run."""


class Fleet:
    """``count`` replicas on loopback, at ``urls``. A context manager; ends its processes on every way out.

    ``faults``: one for all, or one each. ``port``: the first one's, the others follow; 0: any free ones.
    ``middleware``: dotted paths of ASGI middlewares around each. ``drain_s``: how long streams may go on after SIGTERM.
    Raises FleetError if the server's packages are missing.
    """

    def __init__(
        self,
        count: int = 8,
        *,
        spec: EngineSpec | None = None,
        faults: Faults | Sequence[Faults] | None = None,
        model: str = "sim",
        emit_interval_s: float = 0.0,
        seed: int = 0,
        port: int = 0,
        middleware: Sequence[str] = (),
        drain_s: int = 1,
    ) -> None:
        if count < 1:
            raise FleetError(f"a fleet needs at least one replica, not {count}")
        for module in ("uvicorn", "httptools"):
            if importlib.util.find_spec(module) is None:
                raise FleetError(
                    f"the simulated fleet needs {module}: install mlbalance-client with the extra [demo]"
                )
        each = list(faults) if isinstance(faults, Sequence) else [faults or Faults()] * count
        if len(each) != count:
            raise FleetError(f"faults for {len(each)} replicas, but there are {count}")
        spec = spec or EngineSpec()
        self.spec = spec
        self._options: list[dict[str, Any]] = [
            {
                "spec": asdict(spec),
                "faults": fault.as_dict(),
                "model": model,
                "emit_interval_s": emit_interval_s,
                "seed": seed + number,
                "port": port + number if port else 0,
                "drain_s": drain_s,
                "middleware": list(middleware),
            }
            for number, fault in enumerate(each)
        ]
        self._processes: list[subprocess.Popen[str] | None] = [None] * count

    def __enter__(self) -> Self:
        try:
            for number in range(len(self._options)):
                self._spawn(number)
            for number in range(len(self._options)):
                self._await_port(number)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def urls(self) -> list[str]:
        """Where the replicas listen."""
        return [f"http://127.0.0.1:{options['port']}" for options in self._options]

    @property
    def target(self) -> str:
        """The fleet as a discovery URL."""
        return "static://" + ",".join(url.removeprefix("http://") for url in self.urls)

    @property
    def pids(self) -> list[int | None]:
        """The replicas' processes; None for one that was killed here."""
        return [None if process is None else process.pid for process in self._processes]

    def state(self, number: int) -> dict[str, Any]:
        """The true state of one replica."""
        return self.control(number, "state")

    def states(self) -> list[dict[str, Any]]:
        """The true state of all."""
        return [self.state(number) for number in range(len(self._options))]

    def set_faults(self, number: int, **faults: Any) -> None:
        """Replace the faults of one replica (see Faults); without any, it is healthy again."""
        self.control(number, "faults", faults)

    def flush(self) -> None:
        """Empty all prefix caches."""
        for number in range(len(self._options)):
            self.control(number, "flush", {})

    def control(self, number: int, what: str, body: Any = None) -> dict[str, Any]:
        """Call a control endpoint of one replica."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.urls[number]}/_sim/{what}", data=data)  # noqa: S310 - own loopback URL
        try:
            with _NO_PROXY.open(request, timeout=10) as answer:
                found: dict[str, Any] = json.loads(answer.read())
                return found
        except urllib.error.HTTPError as error:
            raise FleetError(error.read().decode("utf-8", "replace")) from None
        except (OSError, ValueError) as error:
            raise FleetError(f"simulated replica {number} does not answer: {error}") from None

    def kill(self, number: int) -> None:
        """End one replica without warning."""
        if (process := self._processes[number]) is not None:
            process.kill()
            self._reap(number)

    def terminate(self, number: int) -> None:
        """Ask one replica to end (SIGTERM), and wait until its streams have or ``drain_s`` has passed."""
        if (process := self._processes[number]) is not None:
            process.terminate()
            self._reap(number, self._options[number]["drain_s"] + _END_WITHIN_S)

    def restart(self, number: int, **faults: Any) -> None:
        """Start a replica that has ended, on the port it had, with an empty cache; with the faults it had, or these."""
        process = self._processes[number]
        if process is not None and process.poll() is None:
            raise FleetError(f"simulated replica {number} still runs")
        self._reap(number)
        if faults:
            self._options[number]["faults"] = Faults.of(faults).as_dict()
        self._spawn(number)
        self._await_port(number)

    def close(self) -> None:
        """End all replicas."""
        for process in self._processes:
            if process is not None and process.stdin is not None:
                process.stdin.close()
                process.kill()
        for number in range(len(self._processes)):
            self._reap(number)

    def _spawn(self, number: int) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlbalance_client.simulator.model.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._processes[number] = process
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._options[number]) + "\n")
        process.stdin.flush()

    def _await_port(self, number: int) -> None:
        process = self._processes[number]
        assert process is not None
        assert process.stdout is not None
        said = process.stdout.readline().strip()
        if not said.isdigit():
            raise FleetError(f"simulated replica {number} ended before it listened{said and ': ' + said}")
        self._options[number]["port"] = int(said)

    def _reap(self, number: int, within_s: float = _END_WITHIN_S) -> None:
        process = self._processes[number]
        if process is None:
            return
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        self._processes[number] = None
