"""What deciding costs beside ``json.loads`` of the same body: fingerprint, pick and charge; 8 and 1,000 replicas."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from random import Random
from statistics import median

from mlbalance_client import dialects
from mlbalance_client.config.picking import PickingConfig
from mlbalance_client.core.fingerprint import fingerprint
from mlbalance_client.core.fleet import Fleet
from mlbalance_client.core.model import Replica, ReplicaId, Usage, Verdict
from mlbalance_client.dialects.base import Reading

from .text import conversations

ALTERNATIONS = 15
BODIES = 400


def bodies_us(work: Callable[[bytes], object], bodies: Sequence[bytes]) -> float:
    """CPU microseconds a body."""
    began = time.process_time()
    for body in bodies:
        work(body)
    return (time.process_time() - began) / len(bodies) * 1e6


class Deciding:
    """One client's core, warm, with eight calls under way."""

    def __init__(self, replicas: int) -> None:
        self._fleet = Fleet(PickingConfig(), Random(1))
        self._fleet.update(Replica(ReplicaId(f"r{n}"), f"http://r{n}") for n in range(replicas))
        self._now = 0.0
        self._open = [
            self._pick(Reading("openai.chat", prompt=bytes(9000), prompt_bytes=9000)) for _ in range(8)
        ]

    def _pick(self, reading: Reading) -> Callable[[Verdict, float, Usage], None]:
        self._now += 0.005
        demand = self._fleet.demand(
            fingerprint(reading.prompt),
            text_bytes=reading.prompt_bytes,
            output_limit=reading.output_limit,
            model=reading.model,
            route=reading.dialect,
        )
        return self._fleet.pick(demand, self._now).settle

    def time_us(self, readings: Sequence[Reading]) -> float:
        """CPU microseconds a decision; settling the calls is left out of the figure."""
        spent = 0.0
        for reading in readings:
            began = time.process_time()
            settle = self._pick(reading)
            spent += time.process_time() - began
            self._open.append(settle)
            self._open.pop(0)(Verdict.OK, self._now, Usage(reading.prompt_bytes // 4, 0, 64))
        return spent / len(readings) * 1e6


def compare(*, ascii_only: bool) -> None:
    """Print the medians for one kind of text, and their ratios."""
    bodies = conversations(BODIES, 32 * 1024, stream=True, ascii_only=ascii_only)
    dialect = dialects.find("POST", "/v1/chat/completions")
    readings = [dialect.read("/v1/chat/completions", body) for body in bodies]
    few, many = Deciding(8), Deciding(1000)
    rows = [
        (
            bodies_us(json.loads, bodies),
            bodies_us(lambda body: dialect.read("/v1/chat/completions", body), bodies),
            few.time_us(readings),
            many.time_us(readings),
        )
        for _ in range(ALTERNATIONS)
    ]
    parse, read, eight, thousand = (median(row[i] for row in rows) for i in range(4))
    size = sum(map(len, bodies)) // len(bodies)
    print(
        f"decision: CPU us per call, median of {ALTERNATIONS} alternations, bodies of {size} bytes", end=", "
    )
    print("ASCII" if ascii_only else "some letters beyond ASCII")
    print(f"  json.loads of the body               {parse:7.1f}   1.00")
    print(f"  the dialect's reading of it          {read:7.1f}   {read / parse:.2f}")
    print(f"  fingerprint, pick, charge: 8         {eight:7.1f}   {eight / parse:.2f}   target at most 2")
    print(f"  fingerprint, pick, charge: 1,000     {thousand:7.1f}   {thousand / parse:.2f}")
    print(f"  1,000 replicas against 8                       {thousand / eight:.2f}   target at most 1.5")


def main() -> None:
    """For text in ASCII, and beyond it."""
    compare(ascii_only=True)
    compare(ascii_only=False)
