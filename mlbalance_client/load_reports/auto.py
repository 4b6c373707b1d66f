"""Finding out which engine a replica is, and remembering it.

``Search`` decides, without I/O: whom to ask now, and when to look again. ``Auto`` asks. A look costs at most a dozen
small pages, one after the other, and ends at the first that does not answer; looks that find nothing are spaced out
to one a minute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlbalance_client.core.load.report import LoadReport

from .base import Fetch, Format, NoAnswer, NotThere, ReportError
from .looks import Looks, Turn
from .probes import Once

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class Search:
    """Which kind a replica is, as far as is known. ``kinds`` from the most telling to the vaguest."""

    def __init__(self, kinds: tuple[str, ...]) -> None:
        self._kinds = kinds
        self._doubted = True
        self._looked_at = self._not_before = float("-inf")
        self._pause_s = _FIRST_PAUSE_S
        self._epoch: str | None = None
        self._queries: int | None = None
        self._doubts: tuple[str, ...] = ()
        self.known: str | None = None

    def due(self, at: float) -> tuple[str, ...]:
        """The kinds to ask for now, in this order; none while the known one is believed or a pause lasts."""
        if not self._doubted or at < self._not_before:
            return ()
        first = () if self.known is None else (self.known,)
        return (*first, *(kind for kind in self._kinds if kind != self.known))

    def found(self, kind: str | None, at: float) -> None:
        """A look has ended, with a kind or with nothing."""
        self.known = kind
        self._doubted = kind is None
        self._epoch = self._queries = None
        self._looked_at = at
        self._not_before = at + self._pause_s
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)

    def failed(self, error: ReportError) -> None:
        """The known kind could not be read. Refused: the server is gone, what comes back may be another."""
        if isinstance(error, NotThere) or (isinstance(error, NoAnswer) and error.refused):
            self._doubted = True

    def saw(self, report: LoadReport, at: float) -> None:
        """The known kind was read. A new epoch, or a counter that falls, means a restart; doubts that were not there
        before may mean another server. Several servers behind one URL look so at every reading: pauses grow until a
        reading later than the look's own gives no cause.
        """
        restarted = (self._epoch is not None and report.epoch not in (None, self._epoch)) or (
            self._queries is not None
            and report.prefix_queries is not None
            and report.prefix_queries < self._queries
        )
        self._epoch = report.epoch or self._epoch
        self._queries = report.prefix_queries if report.prefix_queries is not None else self._queries
        if restarted or (report.doubts and report.doubts != self._doubts):
            self._doubted = True
        elif at > self._looked_at:
            self._pause_s = _FIRST_PAUSE_S
            self._not_before = float("-inf")
        self._doubts = report.doubts


class Auto:
    """Reads a replica in the format that it turns out to speak. ``makers``: a fresh format by its kind.

    ``looks``: shared with those who read the client's other replicas, if there are any.
    """

    kind = "auto"

    def __init__(self, makers: Mapping[str, Callable[[], Format]], looks: Looks | None = None) -> None:
        self._makers = makers
        self._looks = Looks(tuple(makers)) if looks is None else looks
        self._search = Search(tuple(makers))
        self._format: Format | None = None

    @property
    def cheap(self) -> bool:
        """As the format that was found."""
        return self._format is not None and self._format.cheap

    @property
    def found(self) -> str | None:
        """The kind that was found, for people to see."""
        return self._search.known

    async def recognises(self, fetch: Fetch) -> bool:
        """Whether any format does, by a whole look."""
        return await self._recognised(tuple(self._makers), Once(fetch)) is not None

    async def read(self, fetch: Fetch, at: float) -> LoadReport:
        """Look if that is due, then read. Raises NotThere if the replica speaks none of the formats."""
        if kinds := self._search.due(at):
            self._format = await self._recognised(kinds, Once(fetch))
            self._search.found(self._format.kind if self._format else None, at)
        if self._format is None:
            raise NotThere("none of the known formats is recognised")
        try:
            report = await self._format.read(fetch, at)
        except ReportError as error:
            self._search.failed(error)
            raise
        self._search.saw(report, at)
        return report

    async def _recognised(self, kinds: tuple[str, ...], fetch: Fetch) -> Format | None:
        turn = Turn()
        for kind in kinds:
            await self._looks.may_ask_for(kind, turn)
            candidate = self._makers[kind]()
            if await candidate.recognises(fetch):
                self._looks.found(kind)
                return candidate
        return None
