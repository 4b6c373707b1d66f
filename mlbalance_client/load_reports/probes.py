"""What tells engines apart at first sight. ``auto`` asks each page once a look, however many formats want it."""

from __future__ import annotations

from .base import Fetch, Page, ReportError
from .figures import Fields, mapping, objects, parsed
from .pages import JSON, TEXT

OWNERS = frozenset({"vllm", "sglang", "llamacpp", "tensorrt_llm"})
"""What engines write as the owner of their models; others leave it to the user, or write the model's name."""


async def model_owner(fetch: Fetch) -> str:
    """``owned_by`` of the first model in ``/v1/models``, or an empty text."""
    rows = objects((await fields(fetch, "/v1/models")).get("data"))
    owner = rows[0].get("owned_by") if rows else None
    return owner if isinstance(owner, str) else ""


async def metrics(fetch: Fetch) -> bytes:
    """The body of the page of metrics, or nothing."""
    page = await fetch("/metrics", accept=TEXT)
    return page.body if page.status == 200 else b""


async def fields(fetch: Fetch, path: str, *, of_status: tuple[int, ...] = (200,)) -> Fields:
    """The JSON object of a page, or an empty one."""
    page = await fetch(path, accept=JSON)
    try:
        return mapping(parsed(page.body, path)) if page.status in of_status else {}
    except ReportError:
        return {}


class Once:
    """A fetch that asks for a page at most once."""

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._pages: dict[tuple[str, int | None], Page] = {}

    async def __call__(self, path: str, *, port: int | None = None, accept: str = "*/*") -> Page:
        """As a Fetch."""
        page = self._pages.get((path, port))
        if page is None:
            page = self._pages[path, port] = await self._fetch(path, port=port, accept=accept)
        return page
