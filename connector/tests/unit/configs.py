"""Configurations of tests: the smallest, a store, a disk."""

from __future__ import annotations

from typing import Any

import pytest

from kvpool_connector.config import ConfigError, parse

SMALLEST: dict[str, Any] = {"tiers": {"cpu": {"size": "8Gi"}}}
REMOTE: dict[str, Any] = {"type": "redis", "host": "store"}


def with_disk(**changes: object) -> dict[str, Any]:
    """The smallest configuration with a disk tier."""
    return {"tiers": {"cpu": {"size": "8Gi"}, "disk": {"path": "/disk", "size": "64Gi"} | changes}}


def refused(content: object) -> str:
    """The message for a configuration that cannot be used."""
    with pytest.raises(ConfigError) as caught:
        parse(content, "the source")
    return str(caught.value)
