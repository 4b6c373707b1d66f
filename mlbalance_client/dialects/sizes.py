"""How many tokens a part that is not text may become, judged by its size alone.

Rules of our own, after the engines' published ones; the learned ratio of bytes to tokens does not touch them.
OpenAI: an image costs 85 tokens at low detail, 765 at 1024 x 1024. Anthropic: width x height / 750, at most about
1,600; a PDF page 1,500 to 3,000. Compressed pictures take about 0.2 bytes a pixel, so 150 bytes a token. Speech
encoders give about 25 tokens a second, which is 640 bytes of 128 kbit/s audio.
"""

from __future__ import annotations

from typing import NamedTuple

LOW_DETAIL_TOKENS = 85


class _Rule(NamedTuple):
    bytes_per_token: int
    least: int
    most: int
    by_reference: int


_RULES = {
    "image": _Rule(150, LOW_DETAIL_TOKENS, 1600, 765),
    "audio": _Rule(640, 25, 100_000, 1500),
    "video": _Rule(1500, 765, 100_000, 5000),
}
_FILE = _Rule(100, 25, 100_000, 3000)


def tokens_of(kind: str, payload: str, detail: object = None) -> int:
    """Estimated tokens of a part of type ``kind``; ``payload``: its base64 text or data URL, or where it is."""
    if detail == "low":
        return LOW_DETAIL_TOKENS
    rule = next((rule for medium, rule in _RULES.items() if medium in kind), _FILE)
    if _is_reference(payload):
        return rule.by_reference
    return min(max(len(payload) * 3 // 4 // rule.bytes_per_token, rule.least), rule.most)


def _is_reference(payload: str) -> bool:
    return payload.startswith(("http://", "https://", "file-", "file_", "gs://", "s3://", "file://"))
