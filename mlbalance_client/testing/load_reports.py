"""Whether a format of load reports keeps the promises of its Protocol.

A plugin's test gives a maker of fresh formats and the pages of one replica of its engine:

    await check_format(lambda: MyFormat(MyConfig()), {"/my/load": b'{"running": 3}'})

A promise that is broken raises AssertionError, which says which one it was and by what page; docs/load-reports.md lists
them. The plainest come first: that it can be made, then what it reads in its own pages, then all that may go wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from random import Random

import anyio

from mlbalance_client.core.load.report import LoadReport, State
from mlbalance_client.load_reports import Fetch, Format, NoAnswer, Page, ReportError
from mlbalance_client.load_reports.base import MOST_PAGES

Script = Mapping[str | tuple[int, str], bytes | Page]
"""Pages by path, or by port and path."""

MOST_PAGES_TO_RECOGNISE = 4
MOST_PAGES_TO_READ = MOST_PAGES

_AT = 1_000.0
_WITHIN_S = 5.0
_NO_FIGURES = frozenset({"source", "at", "state", "models", "adapters", "pushed", "partial", "doubts"})
_FIGURES = tuple(field.name for field in fields(LoadReport) if field.name not in _NO_FIGURES)
_CUTS = 12
_GARBAGE = (
    b"", b"\x00\xff\xfe", b"{", b"[]", b"{}", b"null", b"[1, null]", b"1e999", b"[" * 10_000, b"NaN\n", b"a 1\n",
    b"<!doctype html><title>Welcome</title>",
)  # fmt: skip


class ScriptedReplica:
    """A replica made of pages, by path or by (port, path). A Fetch.

    A page is a body, answered with 200, or a whole Page. What has no page answers 404, on another port nothing;
    ``down``: nothing answers. ``asked`` lists what was asked for.
    """

    def __init__(self, pages: Script, *, other: Page | None = None) -> None:
        self.pages = dict(pages)
        self.down = False
        self.asked: list[str] = []
        self._other = other

    async def __call__(self, path: str, *, port: int | None = None, accept: str = "*/*") -> Page:
        """As a Fetch."""
        self.asked.append(path if port is None else f":{port}{path}")
        if self.down:
            raise NoAnswer("scripted: down", refused=True)
        page = self.pages.get(path if port is None else (port, path))
        if page is None and port is not None:
            raise NoAnswer("scripted: nobody listens", refused=True)
        if page is None:
            return self._other or Page(404, {}, b'{"detail":"Not Found"}')
        return Page(200, {}, page) if isinstance(page, bytes) else page


async def check_format(make: Callable[[], Format], pages: Script, *, seed: int = 0) -> LoadReport:
    """Raises AssertionError if a promise is broken; returns what the pages were read as.

    ``make`` gives a fresh format at each call. ``pages``: those of one replica that is ready.
    """
    _check_making(make)
    report = await _check_reading(make, pages)
    await _check_recognition(make, pages)
    await _check_bad_pages(make, pages, Random(seed))
    await _check_absence(make, pages)
    assert await _read(make(), ScriptedReplica(pages), "its own pages, after bad ones") == report, (
        "a format forgets nothing of one replica into another: fresh ones read alike"
    )
    return report


def _check_making(make: Callable[[], Format]) -> None:
    try:
        form = make()
    except Exception as error:
        raise AssertionError(f"a format can be made: {error!r}") from error
    assert isinstance(getattr(form, "kind", None), str), "a format has a kind, its name in the configuration"
    assert isinstance(getattr(form, "cheap", None), bool), "a format says whether it is cheap: True or False"


async def _check_recognition(make: Callable[[], Format], pages: Script) -> None:
    own = ScriptedReplica(pages)
    assert await make().recognises(own), "a format recognises its own pages"
    assert len(own.asked) <= MOST_PAGES_TO_RECOGNISE, f"to recognise takes few pages, not {own.asked}"
    for page in (
        Page(404, {}, b""),
        Page(200, {}, b"<html></html>"),
        Page(503, {}, b"busy"),
        Page(401, {}, b""),
    ):
        stranger = ScriptedReplica({}, other=page)
        assert not await make().recognises(stranger), (
            f"a server that answers all with {page} is not recognised"
        )


async def _check_reading(make: Callable[[], Format], pages: Script) -> LoadReport:
    replica = ScriptedReplica(pages)
    report = await _read(make(), replica, "its own pages")
    assert not isinstance(report, ReportError), f"the pages of a ready replica are a report, not {report!r}"
    assert report.source, "a report says where it is from"
    assert report.state is None or isinstance(report.state, State), (
        f"a state is a State, not {report.state!r}"
    )
    wrong = [name for name in _FIGURES if getattr(report, name) != getattr(report.sane(), name)]
    assert not wrong, "a ready replica's figures can be, not " + ", ".join(
        f"{name} {getattr(report, name)!r}" for name in wrong
    )
    assert report.at == _AT, "a fresh report is of the moment that was given"
    assert not report.empty, "the pages of a ready replica say something"
    assert not report.doubts, f"the pages of a ready replica are understood: {report.doubts}"
    assert len(replica.asked) <= MOST_PAGES_TO_READ, f"to read takes few pages, not {replica.asked}"
    return report


async def _check_absence(make: Callable[[], Format], pages: Script) -> None:
    absent = await _read(make(), ScriptedReplica({}), "a server without its pages")
    assert isinstance(absent, ReportError), "a server that has none of the pages gives a ReportError"
    replica = ScriptedReplica(pages)
    used = make()
    await _read(used, replica, "its own pages")
    replica.down = True
    gone = await _read(used, replica, "a server that is down")
    assert isinstance(gone, ReportError), "a server that is down gives NoAnswer"


async def _check_bad_pages(make: Callable[[], Format], pages: Script, rng: Random) -> None:
    for where, page in pages.items():
        body = page if isinstance(page, bytes) else page.body
        for bad in (*_GARBAGE, *_damaged(body, rng)):
            await _read(make(), ScriptedReplica({**pages, where: bad}), f"{where} as {bad[:60]!r}")
        for status in (204, 302, 404, 429, 500, 503):
            await _read(
                make(), ScriptedReplica({**pages, where: Page(status, {}, b"")}), f"{where} with {status}"
            )
    silent = dict.fromkeys(pages, b"")
    report = await _read(make(), ScriptedReplica(silent), "empty pages")
    known = [name for name in _FIGURES if getattr(report, name, None) is not None]
    assert not known, f"empty pages say nothing, yet {known} are known"


def _damaged(body: bytes, rng: Random) -> Iterator[bytes]:
    for _ in range(_CUTS if body else 0):
        at = rng.randrange(len(body))
        yield body[:at]
        yield body[:at] + bytes([rng.randrange(256)]) + body[at + 1 :]
    for worse in (b"-1", b"NaN", b"1e308", b"1" * 400, b"null", b'"x"', b"true"):
        yield _figures_replaced(body, worse)
    lines = body.splitlines(keepends=True)
    rng.shuffle(lines)
    yield b"".join(lines)
    yield body + body


def _figures_replaced(body: bytes, by: bytes) -> bytes:
    return re.sub(rb"(?<=[ :])-?\d+(?:\.\d+)?(?=[\s,}\]])", by, body)


async def _read(form: Format, fetch: Fetch, of: str) -> LoadReport | ReportError:
    try:
        with anyio.move_on_after(_WITHIN_S) as within:
            report = await form.read(fetch, _AT)
    except ReportError as error:
        return error
    except Exception as error:
        raise AssertionError(f"{of}: raises nothing but ReportError, not {error!r}") from error
    assert not within.cancelled_caught, (
        f"{of}: read returns as soon as it has its pages, not after {_WITHIN_S:g} s"
    )
    assert isinstance(report, LoadReport), f"{of}: read returns a LoadReport, not {report!r:.80}"
    return report
