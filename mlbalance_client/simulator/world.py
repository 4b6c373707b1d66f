"""The product's core in virtual time, on the model's engines: the same objects that run live."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from mlbalance_client.core.fingerprint import Fingerprint, fingerprint
from mlbalance_client.core.fleet import Fleet, FleetSettings, Pick
from mlbalance_client.core.model import Replica, ReplicaId, Usage, Verdict

from .model.engine import Engine
from .model.measures import CallRecord
from .model.replay import replay
from .model.spec import Emission, EmissionKind, EngineSpec, Job
from .model.traces import BYTES_PER_TOKEN, Trace, TraceCall, prompt_text

Fingerprints = Callable[[TraceCall], Fingerprint]


def fingerprint_of(call: TraceCall) -> Fingerprint:
    """Of the very bytes that an OpenAI chat body with the call's text gives."""
    return fingerprint(f"model\nsim\nuser\n{prompt_text(call)}\n".encode())


class Clients:
    """``count`` independent clients of one fleet; each call goes through a random one of them."""

    def __init__(
        self,
        settings: FleetSettings,
        replicas: int,
        count: int,
        seed: int,
        fingerprints: Fingerprints = fingerprint_of,
    ) -> None:
        self._rng = Random(seed)
        self.fleets = [Fleet(settings, Random(self._rng.random())) for _ in range(count)]
        self._fingerprints = fingerprints
        self._picks: dict[str, tuple[Pick, Job]] = {}
        for fleet in self.fleets:
            fleet.update(Replica(ReplicaId(f"replica-{i}"), f"http://replica-{i}") for i in range(replicas))

    def place(self, now: float, call: TraceCall, job: Job) -> int:
        """Pick and charge, as a live client does."""
        fleet = self.fleets[int(self._rng.random() * len(self.fleets))]
        demand = fleet.demand(
            self._fingerprints(call),
            text_bytes=call.prompt_tokens * BYTES_PER_TOKEN,
            output_limit=call.output_tokens,
            model="sim",
            route="openai.chat",
        )
        pick = fleet.pick(demand, now)
        self._picks[job.id] = pick, job
        return int(pick.replica.id.removeprefix("replica-"))

    def heard(self, emission: Emission) -> None:
        """Tokens as they come, to readers who wait for them, and ends with an engine's usage figures."""
        pick, job = self._picks[emission.job_id]
        if emission.kind is EmissionKind.FIRST:
            pick.first_content(emission.t)
        elif emission.kind is EmissionKind.TOKENS:
            pick.piece(float("-inf"), emission.t)
        elif emission.kind is EmissionKind.FINISHED:
            usage = Usage(job.prompt_tokens, emission.cached_tokens, emission.tokens)
            pick.settle(Verdict.OK, emission.t, usage)
            del self._picks[emission.job_id]


def simulate(
    trace: Trace,
    settings: FleetSettings,
    *,
    replicas: int = 8,
    clients: int = 1,
    seed: int = 0,
    spec: EngineSpec | None = None,
    fingerprints: Fingerprints = fingerprint_of,
) -> tuple[list[CallRecord], Sequence[Engine]]:
    """Replay a trace through the product's own clients; the records and the engines, for their true state."""
    engines = [Engine(spec or EngineSpec(), emit_tokens=True) for _ in range(replicas)]
    placer = Clients(settings, replicas, clients, seed, fingerprints)
    return replay(trace, engines, placer), engines
