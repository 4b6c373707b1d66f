"""The options of either library's clients: those that go to the wire, those that are the client's own, the refused.

``library`` is always the module ``httpx`` or ``httpx2``; nothing here imports either.
"""

from __future__ import annotations

import inspect
import ssl
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from .config import BalancerConfig
from .config.base import nearest
from .errors import ConfigError
from .wire import WireOptions

OUR_OPTIONS = (
    "verify", "cert", "trust_env", "http1", "http2", "limits", "local_address", "socket_options", "dialects",
)  # fmt: skip
FOR_OTHERS = ("verify", "cert", "trust_env", "local_address", "socket_options")
_REFUSED = {
    "proxy": "a balancer talks to its replicas directly; leave proxy out",
    "proxies": "a balancer talks to its replicas directly; leave proxies out",
    "mounts": "every request goes through the balancer; leave mounts out",
    "transport": "the balancer is the transport; use AsyncBalancerTransport or BalancerTransport in a plain client",
    "config": "give a BalancerConfig as the target, the first argument",
    "app": "the balancer talks HTTP; to call an app in process use the library's ASGI or WSGI transport",
}


def client_options(library_client: type, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A client's options, sorted into the transport's and the library client's own. Raises ConfigError."""
    refuse_unknown(options, _client_options(library_client))
    ours = {name: options.pop(name) for name in (*OUR_OPTIONS, *_REFUSED) if name in options}
    if "trust_env" in ours:
        options["trust_env"] = ours["trust_env"]
    return ours, options


def refuse_unknown(given: Iterable[str], known: Iterable[str]) -> None:
    """Raises ConfigError for an option that there is not, with the way out. ``known``: those that there are."""
    for name in given:
        if name in BalancerConfig.model_fields:
            settings = f"({name}=...)" if name == "discovery" else f".from_target(target, {name}=...)"
            raise ConfigError(
                f"{name!r} is no option but a part of the configuration: give BalancerConfig{settings} as the "
                f"target, or say it in a TOML file or by MLBALANCE_{name.upper()}"
                + ("" if name == "seed" else "__<KEY>")
            )
        if name not in known and name not in _REFUSED:
            raise ConfigError(f"unknown option {name!r}; {nearest(name, known)}")


def refuse_unsupported(options: dict[str, Any]) -> None:
    """Take out of ``options`` what a balancer cannot have. Raises ConfigError for those that are given."""
    for name, why in _REFUSED.items():
        if options.pop(name, None) is not None:
            raise ConfigError(f"option {name!r} is not supported: {why}")


@lru_cache
def _client_options(library_client: type) -> frozenset[str]:
    """What our clients take: what the library's does and is not refused, and our own."""
    theirs = inspect.signature(library_client).parameters
    return frozenset({"target", "base_url", *OUR_OPTIONS, *theirs}) - set(_REFUSED)


def wire_options(library: Any, config: BalancerConfig, options: dict[str, Any]) -> WireOptions:
    """Take the options that concern connections out of ``options``. Raises ConfigError for what cannot be honoured."""
    refuse_unsupported(options)
    if options.pop("http2", False):
        raise ConfigError("option 'http2' is not supported: replicas are spoken to in HTTP/1.1; leave it out")
    if not options.pop("http1", True):
        raise ConfigError("option 'http1' cannot be False: replicas are spoken to in HTTP/1.1; leave it out")
    limits = options.pop("limits", None)
    expiry_s: float | None = config.http.keepalive_expiry_s
    most_idle = None
    if limits is not None:
        if limits.max_connections is not None:
            raise ConfigError(
                "option 'limits': max_connections is not supported, a pool that makes calls wait loses "
                "connections when they are cancelled; give Limits(max_connections=None, ...)"
            )
        most_idle = limits.max_keepalive_connections
        expiry_s = limits.keepalive_expiry
    return WireOptions(
        ssl_context=_ssl_context(library, options),
        keepalive_expiry_s=expiry_s,
        max_idle_per_replica=most_idle,
        local_address=options.pop("local_address", None),
        socket_options=options.pop("socket_options", None),
    )


def _ssl_context(library: Any, options: dict[str, Any]) -> ssl.SSLContext | Callable[[], ssl.SSLContext]:
    verify, cert, trust_env = (
        options.pop("verify", True),
        options.pop("cert", None),
        options.pop("trust_env", True),
    )
    if isinstance(verify, ssl.SSLContext) and cert is None:
        return verify
    _check_path("verify", verify)
    for part in cert[:2] if isinstance(cert, tuple) else (cert,):
        _check_path("cert", part)

    def make() -> ssl.SSLContext:
        try:
            made: ssl.SSLContext = library.create_ssl_context(verify=verify, cert=cert, trust_env=trust_env)
        except OSError as error:  # ssl's own among them
            raise ConfigError(f"the options 'verify' and 'cert' give no TLS context: {error}") from error
        return made

    # Made when the first https replica is met: it takes 20 ms, and most fleets are spoken to in the clear.
    return make


def _check_path(option: str, given: object) -> None:
    if isinstance(given, str) and not Path(given).exists():
        raise ConfigError(f"option {option!r}: there is no file {str(given)!r}")
