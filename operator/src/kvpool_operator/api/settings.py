"""The operator's own settings, as the chart writes them into a file. Everything has a default.

Unlike the resource, an unknown key is an error: the file is written by the chart of the same version.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, alias_generator=to_camel, populate_by_name=True)


class Images(_Section):
    """Images for pools that name none."""

    redis: str = Field("docker.io/library/redis:8.2", min_length=1)
    valkey: str = Field("docker.io/valkey/valkey:9.0", min_length=1)
    engine: str = Field("kvpool/serving:0.1.0", min_length=1)


class StoreDefaults(_Section):
    """Applied to every store that the operator runs."""

    pod_template: dict[str, Any] = {}
    """Merged into the store's Pod template; its container is called ``store``."""


class EngineDefaults(_Section):
    """Applied to every engine, before what the pool says."""

    args: tuple[str, ...] = ()
    """vLLM arguments between kvpool's and the pool's."""
    env: tuple[dict[str, Any], ...] = ()
    """Environment variables as in a Pod."""
    pod_template: dict[str, Any] = {}
    """Merged into the engine's Pod template; its container is called ``engine``. For clusters where the weights or vLLM itself
    come from a volume."""
    model_paths: dict[str, str] = {}
    """Model id to the directory inside the container where that model already is."""


class Settings(_Section):
    """The whole file."""

    images: Images = Images()
    store_defaults: StoreDefaults = StoreDefaults()
    engine_defaults: EngineDefaults = EngineDefaults()
    cluster_domain: str = "cluster.local"
    watch_namespaces: tuple[str, ...] = ()
    """Empty: all namespaces."""
    resync_seconds: float = Field(300, ge=1)
    """How often a pool is looked at although nothing was seen to change. Reads only."""
    probe_seconds: float = Field(10, ge=0.1)
    """How often an external store is probed, and Pods of an engine that is not ready are looked at."""
    workers: int = Field(4, ge=1, le=64)
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$")
