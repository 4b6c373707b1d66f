"""Recorded traces: those that ship with the package, and files of the same form.

A line is a JSON object: ``{"t": seconds, "in": tokens, "out": tokens, "blocks": [ids] or null, "block_size": tokens}``;
the file may be gzipped. Sources and licences: data/README.md.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any

from .spec import Job

BYTES_PER_TOKEN = 4
DEFAULT_BLOCK_TOKENS = 512
SHIPPED = {"conversation": "mooncake_conversation.jsonl.gz", "code": "azure2023_code.jsonl.gz"}


class TraceError(ValueError):
    """A trace cannot be read; the message names file, line and field."""


@dataclass(frozen=True, slots=True)
class TraceCall:
    """One recorded request. ``t_s``: arrival in seconds; ``blocks``: ids of its prompt's full blocks, if recorded."""

    index: int
    t_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] | None
    block_tokens: int = DEFAULT_BLOCK_TOKENS


@dataclass(frozen=True, slots=True)
class Trace:
    """Calls in order of arrival, starting at 0 s."""

    name: str
    calls: tuple[TraceCall, ...]

    def window(self, start: int, stop: int) -> Trace:
        """Calls ``start`` to ``stop`` (exclusive) by recorded index, moved to 0 s."""
        calls = [c for c in self.calls if start <= c.index < stop]
        return Trace(self.name, _from_zero(calls))

    def at_rate(self, factor: float) -> Trace:
        """The same calls, arriving ``factor`` times as fast."""
        return Trace(self.name, tuple(replace(c, t_s=c.t_s / factor) for c in self.calls))

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last."""
        return self.calls[-1].t_s if self.calls else 0.0


def load(name: str | Path) -> Trace:
    """A shipped trace by its name (``conversation``, ``code``), or a file by its path. Raises TraceError."""
    shipped = SHIPPED.get(str(name))
    if shipped is not None:
        data = (files(__package__) / "data" / shipped).read_bytes()
        return Trace(str(name), _from_zero(_parse(gzip.decompress(data), shipped)))
    path = Path(name)
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        known = ", ".join(SHIPPED)
        raise TraceError(f"{name}: {error}; give a file, or one of the shipped traces: {known}") from None
    return Trace(path.name, _from_zero(_parse(data, str(name))))


def _parse(data: bytes, source: str) -> list[TraceCall]:
    calls: list[TraceCall] = []
    for number, line in enumerate(data.splitlines(), 1):
        if line.strip():
            try:
                calls.append(_call(json.loads(line), len(calls)))
            except (ValueError, TypeError, RecursionError) as error:
                raise TraceError(f"{source}, line {number}: {error}") from None
    if len({call.index for call in calls}) < len(calls):
        raise TraceError(f"{source}: two calls have the same number in field 'i'")
    if not calls:
        raise TraceError(f"{source}: no calls in it")
    return sorted(calls, key=lambda call: call.t_s)


def _call(fields: Any, index: int) -> TraceCall:
    if not isinstance(fields, dict):
        raise TypeError("must be a JSON object")
    blocks = fields.get("blocks")
    if blocks is not None and not (isinstance(blocks, list) and all(isinstance(b, int) for b in blocks)):
        raise TypeError("field 'blocks' must be a list of whole numbers or null")
    t_s = fields.get("t")
    if not isinstance(t_s, int | float) or isinstance(t_s, bool) or not 0 <= t_s < 1e9:
        raise TypeError(f"field 't' must be seconds from 0 to 1e9, not {t_s!r}")
    number = fields.get("i", index)
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise TypeError(f"field 'i' must be a whole number, not {number!r}")
    size = fields.get("block_size") or DEFAULT_BLOCK_TOKENS
    return TraceCall(
        index=number,
        t_s=float(t_s),
        prompt_tokens=_tokens(fields, "in"),
        output_tokens=_tokens(fields, "out"),
        blocks=None if blocks is None else tuple(blocks),
        block_tokens=_tokens({"block_size": size}, "block_size"),
    )


def _tokens(fields: dict[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 10_000_000:
        raise TypeError(
            f"field {name!r} must be a whole number of tokens from 1 to 10,000,000, not {value!r}"
        )
    return value


def _from_zero(calls: Iterable[TraceCall]) -> tuple[TraceCall, ...]:
    listed = list(calls)
    start = listed[0].t_s if listed else 0.0
    return tuple(replace(c, t_s=c.t_s - start) for c in listed)


# -- calls as text, and text as jobs --------------------------------------------------------------------------------

_WORDS = tuple(
    "load replica token prefix cache batch queue wait send stream block model layer head key value page step "  # noqa: SIM905
    "graph score merge split shard route probe limit drain burst spill home ring hash seed tree node leaf".split()
)


@lru_cache(maxsize=65536)
def block_text(block: int, tokens: int = DEFAULT_BLOCK_TOKENS) -> str:
    """The fixed text of a block id, ``tokens`` * 4 bytes of ASCII words."""
    return _text(f"block {block}", tokens * BYTES_PER_TOKEN)


def prompt_text(call: TraceCall) -> str:
    """A prompt of the recorded length: the texts of its block ids, then a tail that no other call has."""
    whole = call.prompt_tokens // call.block_tokens
    ids = (call.blocks or ())[:whole]
    pieces = [block_text(block, call.block_tokens) for block in ids]
    left = call.prompt_tokens - len(ids) * call.block_tokens
    pieces.append(_text(f"call {call.index}", left * BYTES_PER_TOKEN))
    return "".join(pieces)


def job_of(call: TraceCall, job_id: str) -> Job:
    """The job that an engine gets for a call, without going through text."""
    whole = call.prompt_tokens // call.block_tokens
    ids = list((call.blocks or ())[:whole])
    own = [-(call.index * 4096 + i + 1) for i in range(whole - len(ids))]
    return Job(job_id, tuple(ids + own), call.block_tokens, call.prompt_tokens, call.output_tokens)


def job_of_text(
    text: bytes, output_tokens: int, job_id: str, block_tokens: int = DEFAULT_BLOCK_TOKENS
) -> Job:
    """The job that an engine gets for a prompt's text: 4 bytes a token, blocks known by hash of all up to their end."""
    size = block_tokens * BYTES_PER_TOKEN
    blocks = []
    chain = blake2b(digest_size=8)
    for start in range(0, len(text) - size + 1, size):
        chain.update(text[start : start + size])
        blocks.append(int.from_bytes(chain.copy().digest(), "little"))
    return Job(
        job_id, tuple(blocks), block_tokens, max(1, len(text) // BYTES_PER_TOKEN), max(1, output_tokens)
    )


def _text(seed: str, size: int) -> str:
    return "".join(_words(seed, size))[:size]


def _words(seed: str, size: int) -> Iterator[str]:
    made = 0
    counter = 0
    while made < size:
        digest = blake2b(f"{seed} {counter}".encode(), digest_size=64).digest()
        counter += 1
        line = " ".join(_WORDS[byte % len(_WORDS)] for byte in digest) + f" {digest[:6].hex()}\n"
        made += len(line)
        yield line
