"""How long an exchange may take."""

from __future__ import annotations

from dataclasses import dataclass

from mlbalance_client.errors import FailureKind


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds, None for no limit. ``read_s`` is between two reads, the first byte's wait included.

    ``key``: where they are set, for messages; ``{}`` in it stands for connect, read or write.
    """

    connect_s: float | None
    read_s: float | None
    write_s: float | None
    key: str = ""

    def as_extension(self) -> dict[str, float | None]:
        """As httpcore takes them."""
        return {"connect": self.connect_s, "read": self.read_s, "write": self.write_s, "pool": None}

    def in_words(self) -> dict[FailureKind, str]:
        """Each, by the failure it leads to."""
        return {
            FailureKind.CONNECT_TIMEOUT: self._said("connect", self.connect_s),
            FailureKind.READ_TIMEOUT: self._said("read", self.read_s),
            FailureKind.WRITE_TIMEOUT: self._said("write", self.write_s),
        }

    def _said(self, name: str, allowed_s: float | None) -> str:
        key = f" ({self.key.format(name)})" if self.key else ""
        return "the time allowed" if allowed_s is None else f"{allowed_s:g} s{key}"
