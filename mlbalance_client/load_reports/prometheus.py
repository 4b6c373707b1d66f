"""Prometheus' text format, of a few wanted metrics only.

A page of vLLM has 670 lines and 55 kB, and a client reads one a second of each replica. So lines are chosen by their
first bytes, and only those are parsed. Names are exact: ``vllm:num_requests_waiting`` is not
``vllm:num_requests_waiting_by_reason``. ``docs/decisions/0011-metrics-reader.md`` says why this is not a library's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from . import figures
from .base import MOST_BYTES, ReportError

_LABEL = r'[ \t]*([a-zA-Z_]\w*)[ \t]*=[ \t]*"((?:[^"\\]|\\.)*)"[ \t]*'
_LABELS = re.compile(_LABEL + r"(?:,|$)", re.ASCII)
_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?|[Ii]nf|[Nn]a[Nn])"
# No two parts side by side can match the same text: a hostile line costs time in proportion to its length.
_LINE = re.compile(
    r"([a-zA-Z_:][\w:]*)"
    r'(?:[ \t]*\{((?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?'
    rf"[ \t]*(?<=[ \t}}])({_NUMBER})"
    r"(?:[ \t]+-?\d+(?:\.\d+)?)?(?:[ \t]+\#.*)?[ \t\r]*",
    re.ASCII,
)
_ESCAPES = re.compile(r'\\([\\"n])')
_MOST_SERIES = 4096


class Series(NamedTuple):
    """One line of a metric."""

    labels: Mapping[str, str]
    value: float

    def label(self, name: str) -> str:
        """A label, or an empty text."""
        return self.labels.get(name, "")


class Metrics:
    """What a page says of the wanted metrics; ``doubts``: what of it is malformed."""

    def __init__(self, series: dict[str, list[Series]], doubts: tuple[str, ...]) -> None:
        self._series = series
        self.doubts = doubts

    def __bool__(self) -> bool:
        return bool(self._series)

    def series(self, *names: str, **labels: str) -> list[Series]:
        """Lines of the first of ``names`` that is there, so that two names of one figure are never added up."""
        for name in names:
            if found := self._series.get(name):
                return [each for each in found if all(each.label(k) == v for k, v in labels.items())]
        return []

    def total(self, *names: str, **labels: str) -> float | None:
        """The sum over all lines; None if there are none or one is no number."""
        return figures.total(each.value for each in self.series(*names, **labels))

    def most(self, *names: str, **labels: str) -> float | None:
        """The greatest of all lines, under the same terms."""
        return figures.most(each.value for each in self.series(*names, **labels))

    def lacks(self, value: object, *names: str) -> tuple[str, ...]:
        """The doubt, in words, if ``value``, which is read from the first of ``names`` that is there, is unknown."""
        if value is not None:
            return ()
        there = next((name for name in names if self._series.get(name)), None)
        return (f"no {names[0]}",) if there is None else (f"{there} has no usable value",)


class Reader:
    """Reads the metrics named at its making, and no others."""

    def __init__(self, *names: str) -> None:
        self._names = frozenset(names)
        self._starts = tuple(name.encode() for name in names)

    def __call__(self, page: bytes) -> Metrics:
        """Raises ReportError if the page is too long. Of lines that are there twice the last one counts."""
        if len(page) > MOST_BYTES:
            raise ReportError(f"metrics: longer than {MOST_BYTES:,} bytes")
        found: dict[str, dict[tuple[tuple[str, str], ...], Series]] = {}
        doubts: dict[str, None] = {}
        for line in self._wanted(page):
            sample = _sample(line)
            if sample is None:
                doubts["a metrics line is malformed"] = None
            elif sample[0] in self._names:
                name, series = sample
                found.setdefault(name, {})[tuple(sorted(series.labels.items()))] = series
        return Metrics({name: list(lines.values()) for name, lines in found.items()}, tuple(doubts))

    def _wanted(self, page: bytes) -> Iterator[bytes]:
        # Every line ends with a line feed. What is left without one was cut: "4" may have been "43".
        lines = page.split(b"\n")[:-1]
        seen = 0
        for line in lines:
            if line.startswith(self._starts):
                yield line
                seen += 1
                if seen == _MOST_SERIES:
                    return


def _sample(line: bytes) -> tuple[str, Series] | None:
    try:
        match = _LINE.fullmatch(line.decode())
    except UnicodeDecodeError:
        return None
    if match is None:
        return None
    labels = _labels(match[2] or "")
    return None if labels is None else (match[1], Series(labels, float(match[3])))


def _labels(text: str) -> dict[str, str] | None:
    found: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _LABELS.match(text, at)
        if match is None:
            return None if text[at:].strip() else found
        found[match[1]] = _unescaped(match[2])
        at = match.end()
    return found


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPES.sub(lambda match: "\n" if match[1] == "n" else match[1], text)
