"""The reference of all settings, made from the models: ``python -m mlbalance_client.config.docs > FILE``."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from .balancer import BalancerConfig
from .describe import bounds, kind_words, unit
from .discovery import ReplicaConfig
from .kinds import BUILT_IN
from .registry import RegistryConfig

_HEAD = """\
# Configuration

<!-- Generated: python -m mlbalance_client.config.docs > docs/configuration.md -->

A client takes a **target**:

| target | meaning |
|---|---|
| `static://10.0.0.1:8000,10.0.0.2:8000` | these replicas; `static+https://` for TLS to them. \
A path after the last one is a prefix for all (not the `/v1` of an API, which requests bring); \
`?model=a,b` names the models that all of them serve |
| `srv://_llm._tcp.example.com`, `dns://llm.example.com:8000` | DNS: SRV records, or every address of a name |
| `consul://127.0.0.1:8500/llm?dc=dc1&tag=gpu` | the instances of a service in Consul |
| `k8s://namespace/service:port` | the endpoints of a service in Kubernetes |
| `file:///etc/replicas.json` | a file that something else writes |
| `http://10.0.0.1:8000`, `https://llm.example` | one replica |
| `fleet.toml` | a TOML file with the sections below |
| `BalancerConfig(discovery={"kind": "static", "replicas": [...]}, picking={...})` | the same as an object |
| `BalancerConfig.from_target("static://10.0.0.1:8000", hedging={"enabled": False}, retries={"max_attempts": 1})` | \
any of these targets, with sections of your own: here neither hedging nor retries |
| nothing | the variable `MLBALANCE_TARGET`, which holds a URL or a path as above |

```toml
seed = 7

[discovery]
kind = "static"
replicas = [
    "http://10.0.0.1:8000",
    { url = "http://10.0.0.2:8000", id = "llm-2", weight = 2, zone = "a", labels = { model = "m" } },
]

[picking]
miss_weight = 1.5

[http]
read_timeout_s = 120
```

**Environment.** A variable `MLBALANCE_<SECTION>__<KEY>` (two underscores) comes before what the URL or the
file says: `MLBALANCE_PICKING__MISS_WEIGHT=1.5`. Lists and tables are written in JSON:
`MLBALANCE_DISCOVERY__REPLICAS='["http://10.0.0.1:8000"]'`. An empty variable counts as not set. Keys outside
the sections have no section in the name: `MLBALANCE_SEED=7`. Other variables without two underscores are left
alone, as Kubernetes makes such for a service named `mlbalance`.

Everything is checked before the first call. Unknown keys and wrong values raise `ConfigError`, one line for
each, with the key or variable at fault, what was given, and what is allowed. Secrets are never shown. A
configuration is immutable. Durations are seconds.
"""

_PLUGINS = """\
Other packages add kinds by an entry point in the group `mlbalance_client.discovery`: its name is the kind,
and it loads to a class with `config_type`, a subclass of `DiscoveryConfig` (or of `RegistryConfig`, which
brings the keys above), that is called with such a configuration. An unknown kind is refused, with those that
are installed.
"""

_REPORT_PLUGINS = """\
Other packages add kinds by an entry point in the group `mlbalance_client.load_reports`: its name is the kind, and it
loads to a class with `config_type`, a subclass of `LoadReportsConfig`, that is called with such a configuration, once
for each replica, and gives a `mlbalance_client.load_reports.Format`. `mlbalance_client.testing.load_reports` tests one.
"""


def render() -> str:
    """The whole page, in Markdown."""
    return "\n".join(_parts())


def _parts() -> Iterator[str]:
    sections = _sections()
    yield _HEAD
    yield "## Outside the sections\n"
    yield _table({name: f for name, f in BalancerConfig.model_fields.items() if name not in sections})
    yield "## `[discovery]`\n"
    yield "Where the replicas are; each kind has keys of its own.\n"
    shared = {name: f for name, f in RegistryConfig.model_fields.items() if name != "kind"}
    for kind, section in BUILT_IN.items():
        own = sorted(section.model_fields.items(), key=lambda item: not item[1].is_required())
        yield f'### `kind = "{kind}"`\n'
        yield f"{section.__doc__}\n"
        yield _table({name: f for name, f in own if name not in shared})
        if kind == "static":
            yield "A replica is a URL or a table:\n"
            yield _table(ReplicaConfig.model_fields)
    yield "### All kinds but `static`\n"
    yield "How far their word is trusted; [discovery.md](discovery.md) tells the whole.\n"
    yield _table(shared)
    yield _PLUGINS
    for name, part in sections.items():
        if name != "discovery":
            yield f"## `[{name}]`\n"
            yield f"{part.__doc__}\n"
            yield _table(part.model_fields)
        if name == "load_reports":
            yield _REPORT_PLUGINS


def _sections() -> dict[str, type[BaseModel]]:
    return {
        name: field.annotation
        for name, field in BalancerConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _table(fields: dict[str, FieldInfo]) -> str:
    if not fields:
        return "No keys in this version.\n"
    rows = ["| key | type | default | unit | bounds | meaning |", "|---|---|---|---|---|---|"]
    return "\n".join([*rows, *(_row(name, field) for name, field in fields.items())]) + "\n"


def _row(name: str, field: FieldInfo) -> str:
    kind, metadata = field.annotation, field.metadata
    cells = (
        f"`{name}`",
        kind_words(field),
        _default(field),
        unit(kind, metadata),
        bounds(kind, metadata),
        field.description or "",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    match field.get_default(call_default_factory=True):
        case None:
            return "unset"
        case bool() as value:
            return f"`{str(value).lower()}`"
        case int() | float() as value:
            return f"`{value:_}`"
        case tuple() as value:
            return f"`{list(value)}`"
        case value:
            return f"`{value}`"


if __name__ == "__main__":
    sys.stdout.write(render())
