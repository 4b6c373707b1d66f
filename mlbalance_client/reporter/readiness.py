"""In which state a replica is, as its answers and its server's life show."""

from __future__ import annotations

from ..core.load.report import State

_MOST_MODELS = 64
_STATES = tuple(State)


class Readiness:
    """``overloaded_s``: how long a refusal (429, 503) counts, unless a success comes first.

    ``starting``: by the word of who owns the board; ``booting``: the server's own startup is not done.
    """

    def __init__(self, overloaded_s: float) -> None:
        self.starting = self.booting = False
        self.draining = False
        self.closing = False
        self.models: dict[str, str] = {}
        self._overloaded_s = overloaded_s
        self._warm = False
        self._refused_at: float | None = None

    def state(self, now: float) -> State:
        """The state now."""
        refused = self._refused_at is not None and now - self._refused_at < self._overloaded_s
        if self.draining or self.closing:
            return State.DRAINING
        if self.starting or self.booting or (refused and not self._warm):
            return State.STARTING
        if refused:
            return State.OVERLOADED
        return State.READY if self._warm else State.WARMING

    def succeeded(self, model: str | None, began: float) -> bool:
        """A call that came at ``began`` got what it asked for; whether that is news."""
        news = not self._warm
        self._warm = True
        if self._refused_at is not None and began >= self._refused_at:
            self._refused_at, news = None, True
        if model is not None and self.models.get(model) != State.READY.value:
            self.set_model(model, State.READY)
            news = True
        return news

    def refused(self, now: float) -> None:
        """The server said that it is too busy, or not up yet."""
        self._refused_at = now

    def set_model(self, model: str, state: State | str) -> None:
        """Say how one model is; the oldest of more than 64 are forgotten. Raises ValueError for an unknown state."""
        if state not in _STATES:
            raise ValueError(f"state is {state!r:.40}; known: {', '.join(_STATES)}")
        self.models = {**self.models, model[:256]: str(state)}
        if len(self.models) > _MOST_MODELS:
            self.models.pop(next(iter(self.models)))
