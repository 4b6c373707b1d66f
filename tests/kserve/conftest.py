"""MLServers with one small model each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ..conftest import eventually
from ..environments import ROOT, environment
from ..registries.packages import Program
from ..registries.process import Owned, free_ports

MODELS = Path(__file__).with_name("models")


class MlServer:
    """One process. ``folder``: its own copy of the model."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.port, grpc, metrics = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        self._folder = folder
        shutil.copytree(MODELS, folder)
        self._hold = folder / "double" / "hold"
        ports = {"http_port": self.port, "grpc_port": grpc, "metrics_port": metrics}
        settings = {"host": "127.0.0.1", "parallel_workers": 0, "environments_dir": str(folder), **ports}
        (folder / "settings.json").write_text(json.dumps(settings))
        self._owned = Owned(Program(python.with_name("mlserver")))

    def start(self) -> None:
        self._owned.spawn(["start", str(self._folder)])

    def await_ready(self) -> None:
        if not eventually(lambda: self._asks("/v2/health/ready") == 200, within_s=90):
            raise AssertionError(self._owned.said())

    def hold(self, held: bool) -> None:
        """Whether the model cannot be loaded."""
        self._hold.touch() if held else self._hold.unlink(missing_ok=True)

    def _asks(self, path: str) -> int | None:
        try:
            return httpx.get(self.url + path, trust_env=False).status_code
        except httpx.HTTPError:
            return None

    def repository(self, action: str) -> None:
        """``load`` or ``unload`` the model."""
        url = f"{self.url}/v2/repository/models/double/{action}"
        httpx.post(url, trust_env=False, timeout=60).raise_for_status()

    def close(self) -> None:
        self._owned.close()


@pytest.fixture(scope="session")
def mlserver_python() -> Path:
    return environment(ROOT / ".venvs" / "mlserver", ["mlserver>=1.7.1,<1.8"])


@pytest.fixture(scope="module")
def mlservers(mlserver_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[MlServer]]:
    """Two, ready."""
    folder = tmp_path_factory.mktemp("mlserver")
    servers = [MlServer(mlserver_python, folder / name) for name in ("a", "b")]
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.await_ready()
        yield servers
    finally:
        for server in servers:
            server.close()
