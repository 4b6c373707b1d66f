"""Where raw settings come from: a target, a TOML file, the environment."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from mlbalance_client.errors import ConfigError

from .base import InvalidConfig, Problem, Section
from .describe import is_structured
from .kinds import config_type, discovery_kinds
from .load_reports import report_kinds
from .urls import replica_url, shown, target_url

SectionT = TypeVar("SectionT", bound=Section)

PREFIX = "MLBALANCE_"
TARGET = PREFIX + "TARGET"
FORMS = (
    "static://host:port,host:port, http://host:port, srv://, dns://, consul://, k8s:// or file://, "
    "the path of a TOML file, or a BalancerConfig"
)

_ADDRESS = r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}"
_ONE_SLASH = re.compile(r"([a-z0-9]+)((?:\+https)?):(/[^/].*)", re.IGNORECASE)
_ADDRESSES = re.compile(rf"{_ADDRESS}(,\s*{_ADDRESS})*(?:/[\w./-]*)?", re.ASCII)

Raw = dict[str, Any]
Path = tuple[str, ...]


def from_target(target: str | os.PathLike[str] | None, env: Mapping[str, str]) -> tuple[Raw, str]:
    """The raw settings that a target stands for, and what to call it in messages. Raises ConfigError."""
    if target is None:
        target = env.get(TARGET) or None
    match target:
        case None if any(name.startswith(f"{PREFIX}DISCOVERY__") for name in env):
            return {}, "environment"
        case None:
            raise ConfigError(f"no target: give {FORMS}, or set {TARGET}")
        case str() as url if "://" in url:
            return _from_url(url)
        case str() | os.PathLike() as path:
            return from_file(path, f"; {_meant(os.fsdecode(path))}a target is {FORMS}")
        case other:
            raise ConfigError(f"target of type {type(other).__name__}: must be {FORMS}")


def _meant(target: str) -> str:
    """The way out for addresses without a scheme, and for a URL that lacks a slash."""
    url = _ONE_SLASH.fullmatch(target)
    if url is not None and (kind := url[1].lower()) in ("http", "https", *discovery_kinds()):
        slashes = "//" if kind == "file" else "/"  # which names no host
        return f"did you mean {shown(f'{kind}{url[2]}:{slashes}{url[3]}')!r}? "
    addresses = _ADDRESSES.fullmatch(target.strip())
    if addresses is None:
        return ""
    one = "" if addresses[1] else f"http://{addresses[0]} or "
    return f"did you mean {one}static://{addresses[0]}? "


def from_file(path: str | os.PathLike[str], hint: str = "") -> tuple[Raw, str]:
    """Read TOML. Raises ConfigError if there is no such file or it is not TOML."""
    name = shown(os.fsdecode(path))
    try:
        with open(path, "rb") as file:
            return tomllib.load(file), name
    except FileNotFoundError:
        raise ConfigError(f"{name!r}: no such file{hint}") from None
    except OSError as error:
        raise ConfigError(f"{name!r}: cannot be read: {error.strerror}{hint}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name!r}: not TOML: {error}{hint}") from None


def build(model: type[SectionT], raw: Raw, where: str, env: Mapping[str, str]) -> SectionT:
    """Lay the environment over ``raw`` and check it all. Raises ConfigError that names file or variable."""
    variables = _variables(model, env)
    for path, name in variables.items():
        _put(raw, path, env[name])
    for path, name in variables.items():
        if _takes_json(model, raw, path):
            raw[path[0]][path[1]] = _json(name, env[name])
    try:
        return model.model_validate(raw)
    except InvalidConfig as error:
        problems = [_attributed(problem, variables, model) for problem in error.problems]
        raise InvalidConfig(problems, where) from None


def _from_url(target: str) -> tuple[Raw, str]:
    where = f"target {shown(target)!r}"
    if target.lower().startswith(("http://", "https://")):
        return {"discovery": {"kind": "static", "replicas": [str(replica_url(target))]}}, where
    url = target_url(target)
    try:
        kind = config_type(url.kind)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}; a target is {FORMS}") from error.__cause__
    return {"discovery": kind.from_url(url)}, where


def _variables(model: type[BaseModel], env: Mapping[str, str]) -> dict[Path, str]:
    """The names of set variables by the key that each sets; an empty one counts as not set."""
    found: dict[Path, str] = {}
    scalars = {name for name, field in model.model_fields.items() if not is_structured(field)}
    for name in sorted(env):
        if not name.startswith(PREFIX) or not env[name]:
            continue
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if len(path) > 2 or "" in path or (len(path) == 2 and path[0] in scalars):
            raise ConfigError(f"{name}: names no key; write {PREFIX}<SECTION>__<KEY>")
        if len(path) == 2 or path[0] in scalars:
            found[path] = name
        elif meant := _misspelt(model, path[0]):
            raise ConfigError(f"{name}: names no key; did you mean {PREFIX}{meant}?")
    return found


def _misspelt(model: type[BaseModel], name: str) -> str | None:
    """A key written with one underscore. Other names may be another's: Kubernetes sets MLBALANCE_PORT."""
    for section, field in model.model_fields.items():
        key = name.removeprefix(f"{section}_")
        if key != name and key in getattr(field.annotation, "model_fields", ()):
            return f"{section}__{key}".upper()
    return None


def _put(raw: Raw, path: Path, text: str) -> None:
    if len(path) == 1:
        raw[path[0]] = text
    elif isinstance(section := raw.setdefault(path[0], {}), dict):
        section[path[1]] = text


def _takes_json(model: type[BaseModel], raw: Raw, path: Path) -> bool:
    if len(path) == 1 or not isinstance(raw[path[0]], dict):
        return False
    section = _section(model, path[0], raw[path[0]].get("kind"))
    field = section.model_fields.get(path[1]) if section else None
    return field is not None and is_structured(field)


def _section(model: type[BaseModel], name: str, kind: object) -> type[BaseModel] | None:
    if name == "discovery":
        return config_type(kind) if isinstance(kind, str) and kind in discovery_kinds() else None
    if name == "load_reports" and isinstance(kind, str) and kind in report_kinds.names():
        return report_kinds.config_type(kind)
    field = model.model_fields.get(name)
    found = field.annotation if field else None
    return found if isinstance(found, type) and issubclass(found, BaseModel) else None


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise ConfigError(f"{name}: must be JSON, as it sets a list or a table") from None


def _attributed(problem: Problem, variables: Mapping[Path, str], model: type[BaseModel]) -> Problem:
    """The problem, named after the variable that set the key or brought up the unknown section."""
    for path, name in variables.items():
        if problem.path[: len(path)] == path:
            return Problem((name, *problem.path[len(path) :]), problem.message)
        if problem.path == path[:1] and path[0] not in model.model_fields:
            return Problem((name,), problem.message)
    return problem
