"""Programs that tests run for real, from the path or out of Debian packages that are unpacked and not installed.

apt's own configuration says where packages come from; its signatures are checked. What is unpacked lies in ``.tools/``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..environments import one_at_a_time

TOOLS = Path(__file__).parents[2] / ".tools"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class Unavailable(Exception):
    """The program cannot be had here; the message says why."""


@dataclass(frozen=True)
class Program:
    """How to run it: ``path``, and ``environment`` with where its libraries are."""

    path: Path
    environment: dict[str, str] = field(default_factory=dict)


def consul() -> Program:
    """Consul; the last version that Debian has is in an older suite."""
    return _program("consul", ["consul"], suite="bullseye")


def dnsmasq() -> Program:
    """dnsmasq with the libraries that a bare system lacks."""
    libraries = "libnetfilter-conntrack3 libnftables1 libnftnl11 libnfnetlink0 libmnl0 libjansson4"
    return _program("dnsmasq", ["dnsmasq-base", *libraries.split()])


def _program(name: str, packages: Sequence[str], suite: str | None = None) -> Program:
    if found := shutil.which(name):
        return Program(Path(found))
    root = TOOLS / name
    with one_at_a_time(root):
        if not root.exists():
            _unpack(root, packages, suite)
    path = next((p for p in (root / "usr/bin" / name, root / "usr/sbin" / name) if p.exists()), None)
    if path is None:
        raise Unavailable(f"{name}: not in its package")
    libraries = ":".join(str(p) for p in root.glob("usr/lib/*-linux-gnu"))
    return Program(path, {"LD_LIBRARY_PATH": libraries} if libraries else {})


def _unpack(root: Path, packages: Sequence[str], suite: str | None) -> None:
    """Make ``root`` in one step, so that an interrupted fetch leaves nothing that looks whole."""
    for tool in ("apt-get", "dpkg"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{packages[0]}: neither installed nor to be had without {tool}")
    TOOLS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TOOLS) as name:
        work = Path(name)
        for folder in ("lists/partial", "archives", "sources", "root"):
            (work / folder).mkdir(parents=True)
        options = _options(work, suite)
        _run(["apt-get", *options, "-q", "update"], work)
        _run(["apt-get", *options, "-q", "download", *packages], work / "archives")
        for package in sorted((work / "archives").glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(work / "root")], work)
        os.replace(work / "root", root)


def _options(work: Path, suite: str | None) -> list[str]:
    options = {
        "Dir::State::lists": f"{work}/lists",
        "Dir::Cache": str(work),
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "APT::Sandbox::User": "root",
    }
    if suite is not None:
        source = f"deb [signed-by={_KEYRING}] {_mirror()} {suite} main"
        (work / "sources.list").write_text(source + "\n")
        (work / "status").touch()
        options |= {
            "Dir::Etc::sourcelist": f"{work}/sources.list",
            "Dir::Etc::sourceparts": f"{work}/sources",
            "Dir::State::status": f"{work}/status",
            "Acquire::Check-Valid-Until": "false",
        }
    return [word for key, value in options.items() for word in ("-o", f"{key}={value}")]


def _mirror() -> str:
    """The first Debian archive in apt's configuration, the security archive excepted."""
    if not _KEYRING.exists():
        raise Unavailable(f"{_KEYRING} is missing, so that older packages cannot be verified")
    targets = _run(["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"], Path("/"))
    for line in sorted(set(targets.split())):
        if line.rstrip("/").endswith("/debian"):
            return line
    raise Unavailable("apt's configuration names no Debian archive")


def _run(command: Sequence[str], cwd: Path) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command[:1])} took too long") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no reason given"]
        raise Unavailable(f"{command[0]} failed: {said[-1]}")
    return done.stdout
