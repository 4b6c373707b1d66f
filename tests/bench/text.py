"""Request bodies as applications send them: markdown with quotes and line breaks, in ASCII or beyond it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

_TEXT = (
    "the of and to in is that for with as on by this be are from an or which at you it not have can model token "
    "cache replica prompt request latency answer when where each then return value index list error model's "
    '"quoted" `code` **bold** 3.14 1024 (see below) foo_bar() x[i] {"key": 1}'
)
_WORDS = _TEXT.split()
_BEYOND_ASCII = [*_WORDS, "naïve", "café", "größer", "λ", "—", "“so”", "слово", "言葉"]


def prose(rng: Random, size_bytes: int, words: Sequence[str] = _WORDS) -> str:
    """About ``size_bytes`` of text, in lines of some twelve words."""
    pieces: list[str] = []
    size = 0
    while size < size_bytes:
        word = words[int(rng.random() * len(words))]
        pieces.append(word)
        pieces.append("\n" if rng.random() < 0.08 else " ")
        size += len(word.encode()) + 1
    return "".join(pieces)


def conversations(count: int, size_bytes: int, *, stream: bool, ascii_only: bool = True) -> list[bytes]:
    """Chat bodies of about ``size_bytes``, as httpx encodes them.

    They are sixteen conversations, whose turns share all but their last messages.
    """
    rng = Random(7)
    words = _WORDS if ascii_only else _BEYOND_ASCII
    system = prose(rng, size_bytes // 4, words)
    histories = [prose(rng, size_bytes // 2, words) for _ in range(16)]
    bodies = []
    for number in range(count):
        messages = [
            {"role": "system", "content": system},
            {"role": "user", "content": histories[number % 16]},
            {"role": "assistant", "content": prose(rng, size_bytes // 8, words)},
            {"role": "user", "content": prose(rng, size_bytes // 8, words)},
        ]
        body = {"model": "m", "messages": messages, "max_tokens": 64, "stream": stream}
        bodies.append(json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())
    return bodies
