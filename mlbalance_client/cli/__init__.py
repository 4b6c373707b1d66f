"""The command ``mlbalance``. Needs the extra ``cli``; what runs a fleet needs ``demo``."""

from __future__ import annotations

import importlib.util
import sys


def main() -> None:
    """Entry point."""
    if importlib.util.find_spec("typer") is None or importlib.util.find_spec("rich") is None:
        sys.exit("mlbalance: the command line needs more packages: pip install 'mlbalance-client[cli]'")
    from .app import app

    app()
