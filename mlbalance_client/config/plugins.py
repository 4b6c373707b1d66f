"""Kinds by name: built-in ones, and those that installed packages bring as entry points.

An entry point has the kind as its name and loads to a class with an attribute ``config_type``, a section derived from
that of the group; the class is called with such a configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from mlbalance_client.errors import ConfigError

from .base import InvalidConfig, Problem, Section, given, nearest

ConfigT = TypeVar("ConfigT", bound=Section)


class Kinds(Generic[ConfigT]):
    """The kinds of one ``group`` of entry points; ``word`` says in messages of what they are kinds."""

    def __init__(
        self, group: str, word: str, base: type[ConfigT], built_in: Mapping[str, type[ConfigT]]
    ) -> None:
        self.group = group
        self._word = word
        self._base = base
        self._built_in = built_in

    def names(self) -> list[str]:
        """The kinds that can be used here and now."""
        return sorted({*self._built_in, *(point.name for point in entry_points(group=self.group))})

    def config_type(self, kind: str) -> type[ConfigT]:
        """The configuration of a kind. Raises ConfigError if it is not installed or broken."""
        if built_in := self._built_in.get(kind):
            return built_in
        found = getattr(self.load(kind), "config_type", None)
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise ConfigError(
                f"{self._word} kind {kind!r}: its plugin has no config_type that is a {self._base.__name__}"
            )
        return found

    def section(self, value: Any, default: str | None = None) -> Any:
        """A table as the section of its kind, for a field of the group; all else as it is. Raises InvalidConfig.

        ``default``: the kind of a table that names none; without it the kind is required.
        """
        if not isinstance(value, Mapping):
            return value
        kind = value.get("kind", default)
        if not isinstance(kind, str):
            fault = "is required" if kind is None else f"given {given(kind)}"
            raise InvalidConfig([Problem(("kind",), f"{fault}; known: {', '.join(self.names())}")])
        try:
            model = self.config_type(kind)
        except ConfigError as error:
            raise InvalidConfig([Problem(("kind",), str(error))]) from None
        try:
            return model.model_validate(dict(value))
        except InvalidConfig as error:
            raise InvalidConfig(self._whose(problem, model) for problem in error.problems) from None

    def _whose(self, problem: Problem, model: type[ConfigT]) -> Problem:
        """With the kinds that have a key which this one has not."""
        if len(problem.path) != 1 or (key := str(problem.path[0])) in model.model_fields:
            return problem
        kinds = sorted(kind for kind, other in self._built_in.items() if key in other.model_fields)
        return (
            problem._replace(message=f"{problem.message}; kinds with it: {', '.join(kinds)}")
            if kinds
            else problem
        )

    def load(self, kind: str) -> Any:
        """The class behind an entry point. Raises ConfigError if there is none or its import fails."""
        point = self._entry_point(kind)
        try:
            return point.load()
        except Exception as error:
            raise ConfigError(
                f"{self._word} kind {kind!r}: its plugin {point.value!r} cannot be loaded: {error}"
            ) from error

    def _entry_point(self, kind: str) -> EntryPoint:
        for point in entry_points(group=self.group):
            if point.name == kind:
                return point
        raise ConfigError(f"{self._word} kind {kind[:40]!r} is not installed; {nearest(kind, self.names())}")
