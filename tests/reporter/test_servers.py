"""With real servers on loopback: the simulated replica behind the middleware, uvicorn's end, several processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.load.format import decode_header, decode_load, decode_prefixes
from mlbalance_client.core.load.report import State
from mlbalance_client.dialects import find
from mlbalance_client.reporter import LoadReporter, engine_facts, siblings
from mlbalance_client.reporter.gpu import Gauge, GpuFigures, read, visible
from mlbalance_client.simulator.model.fleet import Fleet
from mlbalance_client.simulator.model.spec import EngineSpec

from ..conftest import eventually
from .asgi import Exchange, answering, load_of

PATH = "/mlbalance/v1/load"
BODY = {
    "model": "sim",
    "messages": [{"role": "user", "content": "word " * 4000}],
    "max_tokens": 20,
    "stream": True,
    "stream_options": {"include_usage": True},
}
APP = """
import sys
from mlbalance_client.reporter import LoadReporter

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            kind = (await receive())["type"]
            await send({"type": kind + ".complete"})
            if kind == "lifespan.shutdown":
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

app = LoadReporter(app)
"""


@pytest.fixture(scope="module")
def replica() -> Iterator[Fleet]:
    with Fleet(
        1,
        spec=EngineSpec().scaled(20),
        middleware=["mlbalance_client.reporter.LoadReporter"],
    ) as fleet:
        yield fleet


def report(url: str, client: str = "c") -> Any:
    answer = httpx.get(url + PATH, headers={"x-mlbalance-client": client})
    return decode_load(answer.content, at=0.0, client=client)


def chain() -> set[int]:
    request = httpx.Request("POST", "http://r/v1/chat/completions", json=BODY)
    return set(fingerprint(find("POST", "/v1/chat/completions").read("", request.content).prompt).chain)


def test_a_replica_behind_the_middleware_answers_as_without(replica: Fleet, fleet: Fleet) -> None:
    answers = []
    for url in (fleet.urls[0], replica.urls[0]):
        answer = httpx.post(url + "/v1/chat/completions", json={**BODY, "stream": False})
        told = {name: value for name, value in answer.json().items() if name not in ("id", "created")}
        answers.append((answer.status_code, told, set(answer.headers) - {"x-mlbalance-load"}))

    assert answers[0] == answers[1]


def test_a_replicas_load_is_that_of_its_engine(replica: Fleet) -> None:
    url = replica.urls[0]
    replica.flush()
    long = {**BODY, "max_tokens": 100_000}
    with httpx.stream(
        "POST", url + "/v1/chat/completions", json=long, headers={"x-mlbalance-call": "c.1"}
    ) as answer:
        head = decode_header(answer.headers["x-mlbalance-load"], at=0.0)
        lines = answer.iter_lines()
        while '"content"' not in next(lines):
            pass
        busy, truth = report(url), replica.state(0)

    # A head may share a report of the 25 ms before it, as that of the call before this one.
    assert (head.acked, head.running) in ((1, 1), (0, 0))
    assert (busy.running, busy.waiting, busy.prefill_tokens) == (truth["running"], truth["waiting"], 0)
    assert busy.acked == 1
    assert eventually(lambda: report(url).running == 0)  # the client has left midway


def test_a_stream_names_the_chains_that_clients_compute(replica: Fleet) -> None:
    url = replica.urls[0]
    httpx.post(url + "/v1/chat/completions", json={**BODY, "stream": False}).raise_for_status()
    with httpx.stream("GET", url + PATH, headers={"accept": "text/event-stream"}) as answer:
        lines = answer.iter_lines()
        held: set[int] = set()
        while not chain() <= held:
            line = next(lines)
            if line == "event: prefixes":
                held |= set(decode_prefixes(next(lines).removeprefix("data: ")).add)

    assert chain()


def test_a_replica_that_refuses_is_overloaded(replica: Fleet) -> None:
    url = replica.urls[0]
    httpx.post(url + "/v1/chat/completions", json={**BODY, "stream": False}).raise_for_status()
    replica.set_faults(0, reject_status=503)
    httpx.post(url + "/v1/chat/completions", json=BODY)
    seen = report(url).state
    replica.set_faults(0)

    assert seen is State.OVERLOADED


@contextmanager
def uvicorn(tmp_path: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A uvicorn with default settings, in a process of its own, and its URL; it is killed if it is still there."""
    (tmp_path / "app.py").write_text(APP)
    command = [
        sys.executable,
        "-m",
        "uvicorn",
        "app:app",
        "--port",
        "0",
        "--app-dir",
        str(tmp_path),
        *options,
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "running on" in line:
                    break
            yield process, line.partition("running on ")[2].split()[0]
        finally:
            process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_although_a_stream_is_open(tmp_path: Path, number: signal.Signals) -> None:
    with uvicorn(tmp_path) as (process, url):
        with httpx.stream("GET", url + PATH, headers={"accept": "text/event-stream"}, timeout=30) as answer:
            lines = answer.iter_lines()
            while not next(lines).startswith("data:"):
                pass
            process.send_signal(number)
            told = [line.removeprefix("data: ") for line in lines if '"state"' in line]
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(30) in (0, -number)

    assert decode_load(told[-1], at=0.0).state is State.DRAINING
    assert "Traceback" not in said


def test_one_process_is_the_whole_replica(tmp_path: Path) -> None:
    with uvicorn(tmp_path) as (_, url):
        assert not report(url).partial
        assert not report(url).partial


@pytest.mark.slow
def test_several_processes_say_so(tmp_path: Path) -> None:
    def partial(url: str) -> bool:
        try:
            return bool(report(url).partial)
        except httpx.ConnectError:  # the port is there before the processes that listen
            return False

    with uvicorn(tmp_path, "--workers", "2") as (process, url):
        try:
            assert eventually(lambda: partial(url), within_s=60)
        finally:
            process.terminate()
            process.wait(30)


SIBLING = """
import sys
from pathlib import Path
from mlbalance_client.reporter.siblings import Siblings

siblings = Siblings(Path(sys.argv[1]))
scope = {"server": ("127.0.0.1", int(sys.argv[2]))}
siblings.found(scope)
print("there", flush=True)
for line in sys.stdin:
    siblings._looked_at -= 10
    print(siblings.found(scope), flush=True)
"""


@contextmanager
def sibling(tmp_path: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", SIBLING, str(tmp_path), str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        yield process
        process.kill()


def asked(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return process.stdout.readline().strip()


def test_processes_on_one_port_find_one_another_until_one_is_killed(tmp_path: Path) -> None:
    with sibling(tmp_path, 8000) as first, sibling(tmp_path, 8001) as elsewhere:
        assert asked(first) == "False"
        with sibling(tmp_path, 8000) as second:
            found = asked(first), asked(second), asked(elsewhere)
            second.kill()
            second.wait()
            assert found == ("True", "True", "False")
        assert asked(first) == "False"


def test_one_whose_file_was_taken_away_before_it_was_locked_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken_away = []

    def lock(descriptor: int, how: int) -> None:
        if not taken_away:
            taken_away.append(next(tmp_path.glob("mlbalance-*/*/*")))
            taken_away[0].unlink()
        fcntl.flock(descriptor, how)

    monkeypatch.setattr(siblings, "fcntl", types.SimpleNamespace(**{**vars(fcntl), "flock": lock}))
    ours = siblings.Siblings(tmp_path)
    assert not ours.found({"server": ("127.0.0.1", 8000)})

    assert taken_away[0].exists()
    ours.close()


def test_a_directory_that_cannot_be_had_means_no_siblings(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with sibling(tmp_path / "file", 8000) as process:
        assert asked(process) == "False"


@pytest.mark.parametrize("how", ["another's link", "open to others"])
def test_a_directory_that_others_could_write_to_is_not_used(tmp_path: Path, how: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    home = tmp_path / f"mlbalance-{os.getuid()}"
    if how == "open to others":
        home.mkdir()
        home.chmod(0o777)
    else:
        home.symlink_to(elsewhere)
    with sibling(tmp_path, 8000) as process:
        assert asked(process) == "False"

    assert list(elsewhere.iterdir()) == []
    assert list(home.iterdir()) == []


VLLM = (
    'vllm:cache_config_info{block_size="128",cache_dtype="auto",engine="0",num_gpu_blocks="8192"} 1.0\n'
    'vllm:cache_config_info{block_size="128",cache_dtype="auto",engine="1",num_gpu_blocks="8192"} 1.0\n'
    'vllm:cache_config_info{block_size="128",engine="2",num_gpu_blocks="None"} 1.0\n'
    "vllm:num_requests_running 3\n"
)


def test_vllms_cache_is_as_large_as_its_page_says() -> None:
    assert engine_facts.read(VLLM) == 2 * 128 * 8192
    assert engine_facts.read("") is None


@pytest.mark.anyio
@pytest.mark.parametrize(("there", "expected"), [(True, 2 * 128 * 8192), (False, None)])
async def test_under_vllm_its_page_is_asked_once(
    monkeypatch: pytest.MonkeyPatch, there: bool, expected: int | None
) -> None:
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await answering(VLLM.encode(), content=b"text/plain")(scope, receive, send)

    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    if there:
        monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    reporter = LoadReporter(app)
    for _ in range(2):
        exchange = Exchange(path=PATH, method="GET")
        await reporter(exchange.scope, exchange.receive, exchange.send)

    assert load_of(reporter).kv_capacity_tokens == expected
    assert asked == (["/metrics"] if there else [])


@pytest.mark.anyio
async def test_an_engine_whose_page_fails_is_no_trouble(monkeypatch: pytest.MonkeyPatch) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError

    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    reporter = LoadReporter(app)
    exchange = Exchange(path=PATH, method="GET")
    await reporter(exchange.scope, exchange.receive, exchange.send)

    assert exchange.sent[0]["status"] == 200


class Nvml(types.ModuleType):
    """Two GPUs, as NVML tells of them."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__("pynvml")
        self.broken = broken

    def nvmlInit(self) -> None:
        if self.broken:
            raise RuntimeError("no driver")

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetMemoryInfo(self, handle: Any) -> Any:
        return types.SimpleNamespace(used=10, total=100)

    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        return types.SimpleNamespace(gpu=(20, 60)[handle])


@pytest.mark.parametrize(
    ("named", "handles"),
    [(None, [0, 1]), ("1", [1]), ("", []), ("GPU-a,0", ["GPU-a", 0]), ("0,MIG-x,1", [0]), ("-1", [])],
)
def test_only_the_gpus_that_cuda_sees_count(
    monkeypatch: pytest.MonkeyPatch, named: str | None, handles: list[Any]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)

    assert visible(Nvml()) == handles


def test_gpu_figures_are_summed_and_what_is_not_told_left_out() -> None:
    assert read(Nvml(), [0, 1]) == GpuFigures(0.4, 20, 200)
    assert read(Nvml(), ["GPU-a"]) == GpuFigures(None, 10, 100)


@pytest.mark.parametrize("broken", [True, False])
def test_the_gauge_reads_in_the_background(monkeypatch: pytest.MonkeyPatch, broken: bool) -> None:
    nvml = Nvml(broken)
    nvml.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gauge = Gauge(wanted=True)
    gauge.figures(0.0)

    if broken:
        assert eventually(lambda: not gauge._wanted)
    assert eventually(lambda: gauge.figures(0.0) == (GpuFigures() if broken else GpuFigures(0.4, 20, 200)))
