"""Hearing that the server is to end, before it waits for its connections to close.

A server that ends gracefully waits for open answers, and only then tells the app (lifespan shutdown): an open load
stream would hold it up for as long as it allows. So the reporter hears the signal too, and hands it on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from .board import LoadBoard

Handler = Callable[[int, FrameType | None], Any]


def hear_signals(board: LoadBoard) -> None:
    """Close the board at SIGTERM and SIGINT, then do what was done before. Nothing, where that cannot be."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, _heard(board, before))


def _heard(board: LoadBoard, before: Handler) -> Handler:
    def heard(number: int, frame: FrameType | None) -> None:
        board.close()
        before(number, frame)

    return heard
