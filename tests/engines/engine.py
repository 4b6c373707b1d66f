"""An engine as a process that a test owns, and what the engine itself says of its load."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from ..registries.process import free_ports
from . import install

MODEL = "tiny"
BATCH, QUEUE = 4, 6
BLOCK_TOKENS, BLOCKS = 128, 128
# Whole blocks, or vLLM reckons its cache a little smaller than it is; and not all of them, or it does not start.
CONTEXT = 117 * BLOCK_TOKENS
SLOTS = 2


class Engine(ABC):
    """Installed, not started. Engines have processes of their own: all of the session that one began are ended."""

    def __init__(self) -> None:
        (self.port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        self.target = f"static://127.0.0.1:{self.port}"
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the engine
        self._process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def start(self) -> None:
        """It serves some time after this, or ends."""

    @abstractmethod
    def load(self) -> tuple[float, float]:
        """Requests running and waiting, as it says itself."""

    def _spawn(self, command: Sequence[str | Path], environment: Mapping[str, str]) -> None:
        assert self._process is None
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        )

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read().decode("utf-8", "replace")[-4000:]

    def kill(self) -> None:
        """End it without warning."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        self.log.close()

    def metrics(self) -> Counter[str]:
        """The engine's own figures, by name and by ``name{reason}``."""
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(self._page("/metrics")):
            for sample in family.samples:
                found[sample.name] += sample.value
                if reason := sample.labels.get("finished_reason"):
                    found[f"{sample.name}{{{reason}}}"] += sample.value
        return found

    def _page(self, path: str) -> str:
        """Asked for until it comes: llama.cpp may leave a connection waiting until some stream ends."""
        for _ in range(60):
            with suppress(httpx.TimeoutException):
                return httpx.get(self.url + path, trust_env=False, timeout=10).text
        raise AssertionError(f"no answer from {path}")


class Vllm(Engine):
    """vLLM on one core: ``BATCH`` calls at once, ``QUEUE`` that wait, a KV cache of ``BLOCKS`` blocks.

    What it calls the most queued requests is the most unfinished ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self._python, self._model = install.vllm_python(), install.models() / "llama"
        self.events_port, self.replay_port = free_ports(2)

    def start(self, *, reporter: str = "", kv_events: bool = False) -> None:
        """``reporter``: the replica's name in our middleware, if it is to run; ``kv_events``: follow the engine's."""
        own = {
            "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_TARGET_DEVICE": "cpu", "VLLM_HOST_IP": "127.0.0.1",
            "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "TORCHDYNAMO_DISABLE": "1", "VLLM_CACHE_ROOT": str(self._model / ".cache"),
            "HF_HOME": str(self._model / ".cache"),
        }  # fmt: skip
        command: list[str | Path] = [
            self._python, "-m", "vllm.entrypoints.cli.main", "serve", self._model, "--host", "127.0.0.1",
            "--port", str(self.port), "--served-model-name", MODEL, "--dtype", "float32",
            "--max-model-len", str(CONTEXT), "--max-num-seqs", str(BATCH), "--max-num-queued-reqs", str(BATCH + QUEUE),
            "--enforce-eager", "--enable-prompt-tokens-details", "--num-gpu-blocks-override", str(BLOCKS),
        ]  # fmt: skip
        if reporter:
            own |= {"MLBALANCE_REPORTER_REPLICA": reporter, "MLBALANCE_REPORTER_BATCH_LIMIT": str(BATCH)}
            command += ["--middleware", "mlbalance_client.reporter.LoadReporter"]
        if kv_events:
            events, replay = (f"tcp://127.0.0.1:{port}" for port in (self.events_port, self.replay_port))
            own |= {"MLBALANCE_REPORTER_KV_EVENTS": events, "MLBALANCE_REPORTER_KV_EVENTS_REPLAY": replay}
            ours = f'"endpoint":"tcp://*:{self.events_port}","replay_endpoint":"tcp://*:{self.replay_port}"'
            command += [
                "--kv-events-config", f'{{"enable_kv_cache_events":true,"publisher":"zmq",{ours}}}'
            ]  # fmt: skip
        self._spawn(command, own)

    def load(self) -> tuple[float, float]:
        found = self.metrics()
        return found["vllm:num_requests_running"], found["vllm:num_requests_waiting"]

    def finished(self) -> tuple[float, float]:
        """Calls that came to their own end, and tokens generated, ever."""
        found = self.metrics()
        return found["vllm:request_success_total{length}"], found["vllm:generation_tokens_total"]


class LlamaServer(Engine):
    """llama.cpp's server on one core, with ``SLOTS`` calls at once."""

    def __init__(self) -> None:
        super().__init__()
        self._program, self._model = install.llama_server(), install.models() / "llama.gguf"

    def start(self) -> None:
        command: list[str | Path] = [
            self._program, "-m", self._model, "--host", "127.0.0.1", "--port", str(self.port), "--alias", MODEL,
            "--metrics", "--slots", "-np", str(SLOTS), "-c", str(CONTEXT * SLOTS), "-t", "1", "--no-webui",
        ]  # fmt: skip
        self._spawn(command, {})

    def load(self) -> tuple[float, float]:
        found = self.metrics()
        return found["llamacpp:requests_processing"], found["llamacpp:requests_deferred"]
