"""The benches as a command; their figures are no matter of tests."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_benches_are_listed_with_a_line_each() -> None:
    command = [sys.executable, "-m", "tests.bench", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT)
    names = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines()[1:]}

    assert (done.returncode, done.stderr) == (0, "")
    assert {"decision", "cost", "placement", "tail", "admission"} <= names.keys()
    assert all(names.values())
