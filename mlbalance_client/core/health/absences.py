"""Replicas that have answered that they lack a model: they rest for its calls alone, as ``pushback`` has it for all."""

from __future__ import annotations

from collections.abc import Callable

from ..remembered import Remembered
from .pushback import Pushback

_MOST_MODELS = 256


class Absences:
    """Who lacks which model. ``rests``: a fresh table of rests."""

    def __init__(self, rests: Callable[[], Pushback]) -> None:
        self._rests = rests
        self._models: Remembered[str | None, Pushback] = Remembered(_MOST_MODELS)

    def said(self, place: int, model: str | None, now: float) -> None:
        """The replica has answered that it does not have the model."""
        if (rests := self._models.get(model)) is None:
            rests = self._models[model] = self._rests()
        rests.failed(place, now)

    def served(self, place: int, model: str | None, sent: float) -> None:
        """The replica served a call for the model that was sent at ``sent``."""
        if self._models and (rests := self._models.get(model)) is not None:
            rests.succeeded(place, sent)

    def lacking(self, model: str | None, now: float) -> int:
        """The places that get no call for the model now, as a bit set."""
        rests = self._models.get(model) if self._models else None
        return 0 if rests is None else rests.resting(now)

    def models(self, place: int, now: float) -> list[str]:
        """The models of which the replica gets no call now, in order."""
        return sorted(
            m for m, rests in self._models.items() if m is not None and rests.rests_s(place, now) > 0.0
        )

    def drop(self, place: int) -> None:
        """The replica is gone, or has changed what it has."""
        for rests in self._models.values():
            rests.drop(place)
