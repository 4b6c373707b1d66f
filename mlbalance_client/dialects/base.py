"""What a dialect knows: of a request, what is prompt and what may be sent twice; of an answer, where its first
content, its usage figures and its errors are. Pure: bytes in, facts out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

from mlbalance_client.core.model import Usage

# MLServer says 400 of a model that it is still loading, and older Tritons of any that they do not know.
_LACKING = frozenset({400, 404})


class Reading(NamedTuple):
    """What a dialect reads from one request.

    prompt:       canonical bytes to fingerprint (docs/dialects.md); empty if there is nothing to place by
    prompt_bytes: UTF-8 bytes of text that become tokens; the token estimate rests on them
    extra_tokens: estimated tokens of parts that are not text
    output_limit: the caller's cap on output tokens, over all choices
    session:      a conversation that the body itself names

    Where work is rows or bytes rather than tokens, ``prompt_bytes`` is their size: what counts is the comparison.
    """

    dialect: str
    model: str | None = None
    prompt: bytes = b""
    prompt_bytes: int = 0
    extra_tokens: int = 0
    output_limit: int | None = None
    streaming: bool = False
    replayable: bool = True
    session: str | None = None


class Sign(Enum):
    """What the bytes of an answer have shown so far, before the commit point."""

    PREAMBLE = "preamble"
    CONTENT = "content"
    ERROR = "error"


class Lacks(Enum):
    """What a replica says that it does not have, though another may."""

    MODEL = "model"
    ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class InBandError:
    """An engine's error, as its answer's body tells it. ``status``: the code it gives there, 500 if none.

    ``missing``: what its words say is not there; ``busy``: whether they say that there is too much to do.
    """

    status: int
    message: str
    missing: Lacks | None = None
    busy: bool = False

    def lacks(self, status: int) -> Lacks | None:
        """What the replica does not have, if the answer's status is one that says so."""
        return self.missing if status in _LACKING else None


class Ending(NamedTuple):
    """What an answer's end tells. ``complete``: the dialect's own mark of a whole answer was seen."""

    usage: Usage | None
    error: InBandError | None
    complete: bool


@dataclass(frozen=True, slots=True)
class ModelCheck:
    """The smallest call that shows whether a model answers.

    ``tokens``: about what it costs, its prompt with the model's chat template included. ``not_ready``: statuses below
    500 that mean that the model is not.
    """

    method: str
    path: str
    body: bytes = b""
    tokens: int = 0
    not_ready: frozenset[int] = frozenset()


class AnswerWatch(Protocol):
    """Watches one answer go by.

    ``commits_at_head``: the commit point is the answer's head, before any content. ``has_mark``: answers of this form
    show by themselves whether they are whole.
    """

    error: InBandError | None
    has_mark: bool

    @property
    def commits_at_head(self) -> bool: ...

    def feed(self, chunk: bytes) -> Sign:
        """Take in bytes until CONTENT or ERROR is returned: the commit point."""

    def passed(self, chunk: bytes) -> None:
        """Bytes after the commit point; must cost next to nothing."""

    def end(self) -> Ending:
        """The answer has ended."""


class Dialect(Protocol):
    """One API that replicas speak."""

    @property
    def name(self) -> str:
        """Such as ``openai.chat``."""

    def matches(self, method: str, path: str) -> bool:
        """Whether a request is of this dialect; ``path`` may carry a prefix."""

    def read(self, path: str, body: bytes) -> Reading:
        """Read a request. Never raises: what cannot be read is taken as plain bytes."""

    def watch(self, status: int, content_type: str) -> AnswerWatch:
        """A watch for an answer that begins like this."""


@runtime_checkable
class ChecksModels(Protocol):
    """A dialect that knows how to check a model. Optional: replicas of others are checked by their server alone."""

    def model_check(self, path: str, model: str | None) -> ModelCheck | None:
        """The check of a model that is called at ``path``, if there is one. ``model``: None if calls name none."""
