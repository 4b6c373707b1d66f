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
    state: State | None
    whole: bool
    models: Mapping[str | None, str]


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
        models: dict[str | None, str] = {
            name: state for name, state in report.models.items() if state in _CLOSED
        }
        self._said[place] = _Said(report.at, report.state, report.state in _CLOSED, models)
        return said is not None and bool(said.models.keys() - models)

    def cold(self, place: int, now: float) -> bool:
        """Whether the replica has yet to start or to wake; who has too much to do or is on its way out has not."""
        said = self._said.get(place)
        return said is not None and said.state in _COLD and now - said.at < self._expiry_s

    def closed(self, model: str | None, now: float) -> int:
        """The places that take no call for ``model`` now, as a bit set."""
        mask = 0
        for place, said in self._said.items():
            if (said.whole or model in said.models) and now - said.at < self._expiry_s:
                mask |= 1 << place
        return mask

    def why_closed(self, place: int, model: str | None) -> str:
        """What one of ``closed`` has said, in words."""
        said = self._said[place]
        return (
            f"it says itself that it is {said.state}"
            if said.whole
            else f"it says itself that the model is {said.models[model]}"
        )

    def drop(self, place: int) -> None:
        """The replica is gone."""
        self._said.pop(place, None)
