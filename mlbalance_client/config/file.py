"""Replicas from a file."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import unquote

from pydantic import Field

from mlbalance_client.errors import ConfigError

from .base import Section
from .discovery import Replicas
from .registry import RegistryConfig, Seconds
from .urls import TargetURL


class FileConfig(RegistryConfig):
    """A list in a file that something else writes."""

    kind: Literal["file"] = Field(
        default="file", description="A file in JSON, or in TOML if it ends in `.toml`."
    )
    path: Annotated[str, Field(min_length=1, pattern=r"^[^\x00]+$")] = Field(
        description="Holds `replicas`, a list as for `static`; in JSON the list alone will do."
    )
    poll_s: Seconds = Field(
        default=1.0,
        gt=0,
        le=3_600,
        description="How often the file's time and size are looked at. It is read when they have been the same twice.",
    )

    @classmethod
    def from_url(cls, url: TargetURL) -> dict[str, Any]:
        """``file:///absolute/path[?key=value]``."""
        if url.authority or url.tls:
            raise ConfigError(f"target {url.text}: write file:///absolute/path")
        return cls.from_query(url, {"kind": "file", "path": unquote(url.path)})


class ReplicaFile(Section):
    """What is in the file."""

    replicas: Replicas = Field(description="The replicas, each a URL or a table with the keys of a replica.")
