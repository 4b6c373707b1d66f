"""The whole configuration."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, SerializeAsAny

from mlbalance_client.errors import ConfigError

from . import sources
from .admission import AdmissionConfig
from .base import Section
from .discovery import DiscoveryConfig
from .health_checks import HealthChecksConfig
from .hedging import HedgingConfig
from .http import HttpConfig
from .kinds import DISCOVERY
from .load_reports import LoadReportsConfig, report_kinds
from .outlier_detection import OutlierDetectionConfig, SlowStartConfig
from .picking import PickingConfig
from .retries import RetriesConfig


def _report_of_its_kind(value: Any) -> Any:
    return report_kinds.section(value, default=LoadReportsConfig.model_fields["kind"].default)


class BalancerConfig(Section):
    """Everything that can be set, immutable. Unknown keys and wrong values raise ConfigError.

    Sections may be given as models or as plain tables:
    ``BalancerConfig(discovery={"kind": "static", "replicas": ["http://10.0.0.1:8000"]})``.
    """

    discovery: Annotated[SerializeAsAny[DiscoveryConfig], BeforeValidator(DISCOVERY.section)]
    load_reports: Annotated[SerializeAsAny[LoadReportsConfig], BeforeValidator(_report_of_its_kind)] = (
        LoadReportsConfig()
    )
    picking: PickingConfig = PickingConfig()
    admission: AdmissionConfig = AdmissionConfig()
    hedging: HedgingConfig = HedgingConfig()
    retries: RetriesConfig = RetriesConfig()
    outlier_detection: OutlierDetectionConfig = OutlierDetectionConfig()
    slow_start: SlowStartConfig = SlowStartConfig()
    health_checks: HealthChecksConfig = HealthChecksConfig()
    http: HttpConfig = HttpConfig()
    seed: int | None = Field(
        default=None,
        ge=0,
        lt=2**63,
        description="Makes picks repeatable, for tests and simulation. Unset: drawn from the system.",
    )

    def __init__(self, /, **sections: Any) -> None:
        super().__init__(**sections)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, env: Mapping[str, str] | None = None) -> Self:
        """Read a TOML file. Variables ``MLBALANCE_<SECTION>__<KEY>`` come before what it says.

        ``env``: where to look for them, instead of ``os.environ``. Raises ConfigError if the file cannot be
        read or any key is wrong.
        """
        env = os.environ if env is None else env
        return sources.build(cls, *sources.from_file(path), env)

    @classmethod
    def from_target(
        cls,
        target: str | os.PathLike[str] | BalancerConfig | None = None,
        *,
        env: Mapping[str, str] | None = None,
        **sections: Any,
    ) -> BalancerConfig:
        """The configuration that a target stands for.

        ``target``: a discovery URL (``static://h:p,h:p``), one replica's own URL (``http://h:p``), the path
        of a TOML file, or ``None`` for the variable ``MLBALANCE_TARGET``. Variables
        ``MLBALANCE_<SECTION>__<KEY>`` come before what it says. A configuration is complete and taken as it
        is. ``env``: instead of ``os.environ``. ``sections`` take the place of its own, whole, as in
        ``from_target("static://h:p", hedging={"enabled": False})``. Raises ConfigError.
        """
        if isinstance(target, BalancerConfig):
            found = target
        else:
            env = os.environ if env is None else env
            found = sources.build(cls, *sources.from_target(target, env), env)
        if not sections:
            return found
        discovery = sections.get("discovery")
        if isinstance(discovery, Mapping) and "kind" not in discovery:
            raise ConfigError(
                "discovery: takes the place of all that the target says of it, so that it must name its kind and the "
                f"rest too; or add to the target instead: ?{next(iter(discovery), 'start_timeout_s')}=..."
            )
        return cls(**{**{name: getattr(found, name) for name in cls.model_fields}, **sections})

    def redacted(self) -> dict[str, Any]:
        """All settings in force as plain JSON-able values, secrets masked."""
        return self.model_dump(mode="json")
