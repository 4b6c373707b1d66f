"""A fleet of simulated replicas as processes: they end with the block on every way out, and errors name the thing."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlbalance_client.simulator.model.faults import Faults
from mlbalance_client.simulator.model.fleet import Fleet, FleetError

from ..conftest import eventually
from .test_server import CHAT, LONG, asked, holds, raw_call

ABANDONED = """
import os, signal
from mlbalance_client.simulator.model.fleet import Fleet
with Fleet(2) as fleet:
    print(*fleet.urls, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""

WATCHED = """
import socket, sys
from mlbalance_client.simulator.model.server import main
set_option = socket.socket.setsockopt
def watched(self, level, option, *value):
    if (level, option) == (socket.IPPROTO_TCP, socket.TCP_NODELAY):
        print("no delay", file=sys.stderr, flush=True)
    set_option(self, level, option, *value)
socket.socket.setsockopt = watched
main()
"""


def pids(fleet: Fleet) -> list[int]:
    return [process.pid for process in fleet._processes if process is not None]


def gone(pid: int) -> bool:
    """Whether a child of ours has ended and been waited for."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def refuses(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


def get(url: str) -> int:
    return httpx.get(f"{url}/health", trust_env=False, verify=False).status_code


def test_every_replica_has_a_port_a_process_and_a_state_of_its_own(fleet: Fleet) -> None:
    fleet.set_faults(1, slow=2)

    assert len(set(fleet.urls)) == len(set(pids(fleet))) == 3
    assert [state["faults"]["slow"] for state in fleet.states()] == [1, 2, 1]
    assert fleet.target == "static://" + ",".join(u.removeprefix("http://") for u in fleet.urls)


def test_no_process_is_left_behind() -> None:
    with Fleet(2) as fleet:
        left, urls = pids(fleet), fleet.urls

    assert len(left) == 2
    assert all(map(gone, left))
    assert all(map(refuses, urls))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_no_process_is_left_behind_when_the_body_raises(error: type[BaseException]) -> None:
    left: list[int] = []
    with pytest.raises(error), Fleet(2) as fleet:
        left = pids(fleet)
        raise error

    assert len(left) == 2
    assert all(map(gone, left))


def test_no_process_is_left_behind_with_a_call_under_way() -> None:
    with Fleet(1, faults=Faults(slow=1e5)) as fleet:
        left = pids(fleet)
        with raw_call(fleet, CHAT, asked(CHAT, output=LONG, stream=True)):
            assert holds(fleet, in_flight=1)
            fleet.close()

    assert all(map(gone, left))


def test_no_process_is_left_behind_when_one_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(3)
    spawn, left = fleet._spawn, []

    def failing(number: int) -> None:
        if number == 2:
            raise OSError("no more processes")
        spawn(number)
        left.extend(pids(fleet)[number:])

    monkeypatch.setattr(fleet, "_spawn", failing)
    with pytest.raises(OSError, match="no more"), fleet:
        pytest.fail("must not start")

    assert len(left) == 2
    assert all(map(gone, left))


def test_replicas_end_when_their_parent_is_killed() -> None:
    done = subprocess.run([sys.executable, "-c", ABANDONED], capture_output=True, text=True, timeout=60)

    urls = done.stdout.split()
    assert len(urls) == 2, done.stderr
    assert all(eventually(lambda url=url: refuses(url)) for url in urls)  # type: ignore[misc]


def test_closing_twice_does_nothing() -> None:
    with Fleet(1) as fleet:
        fleet.close()
        fleet.close()


@pytest.mark.parametrize("end", [Fleet.kill, pytest.param(Fleet.terminate, marks=pytest.mark.slow)])
def test_a_replica_that_ended_can_be_started_again_where_it_was(end: Callable[[Fleet, int], None]) -> None:
    with Fleet(2, faults=[Faults(slow=2), Faults()]) as fleet:
        before, urls = pids(fleet), fleet.urls
        httpx.post(urls[0] + CHAT, json=asked(CHAT), trust_env=False, verify=False).raise_for_status()
        end(fleet, 0)

        assert refuses(urls[0])
        assert get(urls[1]) == 200
        assert gone(before[0])
        fleet.restart(0)
        assert fleet.urls == urls
        state = fleet.state(0)
        assert (state["seen"], state["faults"]["slow"]) == (0, 2)
        left = pids(fleet)

    assert all(map(gone, left))


def test_a_dead_replica_is_named_by_what_asks_it() -> None:
    with Fleet(2) as fleet:
        fleet.kill(1)

        with pytest.raises(FleetError, match="replica 1"):
            fleet.state(1)
        with pytest.raises(FleetError, match="replica 1"):
            fleet.set_faults(1, slow=2)


def test_a_port_in_use_is_said_and_nothing_else_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with Fleet(1) as fleet:
        fleet.kill(0)
        host, port = fleet.urls[0].removeprefix("http://").split(":")
        with socket.create_server((host, int(port))):
            with pytest.raises(FleetError, match=f"{port}.*in use|in use.*{port}"):
                fleet.restart(0)

    assert "Traceback" not in capfd.readouterr().err


def test_a_replica_that_still_runs_is_not_started_again() -> None:
    with Fleet(1) as fleet:
        process = fleet._processes[0]
        try:
            with pytest.raises(FleetError, match="still runs"):
                fleet.restart(0)
            assert fleet._processes[0] is process
            assert get(fleet.urls[0]) == 200
        finally:
            if process is not None:
                process.kill()
                process.wait()


@pytest.mark.parametrize("count", [0, -1])
def test_a_fleet_of_none_is_refused(count: int) -> None:
    with pytest.raises(FleetError, match="at least one"):
        Fleet(count)


@pytest.mark.parametrize("given", [[], [Faults()], [Faults()] * 3])
def test_faults_one_each_must_be_as_many_as_replicas(given: list[Faults]) -> None:
    with pytest.raises(FleetError, match="2"):
        Fleet(2, faults=given)


@pytest.mark.parametrize("missing", ["uvicorn", "httptools"])
def test_a_missing_package_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    found = importlib.util.find_spec

    def find(name: str, package: str | None = None) -> Any:
        return None if name == missing else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    with pytest.raises(FleetError, match=rf"{missing}.*extra \[demo\]"):
        Fleet(1)


def test_answers_are_not_held_back_by_the_socket() -> None:
    """With Nagle's algorithm every plain answer takes 40 ms: the body waits until the headers are acknowledged."""
    replica = subprocess.Popen(
        [sys.executable, "-c", WATCHED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert replica.stdin is not None
        assert replica.stdout is not None
        replica.stdin.write("{}\n")
        replica.stdin.flush()
        assert get(f"http://127.0.0.1:{replica.stdout.readline().strip()}") == 200
        _, said = replica.communicate(timeout=30)
    finally:
        replica.kill()
        replica.wait()

    assert "no delay" in said


MARKING = """
class Marking:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        async def marked(message):
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-mark", type(self).__name__.encode()))
            await send(message)

        await self.app(scope, receive, marked)


class Outer(Marking):
    pass
"""


def test_replicas_are_wrapped_in_middlewares_the_last_outermost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "marking.py").write_text(MARKING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Fleet(1, middleware=["marking.Marking", "marking.Outer"]) as fleet:
        answer = httpx.get(fleet.urls[0] + "/health")

    assert answer.headers.get_list("x-mark") == ["Marking", "Outer"]


@pytest.mark.parametrize("path", ["no_such_module.X", "marking.Missing", "plain"])
def test_a_middleware_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    (tmp_path / "marking.py").write_text(MARKING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(FleetError, match=path), Fleet(1, middleware=[path]):
        pass
