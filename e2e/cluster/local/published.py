"""Programs of other projects, built from the Go modules that they publish, with the manifests that belong to them.

A module is built in Go's module cache, by its own go.mod and go.sum, so every dependency is the one its authors pinned; the
module itself is pinned here by its checksum, as it would be in a go.sum of ours.  What is needed of its files is copied
beside the program, so that a cached build works without Go.
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.command import run
from e2e.cluster.local import build, cache, golang
from e2e.cluster.progress import ClusterError, Progress

LINKER = "-s -w"


@dataclass(frozen=True)
class Published:
    """A program of a published Go module.

    Attributes:
        name: of the binary.
        checksum: of the module's content, as in a go.sum (`h1:...`).
        package: path of the main package below the module.
        files: files and folders below the module that are kept beside the binary, under the same paths.
    """

    name: str
    module: str
    version: str
    checksum: str
    package: str
    files: tuple[str, ...]

    @property
    def inputs(self) -> list[str | bytes | Path]:
        """All that decides what the result is, but for the Go version."""
        words = (self.name, self.module, self.version, self.checksum, self.package, *self.files)
        return [platform.machine(), *build.FLAGS, LINKER, *words]


def folder(program: Published, cache_folder: Path, progress: Progress) -> Path:
    """The folder with the program and its files; builds it when the cache has none.

    Raises:
        ClusterError: it can't be fetched or built, or is not what was pinned.
    """

    def make(place: Path) -> None:
        go = golang.find_or_install(cache_folder, progress)
        with progress.during(f"building {program.name} {program.version} from its Go module"):
            module = _download(go, program)
            build.build(go, module, place / program.name, LINKER, program.package)
        for name in program.files:
            _copy(module / name, place / name)

    return cache.folder(cache_folder, program.name, program.inputs, make, progress)


def _download(go: Path, program: Published) -> Path:
    """The module's folder in Go's module cache."""
    what = f"{program.module}@{program.version}"
    # From a folder without a go.mod, else that module's requirements would have a say.
    answer = json.loads(run([go, "mod", "download", "-json", what], cwd=Path("/"), env=build.environment(go)))
    if answer["Sum"] != program.checksum:
        raise ClusterError(
            f"{what} has the checksum {answer['Sum']}, and {program.checksum} was expected: do not use it"
        )
    return Path(answer["Dir"])


def _copy(source: Path, target: Path) -> None:
    """Go's module cache is read-only; the copy is not."""
    files = sorted(one for one in source.rglob("*") if one.is_file()) if source.is_dir() else [source]
    for file in files:
        place = target / file.relative_to(source) if source.is_dir() else target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
