"""The values that the core speaks in. Tokens are tokens, times are seconds, identities are strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple, NewType

from .fingerprint import Fingerprint

ReplicaId = NewType("ReplicaId", str)

_NO_LABELS: Mapping[str, str] = MappingProxyType({})


class ReplicaState(StrEnum):
    """What the registry says of a replica. Only the first two get new calls."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    OUT = "out"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Replica:
    """One model server, as discovery names it.

    ``id`` is stable across re-addressing (a registry's id, else host:port) and is what rendezvous hashes.
    ``models``: the models it serves (labels ``model`` or ``models``); empty means any.
    ``priority``: lower first, as in DNS SRV. ``because``: why it is in its state, where the registry says so.
    ``tls_name``: what an https replica's certificate must be for; None for the host of its URL.
    """

    id: ReplicaId
    url: str
    weight: float = 1.0
    zone: str | None = None
    priority: int = 0
    labels: Mapping[str, str] = field(default_factory=lambda: _NO_LABELS, hash=False)
    models: frozenset[str] = frozenset()
    state: ReplicaState = ReplicaState.HEALTHY
    because: str = ""
    tls_name: str | None = None

    @property
    def usable(self) -> bool:
        """Whether new calls may go here."""
        return self.state in (ReplicaState.HEALTHY, ReplicaState.DEGRADED)

    def serves(self, model: str | None) -> bool:
        """Whether a call for ``model`` may go here; a call that names none may go anywhere."""
        return not self.models or model is None or model in self.models


class Usage(NamedTuple):
    """What a replica said it did, in tokens; ``None`` where it did not say."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None


class Verdict(StrEnum):
    """How a charge was settled."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"


class Demand(NamedTuple):
    """What one call asks of a replica, as far as picking goes.

    ``prompt_tokens`` and ``output_tokens`` are estimates. ``text_bytes`` is what the prompt estimate rests on
    and ``extra_tokens`` what was added for parts that are not text. ``route`` tells kinds of calls apart whose
    outputs differ in length. ``session`` is a 64-bit key. ``blind``: no first content will be seen, only the end.
    ``replayable``: it may be sent to another replica if one fails it; only such calls try out a replica.
    """

    fingerprint: Fingerprint
    prompt_tokens: int
    output_tokens: int
    text_bytes: int = 0
    extra_tokens: int = 0
    model: str | None = None
    route: str = ""
    session: int | None = None
    blind: bool = False
    replayable: bool = True

    @property
    def tokens(self) -> int:
        """Prompt and output."""
        return self.prompt_tokens + self.output_tokens
