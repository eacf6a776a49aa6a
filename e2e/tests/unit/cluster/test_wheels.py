"""Which installer is taken. Its work is seen in the images of the real cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from e2e.cluster.local import wheels
from e2e.cluster.progress import ClusterError


def executable(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\nexit 0\n")
    path.chmod(0o755)
    return path


def test_uv_on_the_path_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = executable(tmp_path / "bin/uv")
    executable(tmp_path / "cache/uv-1/bin/uv")
    monkeypatch.setenv("PATH", str(uv.parent))
    assert wheels.installer(tmp_path / "cache") == [str(uv), "pip"]


def test_then_the_uv_of_the_set_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = executable(tmp_path / "cache/uv-1/bin/uv")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert wheels.installer(tmp_path / "cache") == [str(kept), "pip"]


def test_then_pip_of_a_python_that_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running Python's environment may have none; the one that it was made from has."""
    base = executable(tmp_path / "base/bin/python3")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "base"))
    assert wheels.installer(tmp_path)[:3] == [str(base), "-m", "pip"]


def test_nothing_to_install_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    with pytest.raises(ClusterError, match="neither uv nor pip"):
        wheels.installer(tmp_path)
