"""What can be wrong with a simulated replica, settable at start and at run time."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

_KINDS: tuple[tuple[str, Any, str], ...] = (
    *(
        (name, int | float, "a number")
        for name in ("slow", "stall_share", "stall_factor", "failing", "retry_after_s")
    ),
    *(
        (name, int, "a whole number")
        for name in ("cold_calls", "failing_status", "reject_status", "break_after", "max_queue")
    ),
    *((name, bool, "true or false") for name in ("reject_in_band", "hanging", "loading")),
)


@dataclass(frozen=True, slots=True)
class Faults:
    """All off by default.

    slow:          all of the engine's times are multiplied by this
    stall_share:   share of calls whose first token takes ``stall_factor`` times as long, the others unhindered
    cold_calls:    the first so many calls run 8 times slower
    failing:       share of calls that get ``failing_status`` at once
    reject_status: every call gets this status (429 or 503), with ``retry_after_s`` if that is not negative
    reject_in_band: every call gets status 200 and an overload error as its first event, as vLLM may do
    hanging:       calls are accepted and never answered
    loading:       every route answers 503, as llama.cpp does while it loads
    break_after:   streams break off, unterminated, after so many events; 0: never
    max_queue:     calls beyond so many waiting are refused with vLLM's 503; 0: no limit
    """

    slow: float = 1.0
    stall_share: float = 0.0
    stall_factor: float = 15.0
    cold_calls: int = 0
    failing: float = 0.0
    failing_status: int = 500
    reject_status: int = 0
    retry_after_s: float = -1.0
    reject_in_band: bool = False
    hanging: bool = False
    loading: bool = False
    break_after: int = 0
    max_queue: int = 0

    def __post_init__(self) -> None:
        for name, kind, words in _KINDS:
            value = getattr(self, name)
            if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
                raise ValueError(f"{name} must be {words}, not {value!r}")
        for name in ("cold_calls", "break_after", "max_queue"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)!r}")
        if not 0 < self.slow < 1e6:
            raise ValueError(f"slow must be a factor above 0, not {self.slow!r}")
        for name in ("failing", "stall_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be a share from 0 to 1, not {getattr(self, name)!r}")
        if not 1 <= self.stall_factor < 1e6:
            raise ValueError(f"stall_factor must be a factor of at least 1, not {self.stall_factor!r}")
        for name in ("failing_status", "reject_status"):
            status = getattr(self, name)
            if status and not 400 <= status <= 599:
                raise ValueError(f"{name} must be a status from 400 to 599, not {status!r}")

    @classmethod
    def of(cls, given: Any) -> Faults:
        """From a JSON object. Raises ValueError naming what is wrong, and for an unknown fault those there are."""
        if not isinstance(given, dict):
            raise ValueError("faults must be a JSON object")  # noqa: TRY004 - one class for all that is wrong
        known = {field.name for field in fields(cls)}
        if unknown := set(given) - known:
            raise ValueError(
                f"unknown fault(s) {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
            )
        return cls(**given)

    @property
    def turn_calls_away(self) -> bool:
        """Whether not all calls are served."""
        return bool(self.failing or self.reject_status or self.break_after) or (
            self.reject_in_band or self.hanging or self.loading
        )

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)
