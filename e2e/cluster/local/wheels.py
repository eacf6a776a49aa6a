"""Wheels from PyPI into a folder, with whichever installer is there: uv on the PATH, the uv that ``tools/setup.sh`` keeps in the
cache, or pip. A virtual environment made by uv has no pip, so the running Python alone is not asked."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from e2e.cluster.command import run, succeeds
from e2e.cluster.progress import ClusterError


def install(pins: Path, target: Path, *, cache: Path, options: Sequence[str] = ()) -> None:
    """Install exactly the pinned wheels; their hashes are checked.

    Args:
        pins: a requirements file with hashes.
        cache: kvpool's cache.
        options: further ones that uv and pip share.

    Raises:
        ClusterError: no installer, or it failed.
    """
    fixed = [
        "--quiet",
        "--no-deps",
        "--require-hashes",
        "--only-binary=:all:",
        "--target",
        str(target),
        "-r",
        str(pins),
    ]
    run([*installer(cache), "install", *options, *fixed])


def installer(cache: Path) -> list[str]:
    """The first words of the command."""
    kept = sorted(cache.glob("uv-*/bin/uv"))
    uv = shutil.which("uv") or (str(kept[-1]) if kept else None)
    if uv is not None:
        return [uv, "pip"]
    for python in (sys.executable, f"{sys.base_prefix}/bin/python3"):
        if succeeds([python, "-m", "pip", "--version"]):
            return [python, "-m", "pip", "--disable-pip-version-check"]
    raise ClusterError("neither uv nor pip is here to install packages with: install one of them")
