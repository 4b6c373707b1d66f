"""The load stream's words, version 1: load reports and prefix deltas as JSON, and the short form for a header.

Both ends use it: a replica encodes, a client decodes. What is decoded was written by strangers: it raises
``LoadFormatError`` or is well formed, unknown fields are ignored, and figures that cannot be true are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from .fields import (
    VERSION,
    LoadFormatError,
    check_version,
    count,
    named,
    needed,
    number,
    parsed,
    sequence,
    table,
    text,
)
from .prefix_delta import PrefixDelta, decode_prefixes, encode_prefixes
from .report import ANSWER, STREAM, LoadReport, State

__all__ = [
    "HEADER",
    "VERSION",
    "LoadFormatError",
    "PrefixDelta",
    "decode_header",
    "decode_load",
    "decode_prefixes",
    "encode_header",
    "encode_load",
    "encode_prefixes",
    "personal",
]

HEADER = "x-mlbalance-load"
MOST_LOAD_BYTES = 64 * 1024

_COUNTS = (
    "t_ms", "running", "waiting", "prefill_tokens", "decode_tokens", "batch_limit", "kv_capacity_tokens",
    "gpu_memory_used_bytes", "gpu_memory_total_bytes", "subscribers",
)  # fmt: skip
_REALS = (
    "prefill_tokens_per_s", "decode_tokens_per_s", "expected_wait_s", "kv_used", "gpu_utilization",
)  # fmt: skip
_ORDER = (
    "t_ms", "state", "running", "waiting", "prefill_tokens", "decode_tokens", "prefill_tokens_per_s",
    "decode_tokens_per_s", "expected_wait_s", "batch_limit", "kv_used", "kv_capacity_tokens", "gpu_utilization",
    "gpu_memory_used_bytes", "gpu_memory_total_bytes",
)  # fmt: skip
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
_TEXTS = frozenset({"epoch", "replica", "state"})
_UNSAFE, _QUOTED = re.compile(r"[^0-9A-Za-z._~-]+"), re.compile(rb"%([0-9A-Fa-f]{2})")
_STATES = {state.value: state for state in State if state is not State.ASLEEP}


def encode_load(report: LoadReport, *, acked: Mapping[str, int] | None = None) -> bytes:
    """A report as JSON. It needs ``epoch``, ``seq`` and ``state``; what is unknown is left out.

    ``acked``: by client, the newest of its calls that is counted in; the report's own ``acked`` names no client.
    """
    fields: dict[str, Any] = {"v": VERSION}
    if report.replica is not None:
        fields["replica"] = report.replica
    fields |= {"epoch": report.epoch, "seq": report.seq}
    _known(report, fields)
    for name in ("models", "adapters"):
        if table := getattr(report, name):
            fields[name] = dict(table)
    if report.subscribers is not None:
        fields["subscribers"] = report.subscribers
    fields["partial"] = report.partial
    return personal(_dumped(fields), report.free_requests, report.free_tokens, acked)


def personal(
    common: bytes, free_requests: int | None, free_tokens: int | None, acked: Mapping[str, int] | None
) -> bytes:
    """A report's JSON with what is for one subscriber only, so that the rest is encoded once for all."""
    free = [
        f'"{name}":{room}'
        for name, room in (("requests", free_requests), ("tokens", free_tokens))
        if room is not None
    ]
    own = f',"free":{{{",".join(free)}}}' if free else ""
    if acked:
        own += f',"acked":{_ENCODER.encode(dict(acked))}'
    return b"%b%b}" % (common[:-1], own.encode("ascii")) if own else common


def decode_load(data: bytes | str, *, at: float, client: str | None = None) -> LoadReport:
    """A report from JSON; ``client``: whose ``acked`` is meant. Raises LoadFormatError."""
    fields = parsed(data, MOST_LOAD_BYTES)
    check_version(fields)
    acked = table(fields, "acked").get(client) if client is not None else None
    free = table(fields, "free")
    partial = fields.get("partial", False)
    if not isinstance(partial, bool):
        raise LoadFormatError("partial is neither true nor false")
    return LoadReport(
        source=STREAM,
        at=at,
        epoch=needed(text(fields, "epoch"), "epoch"),
        seq=sequence(fields),
        state=_state(fields.get("state")),
        replica=text(fields, "replica"),
        models=named(fields, "models"),
        adapters=named(fields, "adapters"),
        acked=count(acked, "acked"),
        free_requests=count(free.get("requests"), "free.requests"),
        free_tokens=count(free.get("tokens"), "free.tokens"),
        partial=partial,
        **_figures(fields),
    )


def encode_header(report: LoadReport) -> str:
    """The short form: ``v=1;epoch=..;seq=..;..``. Models and adapters are left out; ``acked`` is the caller's own."""
    fields: dict[str, Any] = {"v": VERSION, "epoch": report.epoch, "seq": report.seq}
    _known(report, fields)
    more = (
        ("replica", report.replica),
        ("subscribers", report.subscribers),
        ("free.requests", report.free_requests),
        ("free.tokens", report.free_tokens),
        ("acked", report.acked),
        ("partial", 1 if report.partial else None),
    )
    fields.update((name, value) for name, value in more if value is not None)
    return ";".join(f"{name}={_short(value)}" for name, value in fields.items())


def decode_header(header: str, *, at: float) -> LoadReport:
    """A report from the short form. Raises LoadFormatError."""
    if len(header) > MOST_LOAD_BYTES:
        raise LoadFormatError(f"a header of {len(header)} characters")
    fields: dict[str, Any] = {}
    for part in header.split(";"):
        name, equals, value = part.strip().partition("=")
        if equals:
            fields[name] = _unquoted(value) if name in _TEXTS else _figure(value)
    check_version(fields)
    return LoadReport(
        source=ANSWER,
        at=at,
        epoch=needed(text(fields, "epoch"), "epoch"),
        seq=sequence(fields),
        state=_state(fields.get("state")),
        replica=text(fields, "replica"),
        acked=count(fields.get("acked"), "acked"),
        free_requests=count(fields.get("free.requests"), "free.requests"),
        free_tokens=count(fields.get("free.tokens"), "free.tokens"),
        partial=fields.get("partial") == 1,
        **_figures(fields),
    )


def _known(report: LoadReport, fields: dict[str, Any]) -> None:
    for name in _ORDER:
        if (value := getattr(report, name)) is not None:
            fields[name] = value


def _figures(fields: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: count(fields.get(name), name) for name in _COUNTS}
    found |= {name: number(fields.get(name), name) for name in _REALS}
    return found


def _state(given: object) -> State:
    state = _STATES.get(given) if isinstance(given, str) else None
    if state is None:
        raise LoadFormatError(f"state {given!r:.40} is none of {', '.join(_STATES)}")
    return state


def _short(value: object) -> str:
    """A figure as it is (six decimals are plenty), a text without what would end it."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if isinstance(value, int) else _quoted(str(value))


def _figure(value: str) -> object:
    """A number if it is one; what reads the field judges the rest, and unknown fields nobody reads."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def _quoted(text: str) -> str:
    return _UNSAFE.sub(lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), text)


def _unquoted(text: str) -> str:
    raw = text.encode("utf-8", "replace")
    return _QUOTED.sub(lambda found: bytes((int(found[1], 16),)), raw).decode("utf-8", "replace")


def _dumped(fields: Mapping[str, Any]) -> bytes:
    return _ENCODER.encode(fields).encode("ascii")
