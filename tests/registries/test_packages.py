"""A registry that cannot be had is skipped with the reason; in CI it is a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import packages
from .conftest import had


def test_without_apt_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(packages, "TOOLS", tmp_path / "tools")
    monkeypatch.setenv("CI", "")
    with pytest.raises(
        pytest.skip.Exception, match="consul: neither installed nor to be had without apt-get"
    ):
        had(packages.consul)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="needed in CI: dnsmasq-base: neither installed"):
        had(packages.dnsmasq)


def test_what_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "consul"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert packages.consul() == packages.Program(program)


def test_a_fetch_that_fails_leaves_nothing_that_looks_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("apt-get", "dpkg"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(packages, "TOOLS", tmp_path / "tools")
    with pytest.raises(packages.Unavailable, match="apt-get failed: E: no network"):
        packages.dnsmasq()
    assert [path.name for path in (tmp_path / "tools").iterdir()] == ["dnsmasq.lock"]
