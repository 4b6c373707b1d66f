"""Who is in the fleet: runs a source of replicas, its word guarded, and applies what is in force.

Lives in one event loop; nothing of it waits for another but the first calls, for the first list.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from random import Random
from typing import ParamSpec, TypeVar
from weakref import WeakMethod

import anyio
from cachetools import TTLCache

from .. import discovery
from ..backoff import Backoff, doubling
from ..config import DiscoveryConfig, RegistryConfig, StaticConfig
from ..config.urls import scrubbed
from ..core.fleet import Fleet
from ..core.members.guard import Guard
from ..core.members.membership import Membership, admitted
from ..core.model import Replica
from ..errors import BalancerError, ConfigError
from ..events import DiscoveryRecovered, DiscoveryTrouble, EventStream, ReplicasChanged
from .tending import Loop

OnChange = Callable[[], None]
P = ParamSpec("P")
T = TypeVar("T")

_CAUSES = 16
_CAUSE_CHARS = 1_000
_REMARKS = 256
_REMARK_AGAIN_S = 600.0
_FOREVER = float("inf")


class Roster:
    """``on_change`` is called when the fleet has changed.

    Raises ConfigError if the source cannot be made, or a fallback would be refused if a source named it.
    """

    def __init__(
        self,
        config: DiscoveryConfig,
        fleet: Fleet,
        events: EventStream,
        rng: Random,
        clock: Callable[[], float],
        on_change: OnChange,
    ) -> None:
        # A plugin whose section is a plain DiscoveryConfig has the defaults.
        settings = config if isinstance(config, RegistryConfig) else RegistryConfig(kind=config.kind)
        self._fixed = isinstance(config, StaticConfig)
        self._fleet = fleet
        self._events = events
        self._clock = clock
        self._on_change = on_change
        self._backoff = Backoff(doubling(settings.retry_max_s), rng)
        self._lasting_s = settings.retry_max_s
        self._mended_by: float | None = None
        self._guard = Guard(settings)
        self._fallback = _fallback(settings)
        self._start_timeout_s = settings.start_timeout_s
        self._start_by = _FOREVER
        self._known = self._overdue = self.falls_back = False
        self._troubled_since: float | None = None
        self._told: set[str] = set()
        self._remarked: TTLCache[str, bool] = TTLCache(_REMARKS, _REMARK_AGAIN_S, timer=clock)
        self._ready = anyio.Event()
        self._stirred = anyio.Event()
        self.source = config.kind
        fleet.nobody = f"{config.kind}: no answer yet"
        self._source = discovery.create(config, rng)
        if (membership := self._source.initial()) is not None:
            self._publish(membership)
        if self._fixed:
            self._ready.set()  # usable or not, no other will come

    @property
    def told_source(self) -> str:
        """Whose word is in force."""
        return f"{self.source} (fallback)" if self.falls_back else self.source

    @property
    def waiting(self) -> bool:
        """Whether there is no usable list yet, nor reason to give up on one."""
        return not self._ready.is_set()

    async def ready(self) -> None:
        """Wait for the first usable list, at most ``start_timeout_s`` from the start; the fleet tells what there is."""
        await self._ready.wait()

    def start(self, owner: object) -> list[Loop]:
        """Start following the source; the loops are the caller's to end, and ``close`` is to be called then.

        They also end when ``owner`` is collected; while they wait they do not refer to this roster, so that what it
        tells (events, their subscribers, a client that these know) can be collected with its owner.
        """
        if self._fixed:
            return []
        if self.waiting:
            self._ready = anyio.Event()
            self._start_by = self._clock() + self._start_timeout_s
        follow = partial(_follow, self._source, _weak(self._publish), _weak(self._failed), _weak(self._ended))
        tend = partial(_tend, _weak(self._next), _weak(self._tick))
        return [Loop("discovery", follow, owner=owner), Loop("membership", tend, owner=owner)]

    def close(self) -> None:
        """Let nobody wait any more."""
        self._ready.set()

    # -- the source ---------------------------------------------------------------------------------------------

    def _publish(self, membership: Membership) -> None:
        self.source = membership.source
        if self._mended_by == _FOREVER:
            # Many a source answers once and breaks, again and again: an answer alone mends nothing.
            self._mended_by = self._clock() + self._lasting_s
        self._guard.observe(membership, self._clock())
        self._apply()

    def _failed(self, cause: str) -> float:
        """The source gave no answer; when to try again, in seconds."""
        self._mended_by = _FOREVER
        self._guard.failed(_line(cause), self._clock())
        self._apply()
        return self._backoff.next_s()

    def _ended(self) -> None:
        """There will be no other list."""
        if not self._known:
            self._failed("it ended without naming a usable replica")
            self._give_up_waiting()

    # -- what is in force ---------------------------------------------------------------------------------------

    def _apply(self) -> None:
        replicas = self._guard.in_force or ()
        usable = any(replica.usable for replica in replicas)
        self._known = self._known or usable
        self.falls_back = bool(self._fallback) and not usable and (self._overdue or self._known)
        if self.falls_back:
            replicas = self._fallback
        self._fleet.nobody = f"{self.source}: {_line(self._guard.trouble) or 'no answer yet'}"
        self._update(replicas)
        self._tell()
        if usable:
            self._ready.set()
            self._start_by = _FOREVER
        self._stirred.set()

    def _update(self, replicas: tuple[Replica, ...]) -> None:
        change = self._fleet.update(replicas, self._clock())
        if change:
            self._on_change()
            self._events.emit(
                ReplicasChanged(
                    self._clock(),
                    self.told_source,
                    change.added,
                    change.removed,
                    change.changed,
                    len(replicas),
                )
            )

    def _tell(self) -> None:
        now, trouble = self._clock(), self._guard.trouble
        causes = [remark for remark in self._guard.remarks if remark not in self._remarked]
        self._remarked.update((remark, True) for remark in self._guard.remarks)
        if trouble and self._troubled_since is None:
            self._troubled_since = now
        if trouble and trouble not in self._told and len(self._told) < _CAUSES:
            self._told.add(trouble)
            causes.append(trouble)
        for cause in causes:
            event = DiscoveryTrouble(now, self.source, _line(cause), len(self._fleet.replicas))
            self._events.emit(event)
        if not trouble and self._troubled_since is not None and self._mended_by is None:
            self._events.emit(DiscoveryRecovered(now, self.source, now - self._troubled_since))
            self._troubled_since = None
            self._told.clear()

    # -- time ---------------------------------------------------------------------------------------------------

    def _next(self) -> tuple[float, anyio.Event]:
        """How long there is nothing to do, in seconds, and what tells that there is sooner."""
        due = min(
            self._start_by, *(at for at in (self._guard.due, self._mended_by) if at is not None), _FOREVER
        )
        self._stirred = anyio.Event()
        return max(0.0, due - self._clock()), self._stirred

    def _tick(self) -> None:
        now = self._clock()
        if self._mended_by is not None and self._mended_by <= now:
            self._mended_by = None
            self._backoff.reset()
            self._tell()
        if self._guard.due is not None and self._guard.due <= now:
            self._guard.tick(now)
            self._apply()
        if self._start_by <= now:
            self._give_up_waiting()

    def _give_up_waiting(self) -> None:
        self._overdue = True
        self._start_by = _FOREVER
        self._apply()
        self._ready.set()


async def _follow(
    source: discovery.Discovery,
    publish: discovery.Publish,
    failed: Callable[[str], float | None],
    ended: Callable[[], None],
) -> None:
    while True:
        try:
            await source.run(publish)
        except BalancerError as error:
            wait_s = failed(str(error))
        except Exception as error:  # a plugin's mistake must not take the fleet away
            wait_s = failed(f"{type(error).__name__}: {error}")
        else:
            ended()
            return
        await anyio.sleep(wait_s or 0.0)


async def _tend(waiting: Callable[[], tuple[float, anyio.Event] | None], tick: Callable[[], None]) -> None:
    while (wait := waiting()) is not None:
        wait_s, stirred = wait
        with anyio.move_on_after(wait_s):
            await stirred.wait()
        tick()


def _fallback(settings: RegistryConfig) -> tuple[Replica, ...]:
    given = Membership(tuple(map(discovery.replica_of, settings.fallback)), "fallback")
    if refused := admitted(given, settings.allowed_networks).remarks:
        raise ConfigError(f"discovery.fallback: {'; '.join(refused)}")
    return given.replicas


def _line(cause: str) -> str:
    """Fit for logs; what a registry says may be of any length."""
    cause = scrubbed(cause)
    return cause if len(cause) <= _CAUSE_CHARS else f"{cause[:_CAUSE_CHARS]}…"


def _weak(method: Callable[P, T]) -> Callable[P, T | None]:
    """The method while its object lives, which this does not keep alive; then nothing."""
    weakly = WeakMethod(method)

    def call(*args: P.args, **kwargs: P.kwargs) -> T | None:
        return None if (alive := weakly()) is None else alive(*args, **kwargs)

    return call
