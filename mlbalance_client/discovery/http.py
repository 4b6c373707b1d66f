"""An HTTP client for a registry: apart from the replicas' wire, so that neither sees the other's credentials."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import httpx
from anyio import to_thread
from pydantic import SecretStr

from mlbalance_client.errors import DiscoveryError

_CONNECT_S = 5.0
# Given up 30 s after the last sign of life; not every system can set when.
_KEEPALIVE = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)] + [
    (socket.IPPROTO_TCP, getattr(socket, name), value)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
]


async def registry_client(
    base_url: str, *, ca_file: str | None, cert_file: str | None = None, key_file: str | None = None
) -> httpx.AsyncClient:
    """A client that follows no redirect and no proxy, and takes no credentials but those of a call.

    Certificates are read anew with every client, so that renewed ones are used after the next failure. A peer that
    has silently gone is noticed by TCP, long before a query that waits for a change would end. Raises DiscoveryError
    if certificates cannot be read.
    """
    verify: ssl.SSLContext | bool = False
    if base_url.startswith("https://"):
        verify = await to_thread.run_sync(_context, ca_file, cert_file, key_file, abandon_on_cancel=True)
    transport = httpx.AsyncHTTPTransport(verify=verify, trust_env=False, socket_options=_KEEPALIVE)
    return httpx.AsyncClient(
        base_url=base_url, transport=transport, timeout=httpx.Timeout(_CONNECT_S), trust_env=False
    )


async def secret(given: SecretStr | None, file: str | None) -> str | None:
    """The token as given, else what the file holds now. Raises DiscoveryError if the file holds none."""
    if given is not None:
        return given.get_secret_value()
    if file is None:
        return None
    try:
        found = await to_thread.run_sync(Path(file).read_text, abandon_on_cancel=True)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise DiscoveryError(f"token file {file}: {reason}") from error
    if not (token := found.strip()):
        raise DiscoveryError(f"token file {file}: it is empty")
    return token


def header_value(token: str) -> str:
    """The token, if it may stand in a header. Raises DiscoveryError that does not show it."""
    if not token.isascii() or not token.isprintable():
        raise DiscoveryError("the registry's token has characters that cannot be in a header")
    return token


def transport_error(error: httpx.HTTPError | OSError) -> str:
    """What went wrong on the way, in words that are the same for the same cause."""
    inner: BaseException | None = error
    while inner is not None:
        if said := str(inner):
            return said
        inner = inner.__cause__ or inner.__context__
    return type(error).__name__


def beginning(text: bytes) -> str:
    """The first words of a body, fit for a line."""
    return " ".join(text[:200].decode("utf-8", "replace").split())


def _context(ca_file: str | None, cert_file: str | None, key_file: str | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if cert_file is not None:
            context.load_cert_chain(cert_file, key_file)
    except (OSError, ValueError) as error:
        missing = [f for f in (ca_file, cert_file, key_file) if f is not None and not Path(f).is_file()]
        why = f"no such file: {', '.join(missing)}" if missing else str(error)
        raise DiscoveryError(f"certificates for the registry: {why}") from error
    return context
