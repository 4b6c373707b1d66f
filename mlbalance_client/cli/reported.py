"""What load reports a replica has, as a client would find them: the load stream first, else its engine's pages."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable

import anyio

from .. import load_reports
from ..conduct.asking import Asking
from ..config import BalancerConfig
from ..core.load.prefix_delta import Hashing
from ..core.load.report import LoadReport
from ..core.model import Replica
from ..load_reports import Auto, Forbidden, NoAnswer, ReportError
from ..load_reports.stream import StreamReader
from ..wire import Wire, WireError, WireOptions

_STREAMS = frozenset({"auto", "stream"})
_NOT_ASKED = {
    "none": "not heard: load_reports.kind is none",
    "orca": "in the heads of answers alone, not asked for",
}
# A stream says something every two seconds.
_FIRST_WORD_S = 3.0
_LONGEST = 200


async def reports(config: BalancerConfig, replicas: Iterable[Replica]) -> dict[str, str]:
    """By replica, the kind of reports that was found, or why there are none. Raises ConfigError."""
    wire = Wire(WireOptions(keepalive_expiry_s=config.http.keepalive_expiry_s))
    said: dict[str, str] = {}

    async def look(replica: Replica) -> None:
        said[replica.id] = (await _found(config, replica, wire))[:_LONGEST]

    if config.load_reports.kind not in _NOT_ASKED:
        load_reports.create(config.load_reports)  # a plugin that is not there is an error of all
    try:
        async with anyio.create_task_group() as tasks:
            for replica in replicas:
                tasks.start_soon(look, replica)
    finally:
        await wire.aclose()
    return said


async def _found(config: BalancerConfig, replica: Replica, wire: Wire) -> str:
    of = config.load_reports
    if of.kind in _NOT_ASKED:
        return _NOT_ASKED[of.kind]
    asking = Asking(wire, replica.url, replica.tls_name, of.timeout_s, of.token, time.monotonic)
    refused = ""
    if of.kind in _STREAMS:
        secret = config.picking.fingerprint_secret
        hashing = Hashing.by(None if secret is None else secret.get_secret_value().encode())
        try:
            return await _streamed(asking, hashing)
        except ReportError as error:
            if of.kind == "stream":
                return f"none: {error}"
            refused = f"; {error}" if isinstance(error, Forbidden) else ""
    form = load_reports.create(of, replica.models)
    assert form is not None
    try:
        report = await form.read(asking, time.monotonic())
    except Exception as error:  # a plugin may raise anything
        return f"{'none' if of.kind == 'auto' else f'none of kind {of.kind}'}: {error}{refused}"
    kind = form.found if isinstance(form, Auto) else form.kind
    doubts = f", understood in part only: {'; '.join(report.doubts)}" if report.doubts else ""
    return f"{kind}{doubts}{refused}"


async def _streamed(asking: Asking, hashing: Hashing) -> str:
    """Raises ReportError if there is no load stream, or none that says anything."""
    client = secrets.token_hex(5)
    reader = StreamReader(client, hashing)
    with anyio.move_on_after(_FIRST_WORD_S):
        stream = await asking.stream(client, None)
        try:
            async for chunk in stream:
                for found in reader.feed(chunk, time.monotonic()):
                    if isinstance(found, LoadReport):
                        return f"stream, but {reader.doubt}" if reader.doubt else "stream"
        except WireError as error:
            raise NoAnswer(f"the load stream: {error}") from error
        finally:
            await stream.aclose()
    raise NoAnswer(f"the load stream says nothing that is understood: {reader.doubt or 'nothing came'}")
