"""Python environments of their own, for what does not go into the tests' own: made when first needed, then kept."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(
    home: Path,
    packages: Sequence[str],
    *,
    editable: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> Path:
    """The interpreter of the environment ``home``, made anew if it was made for other packages.

    ``editable``: the first package is this project. ``finish``: what else makes it ready.
    """
    wanted = repr((packages, (ROOT / "pyproject.toml").read_bytes() if editable else b""))
    key = hashlib.sha256(wanted.encode()).hexdigest()
    interpreter, mark = home / "bin" / "python", home / ".made-for"
    with one_at_a_time(home):
        if not mark.exists() or mark.read_text() != key:
            subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
            pip = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *(["--editable"] if editable else []), *packages], check=True, cwd=ROOT)
            if finish is not None:
                finish(interpreter)
            mark.write_text(key)
    return interpreter


@contextmanager
def one_at_a_time(made: Path) -> Iterator[None]:
    """Whatever makes ``made``: tests run in several processes, and one of them makes it for all."""
    made.parent.mkdir(parents=True, exist_ok=True)
    with made.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
