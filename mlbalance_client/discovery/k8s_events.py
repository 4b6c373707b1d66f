"""The API server's answers taken apart: statuses, pages of a list, the lines and events of a watch."""

from __future__ import annotations

import json
from typing import Any

from mlbalance_client.errors import DiscoveryError

from .http import beginning

_LINE_BYTES = 16 * 1024 * 1024


def check(status: int, content: bytes) -> None:
    """Raise DiscoveryError for any status but 200."""
    if status == 200:
        return
    hint = {
        401: ": the token is not accepted",
        403: ": the account needs get, list and watch on endpointslices (discovery.k8s.io)",
    }.get(status, "")
    raise DiscoveryError(f"HTTP {status}{hint}: {beginning(content)}")


class Lines:
    """Cuts a stream into its lines, however its pieces come."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that are whole now, without empty ones. Raises DiscoveryError if one has no end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LINE_BYTES:
            raise DiscoveryError("an event of the watch is too long")
        return [line for line in lines if line.strip()]


def listed(content: bytes) -> tuple[str, str, list[Any]]:
    """Version, the next page's token or "", and the items. Raises DiscoveryError."""
    match _json(content):
        case {
            "metadata": {"resourceVersion": str() as version} as metadata,
            "items": list() | None as items,
        } if version:
            return version, str(metadata.get("continue") or ""), items or []
    raise DiscoveryError("the answer is not a list of EndpointSlices")


def event_of(line: bytes) -> tuple[str, dict[str, Any]]:
    """Type and object. Raises DiscoveryError."""
    match _json(line):
        case {"type": str() as kind, "object": dict() as item}:
            return kind, item
    raise DiscoveryError("the watch brought what is no event")


def version_of(item: dict[str, Any]) -> str:
    """An object's resourceVersion, or ""."""
    match item:
        case {"metadata": {"resourceVersion": str() as version}}:
            return version
    return ""


def _json(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DiscoveryError("the answer is not JSON") from error
