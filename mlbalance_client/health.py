"""Engines' own health endpoints: which to ask, and what their answers mean.

========================================== =========================
vLLM, SGLang, TGI, TensorRT-LLM, llama.cpp ``/health``
Triton, KServe                             ``/v2/health/ready``
NIM                                        ``/v1/health/ready``
Ray Serve                                  ``/-/healthz``
TorchServe                                 ``/ping``
Ollama                                     ``/``
========================================== =========================

Of an engine that is not known, these are tried in the order of ``GENERIC``, and the first that is there is remembered.
A page that is not there, or that we may not see, says nothing of health. That ``/health`` answers 200 says little:
vLLM's does so asleep, and for half a second after its engine has died.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

GENERIC: tuple[str, ...] = ("/health", "/v2/health/ready", "/v1/health/ready", "/ping", "/")
_BY_KIND = {
    **dict.fromkeys(("vllm", "sglang", "tgi", "tensorrt_llm", "llama_cpp"), "/health"),
    **dict.fromkeys(("triton", "kserve"), "/v2/health/ready"),
    "nim": "/v1/health/ready",
    "ray_serve": "/-/healthz",
    "torchserve": "/ping",
    "ollama": "/",
}
_BY_GENERATING = dict.fromkeys(("sglang", "tensorrt_llm"), "/health_generate")
_FORBIDDEN = frozenset({401, 403, 407})
_NOT_THERE = frozenset({404, 405, 410, 501})
_LOOK_AGAIN_AFTER = 16


class Health(Enum):
    """What a check has shown. UNKNOWN: neither."""

    PASSED = "passed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """``why``: in words; ``wants``: the setting without which checks tell nothing, as it seems."""

    health: Health
    why: str = ""
    wants: str = ""


Get = Callable[[str], Awaitable[tuple[int, bytes]]]
"""Fetches a page of one replica: path to status and body. What it raises is its caller's own."""


class SystemCheck:
    """The checks of one replica's server. ``path``: where, instead of what its engine has."""

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._found: str | None = None
        self._skips = 0

    async def run(self, get: Get, kind: str | None, *, out: bool = False) -> Finding:
        """Ask once; ``kind``: the engine, as load reports call it, if that is known.

        ``out``: it is ejected, so something is asked in any case: any answer shows that it can be reached.
        """
        path = self._path or _BY_KIND.get(kind or "") or self._found
        if path is not None:
            finding = await _ask(get, path)
            if finding is not None:
                return finding
            if self._path is not None:
                why = f"{path}: there is no such page; is it the right one (health_checks.path)?"
                return Finding(Health.UNKNOWN, why, wants="path")
            self._found = None
        return await self._look(get, path, out=out)

    async def _look(self, get: Get, tried: str | None, *, out: bool) -> Finding:
        paths = GENERIC
        if skips := self._skips:
            self._skips -= 1
            paths = GENERIC[: int(out)]
        for path in paths:
            if path != tried and (finding := await _ask(get, path)) is not None:
                self._found = path
                return finding
        if skips:
            return Finding(Health.UNKNOWN, "no health endpoint is known")
        self._skips = _LOOK_AGAIN_AFTER
        return Finding(Health.UNKNOWN, f"none of {', '.join(GENERIC)} is there")


def generating_path(kind: str | None) -> str | None:
    """Where an engine lets its model say one token by itself, for APIs that we know no such call of."""
    return _BY_GENERATING.get(kind or "")


async def _ask(get: Get, path: str) -> Finding | None:
    status, body = await get(path)
    return judged(status, body, path)


def judged(status: int, body: bytes, path: str) -> Finding | None:
    """What an answer says of health; None if there is no such page.

    Of the open inference protocol's pages (``/v2/``) 400 means not ready as well, and so does a body that says so.
    """
    if status in _NOT_THERE or 300 <= status < 400:
        return None
    why = f"{path}: status {status}"
    if status in _FORBIDDEN:
        return Finding(
            Health.UNKNOWN, f"{why}; does it need credentials (health_checks.headers)?", wants="headers"
        )
    if status >= 500 or (status == 400 and path.startswith("/v2/")):
        return Finding(Health.FAILED, why)
    if status >= 400:  # 429 among them: busy is not ill
        return Finding(Health.UNKNOWN, why)
    if path.startswith("/v2/") and _says_not_ready(body):
        return Finding(Health.FAILED, f"{path}: says that it is not ready")
    return Finding(Health.PASSED)


def _says_not_ready(body: bytes) -> bool:
    try:
        said = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        return False
    return isinstance(said, dict) and said.get("ready", said.get("live")) is False
