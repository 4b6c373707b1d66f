"""What a replica says of its load, whatever the format it says it in. Unknown is ``None``, never zero.

Figures come from strangers: ``LoadReport.sane``, which a fleet takes of every report that it hears, drops those that
cannot be true, so that a replica which lies loses at most its own traffic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from types import MappingProxyType

MOST_REQUESTS = 100_000
"""No server has more of them running or waiting; a page that says so is broken."""

STREAM, ANSWER = "stream", "answer"
REPORTER = frozenset({STREAM, ANSWER})
"""Sources of what our reporter says: by its load stream, and in the heads of answers."""

_NOTHING: Mapping[str, str] = MappingProxyType({})
_MOST = 1e15
_REQUESTS = frozenset({"running", "waiting"})
# A share may be a little above 1, by rounding or by what is held twice; 41 is a percentage, or nonsense.
_MOST_SHARE = 1.1
_SHARES = frozenset({"kv_used", "gpu_utilization"})
_MOST_NAMES = 256


def share(value: float) -> float | None:
    """A share of a whole: cut at 1 where it is a little more, unknown where it is much more or cannot be."""
    return min(1.0, value) if 0 <= value <= _MOST_SHARE else None


class State(StrEnum):
    """Whether a replica takes calls. ``ASLEEP``: its weights are off the GPU; the wire format knows the others."""

    STARTING = "starting"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    OVERLOADED = "overloaded"
    ASLEEP = "asleep"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """A replica's load at one moment.

    source:          which format said so (``vllm``, ``sglang``, ``orca``, ...); of our reporter, ``stream`` or, in an
                     answer's head, ``answer``
    at:              when it held, in seconds of the client's monotonic clock
    running:         requests in the batch; ``waiting``: requests not yet in it
    prefill_tokens:  uncached prompt tokens still to be computed, of running and waiting requests
    waiting_tokens:  the same as far as it waits; told alone, what runs is not known
    decode_tokens:   output tokens still to come of all requests, as the replica expects
    expected_wait_s: seconds until a new request's prefill would begin, as the replica estimates
    prefill_tokens_per_s, decode_tokens_per_s: how fast the replica works such tokens off while it is at it
    batch_limit:     requests that can run at once
    kv_used:         share (0 to 1) of the KV memory held by running requests; of several ranks, the fullest one's
    gpu_utilization, gpu_memory_*: of several GPUs, the busiest one's and the fullest one's
    utilization:     share of the server's capacity in use (ORCA's application or CPU utilization; may pass 1)
    prefix_queries, prefix_hits: tokens asked of and found in the prefix cache, ever; they fall at a restart
    prefilled_tokens: prompt tokens of requests that have had their first token, ever, cached ones among them
    models, adapters: name to the value of a State, where the replica tells them apart
    replica:         the identity that the replica itself reports
    epoch:           another one after a restart; ``seq``: the replica's own count of its reports within it
    t_ms:            milliseconds since the epoch began, on the replica's clock
    acked:           the newest of this client's calls counted in the report
    free_requests, free_tokens: the room that the replica grants to this client
    pushed:          it came by a load stream, which tells of changes as they come: silence means that there are none
    partial:         one of several server processes speaks, not the whole replica
    doubts:          what of the replica's pages was not understood, in words; for one log line, not for the pick
    """

    source: str
    at: float
    state: State | None = None
    running: int | None = None
    waiting: int | None = None
    prefill_tokens: int | None = None
    waiting_tokens: int | None = None
    decode_tokens: int | None = None
    expected_wait_s: float | None = None
    prefill_tokens_per_s: float | None = None
    decode_tokens_per_s: float | None = None
    batch_limit: int | None = None
    kv_used: float | None = None
    kv_capacity_tokens: int | None = None
    gpu_utilization: float | None = None
    gpu_memory_used_bytes: int | None = None
    gpu_memory_total_bytes: int | None = None
    utilization: float | None = None
    prefix_queries: int | None = None
    prefix_hits: int | None = None
    prefilled_tokens: int | None = None
    models: Mapping[str, str] = field(default_factory=lambda: _NOTHING, hash=False)
    adapters: Mapping[str, str] = field(default_factory=lambda: _NOTHING, hash=False)
    replica: str | None = None
    epoch: str | None = None
    seq: int | None = None
    t_ms: int | None = None
    acked: int | None = None
    subscribers: int | None = None
    free_requests: int | None = None
    free_tokens: int | None = None
    pushed: bool = False
    partial: bool = False
    doubts: tuple[str, ...] = ()

    @property
    def gpu_memory(self) -> float | None:
        """Share of the GPU's memory in use."""
        used, total = self.gpu_memory_used_bytes, self.gpu_memory_total_bytes
        return None if used is None or not total else share(used / total)

    @property
    def empty(self) -> bool:
        """Whether it says nothing at all."""
        return self.state is None and not self.models and all(getattr(self, f) is None for f in _FIGURES)

    def sane(self) -> LoadReport:
        """The report without what cannot be: figures negative, not finite, absurd or none at all, a state that is none.

        Shares are as ``share`` has them.
        """
        wrong: dict[str, object] = {}
        for name in _FIGURES:
            value = getattr(self, name)
            if value is None:
                continue
            most = MOST_REQUESTS if name in _REQUESTS else _MOST
            if (
                not isinstance(value, (int, float)) or not 0 <= value <= most
            ):  # NaN too, and the hugest integers
                wrong[name] = None
            elif name in _SHARES and value > 1:
                wrong[name] = share(value)
        if self.state is not None and not isinstance(self.state, State):
            wrong["state"] = None
        for name in ("models", "adapters"):
            if len(getattr(self, name)) > _MOST_NAMES:
                wrong[name] = _NOTHING
        return replace(self, **wrong) if wrong else self  # type: ignore[arg-type]


_TEXTS = frozenset(
    {"source", "at", "state", "models", "adapters", "replica", "epoch", "pushed", "partial", "doubts"}
)
_FIGURES = tuple(f.name for f in fields(LoadReport) if f.name not in _TEXTS)
