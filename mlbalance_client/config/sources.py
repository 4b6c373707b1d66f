"""Where raw settings come from: a target, a TOML file, the environment."""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from mlbalance_client.errors import ConfigError

from .base import InvalidConfig, Problem
from .describe import is_structured
from .discovery import is_table
from .kinds import config_type, discovery_kinds
from .urls import replica_url, shown, target_url

if TYPE_CHECKING:
    from .balancer import BalancerConfig

    ConfigT = TypeVar("ConfigT", bound=BalancerConfig)

PREFIX = "MLBALANCE_"
TARGET = PREFIX + "TARGET"
_FORMS = "static://host:port,host:port, http://host:port, a path to a TOML file, or a BalancerConfig"

Raw = dict[str, Any]


def from_target(target: str | Path | None, env: Mapping[str, str] | None) -> tuple[Raw, str]:
    """The raw settings that a target stands for, and what to call it in messages."""
    if target is None:
        target = _environment(env).get(TARGET) or None
    match target:
        case None:
            return {}, "environment"
        case Path():
            return from_file(target)
        case str() if "://" in target:
            return _from_url(target)
        case str():
            return from_file(target)
        case _:
            raise ConfigError(f"target of type {type(target).__name__}: must be {_FORMS}")


def from_file(path: str | Path) -> tuple[Raw, str]:
    """Read TOML. Raises ConfigError if there is no such file or it is not TOML."""
    name = shown(str(path))
    try:
        with open(path, "rb") as file:
            return tomllib.load(file), name
    except FileNotFoundError:
        raise ConfigError(f"target {name!r}: no such file; must be {_FORMS}") from None
    except OSError as error:
        raise ConfigError(f"target {name!r}: cannot be read: {error.strerror}; must be {_FORMS}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not TOML: {error}") from None


def build(model: type[ConfigT], raw: Raw, where: str, env: Mapping[str, str] | None) -> ConfigT:
    """Lay the environment over ``raw`` and check it all. Problems name the file or variable at fault."""
    variables = _overrides(model, _environment(env))
    for path, name in variables.items():
        _put(raw, path, _environment(env)[name])
    _read_json(model, raw, variables, _environment(env))
    if "discovery" not in raw:
        raise ConfigError(f"{where}: no target; give {_FORMS}, or set {TARGET}")
    try:
        return model.model_validate(raw)
    except InvalidConfig as error:
        named = [_attributed(problem, variables) for problem in error.problems]
        raise InvalidConfig(named, where) from None


def _environment(env: Mapping[str, str] | None) -> Mapping[str, str]:
    return os.environ if env is None else env


def _from_url(target: str) -> tuple[Raw, str]:
    if target.lower().startswith(("http://", "https://")):
        return {"discovery": {"kind": "static", "replicas": [str(replica_url(target))]}}, "target"
    url = target_url(target)
    if url.kind not in discovery_kinds():
        raise ConfigError(
            f"target {url.text}: discovery kind {url.kind[:40]!r} is not installed; "
            f"available: {', '.join(discovery_kinds())}; or {_FORMS}"
        )
    return {"discovery": config_type(url.kind).from_url(url)}, "target"


def _overrides(model: type[BaseModel], env: Mapping[str, str]) -> dict[tuple[str, ...], str]:
    """Variables by the key path they set. Those without ``__`` may be another's: Kubernetes sets such."""
    found: dict[tuple[str, ...], str] = {}
    for name in sorted(env):
        path = tuple(name.removeprefix(PREFIX).lower().split("__"))
        if not name.startswith(PREFIX) or not env[name]:
            continue
        if len(path) == 2 or (len(path) == 1 and path[0] in _scalars(model)):
            found[path] = name
        elif len(path) > 2:
            raise ConfigError(f"{name}: names no key; write {PREFIX}<SECTION>__<KEY>")
    return found


def _scalars(model: type[BaseModel]) -> set[str]:
    return {name for name, field in model.model_fields.items() if not is_structured(field)}


def _put(raw: Raw, path: tuple[str, ...], text: str) -> None:
    if len(path) == 1:
        raw[path[0]] = text
    elif is_table(section := raw.setdefault(path[0], {})):
        section[path[1]] = text


def _read_json(
    model: type[BaseModel], raw: Raw, variables: Mapping[tuple[str, ...], str], env: Mapping[str, str]
) -> None:
    for path, name in variables.items():
        section = _section(model, raw, path[0])
        field = section.model_fields.get(path[-1]) if section else None
        if field and len(path) == 2 and is_structured(field) and is_table(raw[path[0]]):
            try:
                raw[path[0]][path[1]] = json.loads(env[name])
            except (ValueError, RecursionError):
                raise ConfigError(f"{name}: must be JSON, such as a list in brackets") from None


def _section(model: type[BaseModel], raw: Raw, name: str) -> type[BaseModel] | None:
    if name == "discovery":
        kind = raw[name].get("kind") if is_table(raw[name]) else None
        return config_type(kind) if kind in discovery_kinds() else None
    field = model.model_fields.get(name)
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _attributed(problem: Problem, variables: Mapping[tuple[str, ...], str]) -> Problem:
    for path, name in variables.items():
        if problem.path[: len(path)] == path or problem.path == path[:1]:
            return Problem((), f"{name} ({problem})" if problem.path else str(problem))
    return problem
