"""Keeps a fleet's picture of its replicas fresh: one task a replica, that follows its load stream or asks it.

``auto`` tries the stream first, which says most, then finds out which engine it is. Whatever goes wrong with one
replica is its own trouble: it is asked less often, complained of once, and picked by what else is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from random import Random

import anyio

from . import load_reports
from .asking import Asking
from .config import LoadReportsConfig
from .core.cadence import Cadence
from .core.fingerprint import SCHEME
from .core.fleet import Fleet
from .core.load_format import HEADER, LoadFormatError, PrefixDelta, decode_header
from .core.load_report import LoadReport
from .core.model import Demand, Replica, ReplicaId
from .core.prefix_delta import KEYED_SCHEME
from .load_reports import Complaints, Format, NoAnswer, NotThere, ReportError, orca
from .load_reports.shared import Key, SharedPrefixes
from .load_reports.stream import CALL_HEADER, StreamReader
from .wire import Wire, WireError

logger = logging.getLogger("mlbalance_client")

Headers = list[tuple[bytes, bytes]]

_SHARED = SharedPrefixes()
_SHORT_HEADER = HEADER.encode("ascii")
_FRESH_S = 0.25
_ASKED = 2


@dataclass(slots=True)
class _Followed:
    """A replica that is followed. ``speaks``: it was heard in the load stream's format."""

    replica: Replica
    asking: Asking
    format: Format | None
    scope: anyio.CancelScope
    complaints: Complaints
    speaks: bool = False
    key: Key | None = None
    last_id: str | None = None
    calls: int = 0
    calls_seen: int = 0
    doubted: bool = False


def _refused(error: ReportError) -> bool:
    return isinstance(error, NoAnswer) and error.refused


class Reporting:
    """One client's. ``client``: its name, by which replicas acknowledge its calls; known once it has started."""

    def __init__(
        self,
        config: LoadReportsConfig,
        fleet: Fleet,
        wire: Wire,
        rng: Random,
        clock: Callable[[], float],
        *,
        keyed: bool,
    ) -> None:
        self._config = config
        self._fleet = fleet
        self._wire = wire
        self._rng = rng
        self._clock = clock
        self._scheme = KEYED_SCHEME if keyed else SCHEME
        self._wanted: dict[ReplicaId, Replica] = {}
        self._followed: dict[ReplicaId, _Followed] = {}
        self._changed = anyio.Event()
        self.client = ""

    @staticmethod
    def shared() -> SharedPrefixes:
        """What replicas publish, held once for all clients of the process."""
        return _SHARED

    @property
    def runs(self) -> bool:
        """Whether there is anything to run."""
        return self._config.kind not in ("none", "orca")

    # -- on the path of calls -----------------------------------------------------------------------------------

    def asks(self, replica: ReplicaId, number: int) -> Headers:
        """Headers that a call carries for the sake of reports."""
        headers: Headers = []
        followed = self._followed.get(replica)
        if followed is not None:
            followed.calls += 1
            if followed.speaks:
                headers.append((CALL_HEADER, f"{self.client}.{number}".encode("ascii")))
        if self._config.asks_orca:
            headers.append(orca.ASK)
        return headers

    def overheard(self, replica: ReplicaId, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """What an answer's headers say in passing."""
        if self._config.kind == "none":
            return
        now = self._clock()
        for name, value in headers:
            if len(name) == len(_SHORT_HEADER) and name.lower() == _SHORT_HEADER:
                try:
                    self._fleet.hear(replica, decode_header(value.decode("latin-1"), at=now))
                except LoadFormatError:
                    return
                if (followed := self._followed.get(replica)) is not None:
                    followed.speaks = True
                return
        report = orca.from_headers(headers, now)
        if report is not None and not report.empty:
            self._fleet.hear(replica, report)

    def freshens(self, demand: Demand) -> bool:
        """Whether a call is expensive enough to ask for its sake."""
        least = self._config.on_demand_tokens
        return bool(least) and demand.prompt_tokens >= least and bool(self._followed)

    async def freshen(self, demand: Demand) -> None:
        """Before an expensive pick: ask the two best candidates how they are, where that is cheap and not known."""
        least = self._config.on_demand_tokens
        now = self._clock()
        decision = self._fleet.choose(demand, now)
        best = sorted(decision.candidates, key=lambda each: each.score_s)[:_ASKED]
        stale = []
        for candidate in best:
            if demand.prompt_tokens - candidate.hit_tokens < least:
                return
            followed = self._followed.get(decision.pool.replicas[candidate.place].id)
            if followed is None or followed.speaks or followed.format is None or not followed.format.cheap:
                continue
            report = self._fleet.load.report(candidate.place, now)
            if report is None or now - report.at > _FRESH_S:
                stale.append(followed)
        if stale:
            with anyio.move_on_after(self._config.timeout_s / 4):
                async with anyio.create_task_group() as tasks:
                    for followed in stale:
                        tasks.start_soon(self._try_to_ask, followed)

    # -- in the background --------------------------------------------------------------------------------------

    def update(self, replicas: Iterable[Replica]) -> None:
        """Follow these from now on."""
        self._wanted = {replica.id: replica for replica in replicas}
        self._changed.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._changed = anyio.Event()
                for id_, followed in list(self._followed.items()):
                    wanted = self._wanted.get(id_)
                    if wanted is None or wanted.url != followed.replica.url:
                        del self._followed[id_]
                        followed.scope.cancel()
                for id_, replica in self._wanted.items():
                    if id_ not in self._followed:
                        self._followed[id_] = followed = self._new(replica)
                        tasks.start_soon(self._follow, followed)
                await self._changed.wait()

    def _new(self, replica: Replica) -> _Followed:
        config = self._config
        asking = Asking(self._wire, replica.url, config.timeout_s, config.token, self._clock)
        format_ = load_reports.create(config, replica.models)
        return _Followed(replica, asking, format_, anyio.CancelScope(), Complaints())

    async def _follow(self, followed: _Followed) -> None:
        cadence = Cadence(self._config.interval_s, self._rng)
        streams = self._config.kind in ("auto", "stream")
        try:
            with followed.scope:
                await anyio.sleep(cadence.first_s())
                while True:
                    try:
                        pause_s = await (
                            self._stream(followed, cadence) if streams else self._poll(followed, cadence)
                        )
                    except ReportError as error:
                        logger.debug("load report of %s: %s", followed.replica.id, error)
                        pause_s = cadence.failed()
                        if self._config.kind == "auto":
                            # Nothing listens: what comes back may be another server. No such page: it has no stream.
                            streams = (streams and not isinstance(error, NotThere)) or _refused(error)
                    except Exception:
                        logger.exception("following %s failed; it will be tried again", followed.replica.id)
                        pause_s = cadence.failed()
                    await anyio.sleep(pause_s)
        finally:
            self._unpublish(followed)

    async def _poll(self, followed: _Followed, cadence: Cadence) -> float:
        took_s = await self._ask(followed)
        calls, followed.calls_seen = followed.calls != followed.calls_seen, followed.calls
        return cadence.answered(took_s, calls=calls)

    async def _ask(self, followed: _Followed) -> float:
        """Ask once; how long it took. Raises ReportError."""
        assert followed.format is not None
        began = self._clock()
        self._heard(followed, await followed.format.read(followed.asking, began))
        return self._clock() - began

    async def _try_to_ask(self, followed: _Followed) -> None:
        with suppress(ReportError):
            await self._ask(followed)

    def _heard(self, followed: _Followed, report: LoadReport) -> None:
        if line := followed.complaints.about(report):
            logger.warning("%s: %s", followed.replica.id, line)
        if not report.empty:
            self._fleet.hear(followed.replica.id, report)

    async def _stream(self, followed: _Followed, cadence: Cadence) -> float:
        """Follow the load stream until it ends; when to come back. Raises ReportError."""
        try:
            stream = await followed.asking.stream(self.client, followed.last_id)
        except ReportError as error:
            if isinstance(error, NotThere) or _refused(error):
                followed.last_id = None
                self._unpublish(followed)
            raise
        reader = StreamReader(self.client, self._scheme)
        heard = False
        try:
            async for chunk in stream:
                for found in reader.feed(chunk, self._clock()):
                    heard = followed.speaks = True
                    if isinstance(found, PrefixDelta):
                        self._published(followed, found)
                    else:
                        self._heard(followed, found)
                if reader.doubt and not followed.doubted:
                    followed.doubted = True
                    logger.warning(
                        "load stream of %s: %s; such events are dropped", followed.replica.id, reader.doubt
                    )
                if reader.flooded(self._clock()):
                    await anyio.sleep(1.0)  # a flood waits in the replica's own buffers
        except WireError as error:
            logger.debug("load stream of %s: %s", followed.replica.id, error)
        finally:
            followed.speaks = False
            followed.last_id = reader.last_id or followed.last_id
            await stream.aclose()
        return cadence.answered(0.0, calls=True) if heard else cadence.failed()

    def _published(self, followed: _Followed, delta: PrefixDelta) -> None:
        key = (followed.replica.url, delta.epoch)
        if followed.key != key:
            self._unpublish(followed)
            followed.key = key
            self._fleet.publishes(followed.replica.id, _SHARED.join(key))
        _SHARED.apply(key, delta)

    def _unpublish(self, followed: _Followed) -> None:
        if followed.key is not None:
            self._fleet.publishes(followed.replica.id, None)
            _SHARED.leave(followed.key)
            followed.key = None
