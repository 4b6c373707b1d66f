"""URLs of replicas and targets: parsed strictly, normalised so that all clients name a replica alike."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import parse_qs

from mlbalance_client.errors import ConfigError

_DEFAULT_PORTS = {"http": 80, "https": 443}
_LABEL = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?", re.ASCII)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([^:]*))?")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~!$&'()*+,;=:@%-]*)*", re.ASCII)
_CREDENTIALS = re.compile(r"(?<=://).*@|^[^/?#\s]*@|(?<=:)(?!/).*@|(?<=:/)(?!/).*@", re.DOTALL)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
_URL_IN_PROSE = re.compile(r"\w[\w+.-]*://\S+")
_SHOWN_CHARS = 120


@dataclass(frozen=True, slots=True)
class ReplicaURL:
    """A replica's base URL. ``host`` without brackets, lower case; ``path`` is "" or starts with a slash."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def id(self) -> str:
        """host:port, and the path prefix if there is one: the identity of a replica that nobody named."""
        return f"{self._bracketed}:{self.port}{self.path}"

    def __str__(self) -> str:
        port = "" if self.port == _DEFAULT_PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self._bracketed}{port}{self.path}"

    @property
    def _bracketed(self) -> str:
        return f"[{self.host}]" if ":" in self.host else self.host


@dataclass(frozen=True, slots=True)
class TargetURL:
    """The parts of a discovery URL, ``kind[+https]://authority/path?query``; ``text`` is fit for messages."""

    kind: str
    tls: bool
    authority: str
    path: str
    query: dict[str, list[str]]
    text: str

    @property
    def tls_key(self) -> dict[str, bool]:
        """What ``+https`` says of a registry's key ``tls``; nothing without it."""
        return {"tls": True} if self.tls else {}


def replica_url(text: str) -> ReplicaURL:
    """Parse ``http(s)://host[:port][/prefix]``. Raises ConfigError that says what is wrong."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        raise _bad(text, "must start with http:// or https://")
    if "?" in rest or "#" in rest:
        raise _bad(text, "must not have a query or a fragment")
    authority, slash, path = rest.partition("/")
    if "@" in authority:
        raise _bad(text, "must not hold credentials; give the client headers or auth instead")
    path = (slash + path).rstrip("/")
    if not _PATH.fullmatch(path):
        raise _bad(text, "the path has a character that must be percent-encoded")
    if "," in authority:
        raise _bad(text, "names several hosts; several replicas are static://host:port,host:port")
    match = _AUTHORITY.fullmatch(authority)
    if match is None:
        raise _bad(text, "must be host or host:port, IPv6 addresses in brackets")
    return ReplicaURL(scheme, _host(match[1], text), _port(match[2], scheme, text), path)


def target_url(text: str) -> TargetURL:
    """Split a discovery URL; what its parts mean is up to the kind. Raises ConfigError."""
    scheme, _, rest = text.partition("://")
    kind, plus, tls = scheme.lower().partition("+")
    if plus and tls != "https":
        raise _bad(text, f"unknown suffix after {kind!r}; only +https (TLS to the replicas) is known")
    rest, _, query = rest.partition("?")
    if "#" in rest + query:
        raise _bad(text, "must not have a fragment")
    authority, slash, path = rest.partition("/")
    try:
        parameters = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query), max_num_fields=100)
    except ValueError:
        raise _bad(text, "the query cannot be read; write ?key=value&key=value") from None
    return TargetURL(kind, bool(plus), authority, slash + path, parameters, repr(shown(text)))


def shown(text: str) -> str:
    """A value that may be a URL, fit for messages: no credentials, no query, not too long."""
    if "://" in text or "@" in text:
        text = _QUERY.sub("", _CREDENTIALS.sub("***@", text))
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def scrubbed(prose: str) -> str:
    """Prose fit for logs: one line, printable, and the URLs in it have no credentials and no query."""
    if not prose.isprintable():
        prose = "".join(letter if letter.isprintable() else " " for letter in prose)
    return _URL_IN_PROSE.sub(lambda url: shown(url[0]), prose) if "://" in prose else prose


def _host(host: str, text: str) -> str:
    if host.startswith("["):
        try:
            return IPv6Address(host[1:-1] if "%" not in host else "").compressed
        except ValueError:
            raise _bad(text, "not an IPv6 address in the brackets") from None
    if not host:
        raise _bad(text, "names no host")
    try:
        ascii_host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise _bad(text, "not a valid host name") from None
    if len(ascii_host) > 253 or not _HOST.fullmatch(ascii_host.lower()):
        raise _bad(text, "not a valid host name")
    return ascii_host.lower()


def _port(port: str | None, scheme: str, text: str) -> int:
    if port is None:
        return _DEFAULT_PORTS[scheme]
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) < 65536):
        raise _bad(text, "the port must be a number from 1 to 65535")
    return int(port)


def _bad(text: str, why: str) -> ConfigError:
    return ConfigError(f"URL {shown(text)!r}: {why}")
