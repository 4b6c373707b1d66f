"""The command as a process: signals, children, exit codes, and what reaches the terminal."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from ..conftest import eventually

COMMAND = [sys.executable, "-c", "from mlbalance_client.cli import main; main()"]


def refuses(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return False


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """The command in a session of its own, as a terminal has it; killed if it has not ended by then."""
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "to_all"),
    [
        pytest.param(signal.SIGINT, True, id="Ctrl-C goes to the whole group"),
        pytest.param(signal.SIGTERM, False, id="SIGTERM to the command alone"),
        pytest.param(signal.SIGINT, False, id="SIGINT to the command alone", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, True, id="SIGTERM to the whole group", marks=pytest.mark.slow),
    ],
)
def test_a_fleet_runs_until_a_signal_and_leaves_no_child(number: signal.Signals, to_all: bool) -> None:
    with started("fleet", "--replicas", "2", "--speed", "20", "--json") as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["target"] == "static://" + ",".join(u.removeprefix("http://") for u in told["urls"])
        assert [
            httpx.get(f"{u}/health", trust_env=False, verify=False).status_code for u in told["urls"]
        ] == [200, 200]

        (os.killpg if to_all else os.kill)(process.pid, number)
        out, err = process.communicate(timeout=30)

    assert (out, err) == ("", "")
    assert process.returncode in (0, 128 + number, -number)
    assert all(eventually(lambda url=url: refuses(url)) for url in told["urls"])  # type: ignore[misc]


@pytest.mark.slow
def test_a_killed_fleet_leaves_no_child() -> None:
    with started("fleet", "--replicas", "2", "--json") as process:
        assert process.stdout is not None
        urls = json.loads(process.stdout.readline())["urls"]
        process.kill()

    assert all(eventually(lambda url=url: refuses(url)) for url in urls)  # type: ignore[misc]


def test_a_fleet_prints_its_target_and_has_the_faults_asked_for() -> None:
    with started("fleet", "--replicas", "1", "--faults", '{"reject_status": 429}') as process:
        assert process.stdout is not None
        assert "Ctrl-C" in process.stdout.readline()
        target = process.stdout.readline().strip()
        url = "http://" + target.removeprefix("static://")
        body = {"messages": [{"role": "user", "content": "x"}]}

        assert target.startswith("static://127.0.0.1:")
        assert (
            httpx.post(f"{url}/v1/chat/completions", json=body, trust_env=False, verify=False).status_code
            == 429
        )
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


@pytest.mark.parametrize("as_json", [True, False])
def test_one_replica_of_a_fleet_can_be_killed_by_its_printed_pid(as_json: bool) -> None:
    with started("fleet", "--replicas", "2", *["--json"] * as_json) as process:
        assert process.stdout is not None
        if as_json:
            told = json.loads(process.stdout.readline())
            urls, pids = told["urls"], told["pids"]
        else:
            _, target, *rows = (process.stdout.readline().strip() for _ in range(4))
            urls, pids = zip(*((url, int(pid)) for url, _, pid in map(str.split, rows)), strict=True)
            assert target == "static://" + ",".join(url.removeprefix("http://") for url in urls)
        os.kill(pids[1], signal.SIGKILL)

        assert eventually(lambda: refuses(urls[1]))
        assert httpx.get(f"{urls[0]}/health", trust_env=False, verify=False).status_code == 200


def test_a_fleet_whose_replicas_die_at_once_does_not_wait_for_ever() -> None:
    with started("fleet", "--replicas", "1", "--faults", '{"cold_calls": "x"}') as process:
        assert process.stdout is not None
        first = process.stdout.readline()

    assert first == "", "it says that it runs"


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "http://user:hunter2@127.0.0.1:1"],
        ["fleet", "--faults", '{"nope": 1}'],
    ],
)
def test_what_is_wrong_is_one_line_on_the_terminal(tmp_path: Path, arguments: list[str]) -> None:
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("mlbalance: ")
    assert done.stderr.count("\n") == 1
    assert "hunter2" not in done.stderr


def test_without_a_command_it_prints_its_help() -> None:
    done = subprocess.run(COMMAND, capture_output=True, text=True, timeout=60)

    printed = done.stdout + done.stderr
    assert done.returncode == 2
    assert "COMMAND [ARGS]" in printed
    assert "fleet" in printed
    assert "mlbalance: " not in printed


def test_a_misplaced_targets_secret_is_not_printed() -> None:
    arguments = ["check", "static://127.0.0.1:1", "http://user:hunter2@127.0.0.1:1"]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)

    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "hunter2" not in done.stdout + done.stderr
