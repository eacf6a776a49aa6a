"""The revision of weights that vLLM downloaded: it is the name of their folder in a hub's cache."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kvpool_connector.config import ConfigError
from kvpool_connector.vllm.facts import _weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL: Any = SimpleNamespace(model="acme/tiny", revision=None)


@pytest.fixture
def download_dir(tmp_path: Path) -> Path:
    """A folder as ``--download-dir`` leaves it behind."""
    cached = tmp_path / "models--acme--tiny"
    snapshot = cached / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    return tmp_path


def test_download_dir(download_dir: Path) -> None:
    assert _weights(MODEL, None, str(download_dir)) == f"acme/tiny@{COMMIT}"


def test_weights_that_are_nowhere(tmp_path: Path) -> None:
    """The message names the setting that helps."""
    with pytest.raises(ConfigError, match="model_revision: the weights of 'acme/tiny' cannot be identified"):
        _weights(MODEL, None, str(tmp_path))
