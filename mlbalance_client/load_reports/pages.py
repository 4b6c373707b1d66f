"""Getting a replica's pages: what must be there, what may be, and what need not be asked for again and again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from urllib.parse import quote

from mlbalance_client.core.load.report import State

from .base import Fetch, NoAnswer, NotThere, Page, ReportError
from .figures import mapping, parsed

TEXT = "text/plain"
JSON = "application/json"

_HIDDEN = frozenset({401, 403, 405, 501})
_NO_SUCH_PAGE = _HIDDEN | {404}
_MOST_SKIPS = 64
_MODELS_A_READ = 4
_MOST_MODELS = 64


class Pages:
    """A replica's pages. One that is missing is asked for again at the next need of it, then ever less often, but at
    every 64th: it may have been away for a moment, and servers change.
    """

    def __init__(self) -> None:
        self._skips: dict[str, int] = {}
        self._misses: dict[str, int] = {}

    async def get(self, fetch: Fetch, path: str, *, port: int | None = None, accept: str = JSON) -> Page:
        """A page that answers 200. Raises NotThere if there is none, ReportError for any other status."""
        page = await fetch(path, port=port, accept=accept)
        if page.status in _NO_SUCH_PAGE:
            raise self.none(f"{path}: answers {page.status}")
        if page.status != 200:
            raise ReportError(f"{path}: answers {page.status}")
        return page

    async def get_any(self, fetch: Fetch, path: str) -> Page:
        """A page with whatever status it has. Raises NotThere if there is none."""
        page = await fetch(path, accept=JSON)
        if page.status in _NO_SUCH_PAGE:
            raise self.none(f"{path}: answers {page.status}")
        return page

    async def maybe(
        self, fetch: Fetch, path: str, *, port: int | None = None, accept: str = JSON
    ) -> Page | None:
        """A page with whatever status it has, or None if the replica has none; so too a port where nobody answers."""
        if skips := self._skips.get(path):
            self._skips[path] = skips - 1
            return None
        try:
            page = await fetch(path, port=port, accept=accept)
        except NoAnswer:
            if port is None:
                raise
            page = None
        if page is None or page.status in _NO_SUCH_PAGE:
            misses = self._misses[path] = self._misses.get(path, 0) + 1
            self._skips[path] = min(_MOST_SKIPS, 2 ** min(misses - 1, 16) - 1)
            return None
        self._misses.pop(path, None)
        return page

    def none(self, why: str) -> NotThere:
        """The error that ends a reading in vain. After it come longer pauses, so that the next asks for every page."""
        self._skips.clear()
        self._misses.clear()
        return NotThere(why)

    async def first(self, fetch: Fetch, *paths: str) -> tuple[str, Page]:
        """The first page that is there, with its path. Raises NotThere if none is, ReportError for a bad status."""
        for path in paths:
            page = await self.maybe(fetch, path)
            if page is not None and page.status != 200:
                raise ReportError(f"{path}: answers {page.status}")
            if page is not None:
                return path, page
        raise NotThere(f"none of {', '.join(paths)} is there")


class ModelStates:
    """Readiness of single models by the open inference protocol, a few of them at each read, in turn."""

    def __init__(self, models: Iterable[str]) -> None:
        self._states: dict[str, str | None] = dict.fromkeys(islice(sorted(models), _MOST_MODELS))

    def also(self, models: Iterable[str]) -> None:
        """More that have been heard of."""
        for model in models:
            if model and len(self._states) < _MOST_MODELS:
                self._states.setdefault(model)

    async def read(self, fetch: Fetch) -> Mapping[str, str]:
        """What is known of each by now; a model that is not ready is STARTING.

        So is one that the server does not have (404): MLServer says so of a model that was unloaded, and answers calls
        for it with 404.
        """
        for model in list(islice(self._states, _MODELS_A_READ)):
            page = await fetch(f"/v2/models/{quote(model, safe='')}/ready", accept=JSON)
            del self._states[model]
            self._states[model] = None if page.status in _HIDDEN else (ready(page) or State.STARTING).value
        return {model: state for model, state in self._states.items() if state is not None}


def ready(page: Page) -> State | None:
    """READY if a page of the open inference protocol says so.

    The status counts first, a body that says no second: Triton's is empty, KServe's specification has a slip of the
    pen (``live`` for ``ready``), MLServer's is as specified.
    """
    if page.status != 200:
        return None
    try:
        said = mapping(parsed(page.body, "")) if page.body else {}
    except ReportError:
        said = {}
    return None if said.get("ready", said.get("live")) is False else State.READY
