"""LMCache's configuration as tests write it: variables, files, and what came of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvpool_connector.config import ConfigError, Found, find

ROOT = Path(__file__).resolve().parents[3]
PASSWORD = "quarter/deck@7"
QUOTED = "quarter%2Fdeck%407"


def variables(ranks: int = 1, /, **keys: str) -> Found:
    """By ``LMCACHE_*`` variables."""
    return find({}, {f"LMCACHE_{key.upper()}": value for key, value in keys.items()}, ranks=ranks)


def file(folder: Path, text: str, environ: dict[str, str] | None = None, ranks: int = 1) -> Found:
    """By ``LMCACHE_CONFIG_FILE``."""
    path = folder / "lmcache.yaml"
    path.write_text(text)
    return find({}, {"LMCACHE_CONFIG_FILE": str(path)} | (environ or {}), ranks=ranks)


def refused(**keys: str) -> str:
    """The message."""
    with pytest.raises(ConfigError) as caught:
        variables(**keys)
    return str(caught.value)


def remote(**keys: str) -> dict[str, Any]:
    """The store's section, as far as it differs from the defaults."""
    found = variables(**keys).config.remote
    assert found is not None
    return found.model_dump(exclude_defaults=True)


def text(found: Found) -> str:
    """All that is said."""
    return "\n".join(line.text for line in found.lines)
