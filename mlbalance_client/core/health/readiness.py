"""Which replicas say that they take no calls now: starting, asleep, draining or overloaded; wholly or for one model.

One that is warming up takes calls, for only calls make it warm. What a replica said counts until its report expires.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..load.report import LoadReport, State

_COLD = frozenset({State.STARTING, State.ASLEEP})
_CLOSED = _COLD | {State.DRAINING, State.OVERLOADED}


@dataclass(frozen=True, slots=True)
class _Said:
    at: float
    whole: bool
    cold: bool
    models: frozenset[str]


class Readiness:
    """``expiry_s``: how long a report counts."""

    def __init__(self, expiry_s: float) -> None:
        self._expiry_s = expiry_s
        self._said: dict[int, _Said] = {}

    def hear(self, place: int, report: LoadReport) -> bool:
        """A report came; one that tells nothing of readiness changes nothing. Whether a model has opened by it."""
        if report.state is None and not report.models:
            return False
        if (said := self._said.get(place)) is not None and said.at > report.at:
            return False
        state = report.state
        models = frozenset(_closed(report.models))
        self._said[place] = _Said(report.at, state in _CLOSED, state in _COLD, models)
        return said is not None and bool(said.models - models)

    def cold(self, place: int, now: float) -> bool:
        """Whether the replica has yet to start or to wake; who has too much to do or is on its way out has not."""
        said = self._said.get(place)
        return said is not None and said.cold and now - said.at < self._expiry_s

    def closed(self, model: str | None, now: float) -> int:
        """The places that take no call for ``model`` now, as a bit set."""
        mask = 0
        for place, said in self._said.items():
            if (said.whole or model in said.models) and now - said.at < self._expiry_s:
                mask |= 1 << place
        return mask

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._said.pop(place, None)


def _closed(models: Mapping[str, str]) -> list[str]:
    return [name for name, state in models.items() if state in _CLOSED]
