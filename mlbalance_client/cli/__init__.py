"""The command ``mlbalance``. Needs the extra ``cli``; what runs a fleet needs ``demo``."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, cast


def main() -> None:
    """Entry point."""
    if importlib.util.find_spec("typer") is None or importlib.util.find_spec("rich") is None:
        sys.exit(
            "mlbalance: the command line needs more packages: install mlbalance-client with the extra [cli]"
        )
    import typer

    from ..config.urls import shown
    from .app import app

    # ClickException, which newer versions of typer bring themselves
    usage_error = cast(type[Any], typer.BadParameter.__mro__[2])
    try:
        sys.exit(app(standalone_mode=False))
    except usage_error as error:
        words = " ".join(map(shown, error.format_message().split(" ")))
        if words:  # none where typer has printed the help by itself
            print(words if "\n" in words else f"mlbalance: {words}", file=sys.stderr)
        sys.exit(error.exit_code)
    except typer.Abort:
        sys.exit(130)
