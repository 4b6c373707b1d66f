"""ORCA, open request cost aggregation: an engine's load in the headers of its answers.

``endpoint-load-metrics`` begins with ``TEXT ``, ``JSON `` or ``BIN ``; ``endpoint-load-metrics-bin`` and ``-json`` are
older. The message is ``xds.data.orca.v3.OrcaLoadReport``; rules as in Envoy's parser: a name that is there twice, an
unknown or empty one, a figure that is no number or out of its range refuse the whole report. In proto3 what is not set
is 0: a report of nothing but zeros says nothing. vLLM answers so to plain calls, never on streams, with as many equal
names in TEXT as it has ranks: refused, where JSON would give the last rank's figures as the server's.
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from mlbalance_client.core.load.report import LoadReport

from .base import ReportError
from .figures import parsed_fields, share, whole
from .protobuf import entry, fields

ASK = (b"endpoint-load-metrics-format", b"text")
"""The header that asks for it. In lower case, since Triton knows no other; vLLM takes any."""

_HEADER, _BIN, _JSON = b"endpoint-load-metrics", b"endpoint-load-metrics-bin", b"endpoint-load-metrics-json"
_LENGTHS = frozenset(map(len, (_HEADER, _BIN, _JSON)))
_LONGEST = 16_384
_MOST_NAMES = 256

_FIGURES = {
    1: "cpu_utilization", 2: "mem_utilization", 3: "rps", 6: "rps_fractional", 7: "eps", 9: "application_utilization",
}  # fmt: skip
_MAPS = {4: "request_cost", 5: "utilization", 8: "named_metrics"}
_SHARES = frozenset({"mem_utilization", "utilization"})
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_HUMP = re.compile(r"(?<=[a-z])([A-Z])")

Figures = dict[str, float]
"""By full name: ``cpu_utilization``, ``named_metrics.kv_cache_usage_perc``."""


def from_headers(headers: Iterable[tuple[bytes, bytes]], at: float) -> LoadReport | None:
    """What an answer says in passing, or None if it bears no such header. Called on every answer.

    A header that is there and refused gives an empty report with its reason in ``doubts``.
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if len(name) in _LENGTHS and (lower := name.lower()).startswith(_HEADER):
            if lower in found:
                return LoadReport(source="orca", at=at, doubts=("ORCA: the header is there twice",))
            found[lower] = value
    return _report(found, at) if found else None


def parse(value: bytes) -> Figures:
    """Of an ``endpoint-load-metrics`` header. Raises ReportError if the report must be refused."""
    prefix, _, body = value.partition(b" ")
    reader = _READERS.get(prefix)
    if reader is None or not body:
        raise ReportError("ORCA: neither TEXT nor JSON nor BIN")
    return _checked(reader(body))


def _report(found: Mapping[bytes, bytes], at: float) -> LoadReport:
    try:
        figures = _read(found)
    except ReportError as error:
        return LoadReport(source="orca", at=at, doubts=(str(error),))
    return from_figures(figures, at)


def _read(found: Mapping[bytes, bytes]) -> Figures:
    if any(len(value) > _LONGEST for value in found.values()):
        raise ReportError(f"ORCA: longer than {_LONGEST:,} bytes")
    if (value := found.get(_BIN)) is not None:
        return _checked(_from_bin(value))
    if (value := found.get(_HEADER)) is not None:
        return parse(value)
    return _checked(_from_json(found.get(_JSON, b"")))


def from_figures(figures: Figures, at: float) -> LoadReport:
    """The report's meaning, empty if all is zero. gRPC's order: the application's utilization, else the CPU's."""
    if not any(figures.values()):
        return LoadReport(source="orca", at=at)
    named = {
        name.removeprefix("named_metrics."): value
        for name, value in figures.items()
        if name.startswith("named_metrics.")
    }
    # vLLM's and Triton's names of the same figure.
    kv_used = named.get("kv_cache_usage_perc", named.get("kv_cache_utilization"))
    return LoadReport(
        source="orca",
        at=at,
        running=whole(named.get("num_requests_running")),
        waiting=whole(named.get("num_requests_waiting")),
        kv_used=share(kv_used),
        kv_capacity_tokens=whole(named.get("max_token_capacity")),
        utilization=figures.get("application_utilization") or figures.get("cpu_utilization") or None,
    )


def _from_text(body: bytes) -> Iterable[tuple[str, float]]:
    """``key=value, key=value``; older writers have a colon for the sign."""
    for part in _decoded(body).split(","):
        name, _, value = part.partition("=" if "=" in part else ":")
        if not _NUMBER.fullmatch(value.strip()):
            raise ReportError("ORCA: a figure is no number")
        yield name.strip(), float(value)


def _from_json(body: bytes) -> Iterable[tuple[str, float]]:
    """Names with underscores or humps; maps nested."""
    for name, value in parsed_fields(body, "ORCA").items():
        plain = _HUMP.sub(r"_\1", name).lower()
        if isinstance(value, dict) and plain in _MAPS.values():
            yield from ((f"{plain}.{key}", _json_number(inner)) for key, inner in value.items())
        elif value is not None:  # in proto3 JSON null is as good as not set
            yield plain, _json_number(value)


def _from_bin(body: bytes) -> Iterable[tuple[str, float]]:
    """Base64 with or without its padding."""
    try:
        data = b64decode(
            body.strip().rstrip(b"=") + b"=" * (-len(body.strip().rstrip(b"=")) % 4), validate=True
        )
    except ValueError:
        raise ReportError("ORCA: not base64") from None
    for number, value in fields(data):
        if number in _FIGURES and isinstance(value, int | float):
            yield _FIGURES[number], float(value)
        elif number in _MAPS and isinstance(value, bytes):
            key, figure = entry(value)
            yield f"{_MAPS[number]}.{key}", figure


_READERS: dict[bytes, Callable[[bytes], Iterable[tuple[str, float]]]] = {
    b"TEXT": _from_text,
    b"JSON": _from_json,
    b"BIN": _from_bin,
}


def _checked(pairs: Iterable[tuple[str, float]]) -> Figures:
    found: Figures = {}
    for name, value in pairs:
        group, dot, key = name.partition(".")
        if name not in _FIGURES.values() and not (dot and key and group in _MAPS.values()):
            raise ReportError("ORCA: an unknown or empty name")
        if name in found or len(found) == _MOST_NAMES:
            raise ReportError("ORCA: a name is there twice, or there are too many")
        # Named metrics are the application's own and may be anything; the comparison refuses NaN too.
        if group != "named_metrics" and not 0 <= value <= (1 if group in _SHARES else 1e300):
            raise ReportError(f"ORCA: {group} is out of its range")
        if not -1e300 <= value <= 1e300:
            raise ReportError(f"ORCA: {group} is no number")
        found[name] = value
    if not found:
        raise ReportError("ORCA: empty")
    return found


def _json_number(value: Any) -> float:
    """proto3 JSON allows figures in quotes."""
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise ReportError("ORCA: a figure is no number")
    return float(value)


def _decoded(body: bytes) -> str:
    try:
        return body.decode("ascii")
    except UnicodeDecodeError:
        raise ReportError("ORCA: not ASCII") from None
