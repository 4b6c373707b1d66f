"""A call that stands at a replica without content: when it is slow, and what that says of its replica."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.fleet import Pick

# A call that has stood for so many times what is slow has stood for long.
_LONG_DELAYS = 3.0


@dataclass(slots=True, eq=False, kw_only=True)
class Standing:
    """Since ``began``; slow after ``slow_s``. ``looked_at``: when it was last found slow, or began."""

    pick: Pick
    began: float
    slow_s: float
    looked_at: float

    def found_slow(self, now: float, *, speaks: bool = True) -> float:
        """It is slow, which speaks against its replica; when to look again: when it has stood half as long again."""
        if speaks:
            self.pick.silent(now, self.looked_at, patient=not self.long(now))
        self.looked_at = now
        return now + max(self.slow_s, (now - self.began) / 2)

    def long(self, now: float) -> bool:
        """Whether it has stood for long."""
        return now - self.began >= _LONG_DELAYS * self.slow_s
