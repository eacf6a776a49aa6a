"""How much disk kvpool's caches fill, and whether a run began with them: for the ends of `make
test` and `make demo`.

    python3.11 -m e2e.footprint caches     # one phrase: warm, or what a run has to fetch or build
    first python3.11 -m e2e.footprint disk       # one line per folder

Only the standard library is used, so that both can be asked before any environment was installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.local import build, cache
from e2e.cluster.settings import REPOSITORY

GB = 1_000_000_000
WARM = "warm"
VLLM, KUBERNETES, MODEL = "vLLM's environment", "Kubernetes", "the model"
BEGAN, CACHES = "KVPOOL_BEGAN", "KVPOOL_CACHES"
"""Variables in which the Makefile tells a demo when it began (seconds since 1970) and what `caches`
said then."""


@dataclass(frozen=True)
class Place:
    """A folder that a run fills."""

    name: str
    folder: Path


def places(environ: Mapping[str, str] = os.environ) -> list[Place]:
    """Where a run leaves files, under the variables that kvpool, uv and Go look at."""
    home = Path(environ.get("HOME") or Path.home())
    caches = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    modules = Path(environ.get("GOPATH") or home / "go") / "pkg/mod"
    return [
        Place("kvpool's cache", kvpool_cache(environ)),
        Place("the checkout's environments", REPOSITORY / ".venvs"),
        Place("uv's cache", Path(environ.get("UV_CACHE_DIR") or caches / "uv")),
        Place("Go's modules", Path(environ.get("GOMODCACHE") or modules)),
        Place("Go's build cache", Path(environ.get("GOCACHE") or caches / "go-build")),
    ]


def kvpool_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of everything that is slow to make."""
    home = Path(environ.get("HOME") or Path.home())
    return Path(environ.get("KVPOOL_CACHE") or home / ".cache/kvpool")


def filled(folders: Sequence[Path]) -> list[int]:
    """Bytes that each folder fills, zero for one that is missing.

    One `du` counts all of them, because uv links the files of its cache into environments: such a
    file fills the disk once, and is counted where it is met first. Mounts below a folder (the
    volumes of Pods that run) are not in it.
    """
    present = [folder for folder in folders if folder.is_dir()]
    if not present:
        return [0] * len(folders)
    words = ["du", "-skx", *(f"{folder}/" for folder in present)]
    # Its exit status is 1 when a file went away meanwhile, and its sums are right then, too.
    listed = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    sizes = {path: int(size) * 1024 for size, _, path in (line.partition("\t") for line in listed.splitlines())}
    return [sizes.get(f"{folder}/", 0) for folder in folders]


def table(rows: Sequence[tuple[Place, int]]) -> str:
    """One line per place that is not empty, and their sum."""
    lines = [f"{place.name:28} {size / GB:6.1f} GB  {place.folder}" for place, size in rows if size]
    return "\n".join([*lines, f"{'disk in all':28} {sum(size for _, size in rows) / GB:6.1f} GB"])


def disk() -> str:
    """The table of this machine."""
    found = places()
    return table(list(zip(found, filled([place.folder for place in found]), strict=True)))


def missing(cache_folder: Path) -> list[str]:
    """Which slow results the cache lacks for this checkout's pins, so that a run makes them
    first."""
    where = [str(REPOSITORY / "tools/setup.sh"), "where", "engine"]
    variables = {**os.environ, "KVPOOL_CACHE": str(cache_folder)}
    engine = subprocess.run(where, env=variables, capture_output=True, text=True, check=False).stdout.strip()
    results = {
        VLLM: Path(engine) if engine else cache_folder / "engine",
        KUBERNETES: cache_folder / f"bin-{cache.key_of(build.inputs())}",
        MODEL: cache_folder / "models",
    }
    return [name for name, folder in results.items() if not folder.is_dir()]


def phrase(lacking: Sequence[str]) -> str:
    """The state of the caches in a few words."""
    return f"cold: without {', '.join(lacking)}" if lacking else WARM


def closing(environ: Mapping[str, str] = os.environ) -> str:
    """The last lines of a demo: how long it took with everything before it, from which caches, and
    what it left.

    A demo that was not started by `make` knows neither its beginning nor its caches, and tells the
    disk alone.
    """
    began, caches = environ.get(BEGAN, ""), environ.get(CACHES) or "unknown"
    lines = [disk()]
    if began.isdecimal():
        seconds = int(time.time()) - int(began)
        lines.append(f"time in all, set-up included: {duration(seconds)}; caches at the start: {caches}")
    return "\n".join(lines)


def duration(seconds: int) -> str:
    """Minutes and seconds."""
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"


def main(arguments: Sequence[str]) -> int:
    """Print what was asked for; 2 for anything else."""
    match list(arguments):
        case ["caches"]:
            print(phrase(missing(kvpool_cache())))
        case ["disk"]:
            print(disk())
        case _:
            print("python3.11 -m e2e.footprint caches|disk", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
