"""One call on a load board, from its coming to its end."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

from ..core.model import Usage
from .work import Work


class Counting(Protocol):
    """The board that a call is on."""

    def prefilled(self, call: BoardCall) -> None:
        """The call's first content is there."""

    def end(self, call: BoardCall, usage: Usage | None, *, served: bool) -> None:
        """The call is over."""


def check_tokens(name: str, value: object) -> None:
    """Raises TypeError for what is no number of tokens or None, ValueError for a negative one."""
    if value is None:
        return
    if type(value) is not int:
        raise TypeError(f"{name} is {value!r:.40}, and must be a whole number of tokens")
    if value < 0:
        raise ValueError(f"{name} is {value}, and may not be negative")


def check_text(name: str, value: object) -> None:
    """Raises TypeError for what is no text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} is {value!r:.40}, and must be str")


class BoardCall:
    """A context manager: leaving counts the call out, as a success unless an exception leaves too.

    All methods may be called again, and from any thread; what comes after the end does nothing.
    """

    __slots__ = (
        "_board", "before", "chain", "extra_tokens", "model", "over", "prompt_bytes", "route", "stamp",
        "work",
    )  # fmt: skip

    def __init__(
        self,
        board: Counting,
        work: Work,
        *,
        chain: Sequence[int] = (),
        stamp: int = 0,
        before: Sequence[int] = (),
        prompt_bytes: int = 0,
        extra_tokens: int = 0,
        model: str | None = None,
        route: str = "",
    ) -> None:
        self._board = board
        self.work = work
        self.chain = chain
        self.stamp = stamp
        self.before = before
        self.prompt_bytes = prompt_bytes
        self.extra_tokens = extra_tokens
        self.model = model
        self.route = route
        self.over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.succeed()
        else:
            self.fail()

    @property
    def prompt_tokens(self) -> int:
        """As estimated."""
        return self.work.prompt_tokens

    def first_content(self) -> None:
        """The prompt is computed; output begins."""
        if not self.work.decoding:
            self._board.prefilled(self)

    def progress(self, tokens: int = 1) -> None:
        """So many more tokens are out."""
        self.work.produced += tokens

    def succeed(
        self,
        *,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        """The call is over and served; figures as the engine counted them, where it did."""
        self._board.end(self, Usage(prompt_tokens, cached_tokens, output_tokens), served=True)

    def fail(self) -> None:
        """The call is over: refused, broken off, or left by its client."""
        self._board.end(self, None, served=False)
