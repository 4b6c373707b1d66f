"""A file of replicas: every form, replaced or edited in place, half written, gone and back."""

from __future__ import annotations

import json
import os
import threading
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlbalance_client.config import BalancerConfig
from mlbalance_client.core.members.membership import Membership
from mlbalance_client.core.model import ReplicaState
from mlbalance_client.discovery.file import FileDiscovery
from mlbalance_client.errors import DiscoveryError

from .following import Following, following

pytestmark = pytest.mark.anyio

ONE, TWO = "http://10.0.0.1:1", "http://10.0.0.2:2"


def at(path: Path) -> dict[str, Any]:
    return {"kind": "file", "path": str(path), "poll_s": 0.02}


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


async def after_errors(it: Following) -> Membership:
    while isinstance(said := await it.next(), str):
        pass
    return said


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", json.dumps([ONE, {"url": TWO, "id": "b", "state": "draining", "priority": 3}])),
        (
            "a.json",
            json.dumps({"replicas": [ONE, {"url": TWO, "id": "b", "state": "draining", "priority": 3}]}),
        ),
        ("a", json.dumps([ONE, {"url": TWO, "id": "b", "state": "draining", "priority": 3}])),
        ("a.toml", f'replicas = ["{ONE}", {{url = "{TWO}", id = "b", state = "draining", priority = 3}}]'),
    ],
)
async def test_every_form_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)

    async with following(at(tmp_path / name)) as it:
        said = await it.next()

    assert isinstance(said, Membership)
    first, second = said.replicas
    assert (first.id, first.url, first.state) == ("10.0.0.1:1", ONE, ReplicaState.HEALTHY)
    assert (second.id, second.url, second.state, second.priority) == ("b", TWO, ReplicaState.DRAINING, 3)


async def test_it_may_be_replaced_edited_broken_removed_and_put_back(tmp_path: Path) -> None:
    path = tmp_path / "replicas.json"
    async with following(at(path)) as it:
        assert "No such file" in await it.error()
        path.write_text(json.dumps([ONE]))
        assert [r.url for r in (await after_errors(it)).replicas] == [ONE]
        replace(path, json.dumps([ONE, TWO]))
        assert await it.ids() == {"10.0.0.1:1", "10.0.0.2:2"}
        path.write_text(json.dumps([TWO]))
        assert await it.ids() == {"10.0.0.2:2"}
        path.write_text(json.dumps([ONE, TWO])[:-9])
        assert "cannot be parsed" in await it.error()
        path.write_text(json.dumps([ONE, TWO]))
        assert len((await after_errors(it)).replicas) == 2
        path.unlink()
        assert "No such file" in await it.error()
        path.write_text("[]")
        assert (await after_errors(it)).replicas == ()


async def test_a_file_that_comes_back_unchanged_ends_the_trouble(tmp_path: Path) -> None:
    path, away = tmp_path / "replicas.json", tmp_path / "away"
    path.write_text(json.dumps([ONE]))
    async with following(at(path)) as it:
        assert await it.ids() == {"10.0.0.1:1"}
        path.rename(away)
        await it.error()
        away.rename(path)
        assert [r.url for r in (await after_errors(it)).replicas] == [ONE]


async def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "replicas.json"
    path.write_text(json.dumps([ONE]))
    before = path.stat()
    async with following(at(path)) as it:
        assert await it.ids() == {"10.0.0.1:1"}
        with path.open("r+") as file:
            file.write(json.dumps([TWO]))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert await it.ids() == {"10.0.0.2:2"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
async def test_a_read_that_never_ends_does_not_keep_anybody(tmp_path: Path) -> None:
    """Opening a pipe waits for whoever writes."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reading, ended = threading.Event(), threading.Event()
    it = source(str(path))

    def read() -> bytes:
        reading.set()
        try:
            return Path(path).read_bytes()
        finally:
            ended.set()

    it._path = SimpleNamespace(read_bytes=read, stat=path.stat)  # type: ignore[assignment]
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(it.run, lambda membership: None)
        assert await anyio.to_thread.run_sync(reading.wait, 10)
        tasks.cancel_scope.cancel()
    assert not ended.is_set()
    path.open("wb").close()
    assert await anyio.to_thread.run_sync(ended.wait, 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be parsed"),
        ("{}", "replicas: is required"),
        ("3", "table"),
        ('["http://a", "ftp://b"]', "replicas[1].url: URL 'ftp://b': must start with http"),
        ('[{"url": "http://a", "wieght": 2}]', "did you mean 'weight'"),
        ('[{"url": "http://user:hunter2@a"}]', "must not hold credentials"),
        ("[" * 100_000, "cannot be parsed"),
    ],
)
async def test_what_is_wrong_is_said_without_secrets(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "replicas.json"
    path.write_text(text)
    async with following(at(path)) as it:
        error = await it.error()
    assert said in error
    assert "hunter2" not in error


def source(name: str) -> FileDiscovery:
    return FileDiscovery(BalancerConfig(discovery={"kind": "file", "path": name}).discovery, Random(1))  # type: ignore[arg-type]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.floats()
    | st.text()
    | st.sampled_from([ONE, "url", "id", "replicas", "state", "out"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["replicas", "url", "id", "weight", "state"]), inner, max_size=4)
    ),
)


@given(st.one_of(st.binary(), json_values.map(lambda value: json.dumps(value).encode())), st.booleans())
def test_any_content_is_a_list_or_our_own_error(content: bytes, toml: bool) -> None:
    with suppress(DiscoveryError):
        source("a.toml" if toml else "a.json")._replicas(content)


def test_urls() -> None:
    config = BalancerConfig.from_target(
        "file:///etc/my%20fleet.json?poll_s=5&empty_hold_s=7", env={}
    ).discovery
    assert (config.kind, config.path, config.poll_s, config.empty_hold_s) == (
        "file",
        "/etc/my fleet.json",
        5.0,
        7.0,
    )  # type: ignore[attr-defined]
