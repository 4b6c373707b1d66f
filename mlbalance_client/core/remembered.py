"""A table of bounded size, on the path of every call: ``cachetools`` takes six calls of Python for a look-up."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(Generic[K, V]):
    """At most ``most`` values; the one that was not asked for for the longest goes first."""

    __slots__ = ("_most", "_values")

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value of a key, or None."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def __setitem__(self, key: K, value: V) -> None:
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self._most:
            self._values.popitem(last=False)

    def __len__(self) -> int:
        return len(self._values)

    def items(self) -> Iterable[tuple[K, V]]:
        """All of them, with their keys."""
        return self._values.items()

    def values(self) -> Iterable[V]:
        """All of them."""
        return self._values.values()

    def clear(self) -> None:
        """Forget all."""
        self._values.clear()
