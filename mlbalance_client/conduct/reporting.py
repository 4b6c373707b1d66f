"""Keeps a fleet's picture of its replicas fresh: one task a replica, that follows its load stream or asks it.

``auto`` tries the stream first, which says most, then finds out which engine it is. Whatever goes wrong with one
replica is its own trouble: it is asked less often, complained of, and picked by what else is known.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

import anyio
import anyio.lowlevel

from .. import load_reports
from ..config import LoadReportsConfig
from ..core.fleet import Fleet, Pick
from ..core.load.cadence import Cadence
from ..core.load.format import HEADER, LoadFormatError, PrefixDelta, decode_header
from ..core.load.prefix_delta import Hashing
from ..core.load.report import LoadReport
from ..core.model import Demand, Replica, ReplicaId
from ..core.placement.freshening import FRESH_S, whom_to_ask
from ..errors import ClientClosed
from ..load_reports import Auto, Complaints, Format, NoAnswer, NotThere, ReportError, orca
from ..load_reports.complaints import HeaderComplaints, doubtful
from ..load_reports.shared import Key, SharedPrefixes
from ..load_reports.stream import CALL_HEADER, StreamReader
from ..wire import Wire, WireError
from .asking import Asking

logger = logging.getLogger("mlbalance_client")

Headers = list[tuple[bytes, bytes]]

_SHARED = SharedPrefixes()
_SHORT_HEADER = HEADER.encode("ascii")
# With ``auto``: a replica without a load stream is tried again, for its server may have been replaced unnoticed.
_STREAM_AGAIN_S = 60.0
# The stream says something every two seconds; one that says nothing we understand for so long is as good as none.
_MEANINGLESS_S = 10.0
# How old may be what is known of whether anybody can be asked: to look at a thousand replicas costs more than a pick.
_LOOK_EVERY_S = 1.0
# Where calls are few, the next shall not find reports that are old.
_ASKED_IN_VAIN = 4


@dataclass(slots=True)
class _Followed:
    """A replica that is followed.

    speaks:  it was heard in the load stream's format; ``asked_s``: what asking it took last, if that went well
    streams: whether to look for a load stream next, ``streams_at``: or when to do so again
    of_pages, of_stream: what the log has been told of either
    """

    replica: Replica
    asking: Asking
    format: Format | None
    streams: bool
    cadence: Cadence
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    of_pages: Complaints = field(default_factory=Complaints)
    of_stream: Complaints = field(default_factory=Complaints)
    asks_now: anyio.Lock = field(default_factory=anyio.Lock)
    asked_s: float = float("inf")
    streams_at: float = float("inf")
    speaks: bool = False
    key: Key | None = None
    holder: int | None = None
    last_id: str | None = None
    calls_seen: int = 0

    @property
    def complaints(self) -> Complaints:
        """Of what it is asked for now."""
        return self.of_stream if self.streams else self.of_pages


def _asked_as(replica: Replica) -> tuple[object, ...]:
    """What asking it depends on."""
    return replica.url, replica.tls_name, replica.models


class Reporting:
    """One client's. ``client``: its name, by which replicas acknowledge its calls; known once it has started.

    Its chance is its own, so that when reports come does not change what chance decides in picks.
    """

    def __init__(
        self,
        config: LoadReportsConfig,
        fleet: Fleet,
        wire: Wire,
        clock: Callable[[], float],
        *,
        secret: bytes | None,
    ) -> None:
        self._config = config
        self._listens = config.kind != "none"
        self._asks_orca = config.asks_orca
        self._expects_orca = config.asks_orca or config.kind == "orca"
        self._on_demand_tokens = config.on_demand_tokens
        self._fleet = fleet
        self._wire = wire
        self._rng = Random()
        self._clock = clock
        self._hashing = Hashing.by(secret)
        self._wanted: dict[ReplicaId, Replica] = {}
        self._followed: dict[ReplicaId, _Followed] = {}
        self._heads: dict[ReplicaId, HeaderComplaints] = {}
        self._changed = anyio.Event()
        self._called = anyio.Event()
        self._calls = 0
        self._down: dict[ReplicaId, anyio.Event] = {}
        self._askable = False
        self._look_again_at = 0.0
        self._looks = load_reports.shared_looks()
        self.client = ""
        load_reports.create(config)  # a plugin that is not there is an error now, not a line in the log later

    def start(self, client: str, seed: int) -> None:
        """Before anything else, in the process that will run it."""
        self.client = client
        self._rng.seed(seed)

    @staticmethod
    def shared() -> SharedPrefixes:
        """What replicas publish, held once for all clients of the process."""
        return _SHARED

    @property
    def runs(self) -> bool:
        """Whether there is anything to run."""
        return self._config.kind not in ("none", "orca")

    # -- on the path of calls -----------------------------------------------------------------------------------

    def called(self) -> None:
        """There is a call: whoever was asked less, for want of calls, is asked again."""
        self._calls += 1
        if not self._called.is_set():
            self._called.set()

    def asks(self, pick: Pick, number: int) -> Headers:
        """Headers that a call carries for the sake of reports."""
        headers: Headers = []
        followed = self._followed.get(pick.replica.id)
        if followed is not None and followed.speaks:
            headers.append((CALL_HEADER, f"{self.client}.{number}".encode("ascii")))
        else:
            pick.unnumbered()
        if self._asks_orca:
            headers.append(orca.ASK)
        return headers

    def overheard(self, replica: ReplicaId, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """What an answer's headers say in passing."""
        if not self._listens:
            return
        if self._down and (answers := self._down.get(replica)) is not None:
            answers.set()
        now = self._clock()
        for name, value in headers:
            if len(name) == len(_SHORT_HEADER) and name.lower() == _SHORT_HEADER:
                try:
                    self._fleet.hear(replica, decode_header(value.decode("latin-1"), at=now), in_passing=True)
                except LoadFormatError:
                    return
                if (followed := self._followed.get(replica)) is not None:
                    followed.speaks = True
                return
        report = orca.from_headers(headers, now)
        if self._expects_orca and replica in self._wanted:
            if (heads := self._heads.get(replica)) is None:
                heads = self._heads[replica] = HeaderComplaints()
            if (trouble := heads.trouble(report)) is not None:
                self._say(replica, heads, trouble)
        if report is not None:
            self._fleet.hear(replica, report, in_passing=True)

    def freshens(self, demand: Demand) -> bool:
        """Whether a call is expensive enough to ask for its sake, and anybody can be asked."""
        least = self._on_demand_tokens
        if not least or demand.prompt_tokens < least or not self._followed or not self._fleet.compares:
            return False
        now = self._clock()
        if now >= self._look_again_at:
            self._look_again_at = now + _LOOK_EVERY_S
            self._askable = any(self._is_askable(followed) for followed in self._followed.values())
        return self._askable

    @staticmethod
    def _is_askable(followed: _Followed) -> bool:
        return not followed.speaks and followed.format is not None and followed.format.cheap

    async def freshen(self, demand: Demand) -> None:
        """Before an expensive pick: ask its best candidates how they are, where that is cheap and not known."""
        decision = self._fleet.choose(demand, self._clock())
        replicas, patience_s = decision.pool.replicas, self._config.timeout_s / 4

        def cost_s(place: int) -> float:
            followed = self._followed.get(replicas[place].id)
            if followed is None or not self._is_askable(followed):
                return float("inf")
            if not self._is_stale(followed):
                return 0.0
            return followed.asked_s if followed.asked_s < patience_s else float("inf")

        places = whom_to_ask(decision, demand.prompt_tokens, self._on_demand_tokens, cost_s)
        if places:
            with anyio.move_on_after(patience_s):
                async with anyio.create_task_group() as tasks:
                    for place in places:
                        tasks.start_soon(self._try_to_ask, self._followed[replicas[place].id])

    def _is_stale(self, followed: _Followed) -> bool:
        now = self._clock()
        report = self._fleet.report(followed.replica.id, now)
        return report is None or now - report.at > FRESH_S

    def kind_of(self, id_: ReplicaId) -> str | None:
        """Which engine a replica is, in the configuration's words, as far as is known."""
        if self._config.kind != "auto":
            return self._config.kind
        followed = self._followed.get(id_)
        return followed.format.found if followed is not None and isinstance(followed.format, Auto) else None

    # -- in the background --------------------------------------------------------------------------------------

    def update(self, replicas: Iterable[Replica]) -> None:
        """Follow these from now on, and let go of the others at once."""
        self._wanted = {replica.id: replica for replica in replicas}
        for id_, followed in list(self._followed.items()):
            wanted, known = self._wanted.get(id_), followed.replica
            if wanted is None or _asked_as(wanted) != _asked_as(known):
                del self._followed[id_]
                self._unpublish(followed)
                followed.scope.cancel()
                followed.asking.forget()
        for id_ in self._heads.keys() - self._wanted.keys():
            del self._heads[id_]
        self._changed.set()

    async def run(self) -> None:
        """Follow until cancelled."""
        async with anyio.create_task_group() as tasks:
            while True:
                self._changed = anyio.Event()
                for id_ in [id_ for id_ in self._wanted if id_ not in self._followed]:
                    try:
                        self._followed[id_] = followed = self._new(self._wanted[id_])
                    except Exception:
                        logger.exception("load reports of %s cannot be read", id_)
                    else:
                        tasks.start_soon(self._follow, followed)
                await self._changed.wait()

    def _new(self, replica: Replica) -> _Followed:
        config = self._config
        asking = Asking(
            self._wire, replica.url, replica.tls_name, config.timeout_s, config.token, self._clock
        )
        return _Followed(
            replica,
            asking,
            load_reports.create(config, replica.models, self._looks),
            streams=config.kind in ("auto", "stream"),
            cadence=Cadence(config.interval_s, self._rng, _ASKED_IN_VAIN),
        )

    async def _follow(self, followed: _Followed) -> None:
        cadence = followed.cadence
        try:
            with followed.scope:
                await anyio.sleep(cadence.first_s())
                while True:
                    if followed.format is not None and self._clock() >= followed.streams_at:
                        followed.streams = True
                    try:
                        pause_s = await (self._stream if followed.streams else self._poll)(followed)
                    except ReportError as error:
                        logger.debug("load report of %s: %s", followed.replica.id, error)
                        pause_s = self._missed(followed, error)
                    except ClientClosed:
                        return
                    except Exception as error:
                        why = f"reading them failed and is tried again: {error!r:.200}"
                        if self._say(followed.replica.id, followed.complaints, why):
                            logger.debug("following %s failed", followed.replica.id, exc_info=True)
                        pause_s = cadence.failed()
                    await self._pause(followed, pause_s)
        finally:
            self._unpublish(followed)

    def _missed(self, followed: _Followed, error: ReportError) -> float:
        """Nothing was heard; when to try again, and whether for pages or for a stream, if both may be there."""
        asked_for_stream = followed.streams
        if isinstance(error, NoAnswer) and error.refused:
            self._down[followed.replica.id] = anyio.Event()
        if trouble := self._trouble(followed, error):
            self._say(followed.replica.id, followed.complaints, trouble)
        if self._config.kind == "auto":
            followed.streams = not asked_for_stream
            followed.streams_at = self._clock() + _STREAM_AGAIN_S
            if asked_for_stream and isinstance(error, NotThere):
                return 0.0  # it is up, and has no stream: an engine that has just started need not wait to be seen
        return followed.cadence.failed()

    def _trouble(self, followed: _Followed, error: ReportError) -> str:
        """What to tell people: nothing of a replica that is down, nor of what ``auto`` never found there."""
        if isinstance(error, NoAnswer):
            return ""
        if isinstance(error, NotThere) and self._config.kind != "auto":
            return f"{error}; it has none of load_reports.kind {self._config.kind!r}"
        return str(error) if not isinstance(error, NotThere) or followed.complaints.understood else ""

    def _say(self, id_: ReplicaId, complaints: Complaints, trouble: str) -> bool:
        """Put into the log what is due of a trouble; an empty text: all is well. Whether there was anything."""
        if (line := complaints.hear(trouble, self._clock())) is None:
            return False
        logger.log(logging.WARNING if trouble else logging.INFO, "load reports of %s: %s", id_, line)
        return True

    async def _pause(self, followed: _Followed, pause_s: float) -> None:
        """Wait; if it is for want of calls, until there is one; if it refused the connection, until it answers one."""
        if (answers := self._down.get(followed.replica.id)) is not None:
            try:
                with anyio.move_on_after(pause_s):
                    await answers.wait()
                    await anyio.sleep(followed.cadence.first_s())
            finally:
                if self._down.get(followed.replica.id) is answers:
                    del self._down[followed.replica.id]
            return
        least_s = min(pause_s, followed.cadence.least_s)
        await anyio.sleep(least_s)
        if pause_s > least_s and self._calls == followed.calls_seen:
            if self._called.is_set():
                self._called = anyio.Event()
            with anyio.move_on_after(pause_s - least_s):
                await self._called.wait()
                await anyio.sleep(followed.cadence.first_s())  # not all replicas at once

    async def _poll(self, followed: _Followed) -> float:
        calls, followed.calls_seen = self._calls != followed.calls_seen, self._calls
        async with followed.asks_now:
            took_s = await self._ask(followed)
        return followed.cadence.answered(took_s, calls=calls)

    async def _ask(self, followed: _Followed) -> float:
        """Ask once; how long it took. Raises ReportError."""
        assert followed.format is not None
        began = self._clock()
        followed.asked_s = float("inf")
        report = await followed.format.read(followed.asking, began)
        followed.asked_s = self._clock() - began
        self._say(followed.replica.id, followed.of_pages, doubtful(report))
        self._heard(followed, report)
        return followed.asked_s

    async def _try_to_ask(self, followed: _Followed) -> None:
        """For a call that cannot wait for long, and cares about the outcome only if it is good."""
        try:
            async with followed.asks_now:
                if self._is_stale(followed):
                    await self._ask(followed)
        except Exception as error:
            logger.debug("load report of %s: %s", followed.replica.id, error)

    def _heard(self, followed: _Followed, report: LoadReport) -> None:
        if self._followed.get(followed.replica.id) is followed:
            self._fleet.hear(followed.replica.id, report)

    async def _stream(self, followed: _Followed) -> float:
        """Follow the load stream until it ends; when to come back. Raises ReportError."""
        try:
            stream = await followed.asking.stream(self.client, followed.last_id)
        except ReportError:
            followed.last_id = None
            self._unpublish(followed)
            raise
        reader = StreamReader(self.client, self._hashing)
        understood_at, heard = self._clock(), False
        try:
            async for chunk in stream:
                for found in reader.feed(chunk, self._clock()):
                    understood_at, heard = self._clock(), True
                    await self._take(followed, found)
                    await self._slow_down(reader)
                await self._slow_down(reader)
                if heard or reader.doubt:
                    trouble = f"{reader.doubt}; such events are dropped" if reader.doubt else ""
                    self._say(followed.replica.id, followed.of_stream, trouble)
                if self._clock() - understood_at > _MEANINGLESS_S:
                    break
        except WireError as error:
            logger.debug("load stream of %s: %s", followed.replica.id, error)
        finally:
            followed.speaks = False
            followed.last_id = reader.last_id or followed.last_id
            await stream.aclose()
        if not heard:
            raise NoAnswer("the load stream says nothing that is understood")
        return followed.cadence.answered(0.0, calls=True)

    async def _slow_down(self, reader: StreamReader) -> None:
        if reader.flooded(self._clock()):
            await anyio.sleep(1.0)  # a flood waits in the replica's own buffers

    async def _take(self, followed: _Followed, found: LoadReport | PrefixDelta) -> None:
        if self._followed.get(followed.replica.id) is not followed:
            return
        if isinstance(found, LoadReport):
            followed.speaks = True
            self._heard(followed, found)
            return
        key = (followed.replica.url, found.epoch)
        if followed.key != key:
            self._unpublish(followed)
            followed.key, followed.holder = key, _SHARED.join(key)
        self._fleet.publishes(followed.replica.id, followed.holder)
        for _ in _SHARED.apply(key, found):
            await anyio.lowlevel.cancel_shielded_checkpoint()

    def _unpublish(self, followed: _Followed) -> None:
        if followed.key is None:
            return
        if self._followed.get(followed.replica.id, followed) is followed:
            self._fleet.publishes(followed.replica.id, None)
        _SHARED.leave(followed.key)
        followed.key = followed.holder = None
