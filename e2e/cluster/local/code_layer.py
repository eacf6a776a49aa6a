"""Our Python packages as they lie in an image: importable source, its metadata and its commands.

`install` copies `src/*` and writes what an installer would write for it from `pyproject.toml`: a `.dist-info` with
the entry points (vLLM finds the connector by one) and a launcher per command.  Nothing is built or downloaded,
so a change of our code is in a new image within a second.
"""

from __future__ import annotations

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2e.cluster.progress import ClusterError

CODE = "opt/kvpool"

_LAUNCHER = """\
#!/usr/bin/python3
import sys

from {module} import {function}

sys.exit({function}())
"""


def install(project: Path, root: Path) -> None:
    """Put the project (a folder with pyproject.toml and src/) into the root file system `root`."""
    source, about = project / "src", project / "pyproject.toml"
    if not source.is_dir() or not about.is_file():
        raise ClusterError(f"{project} is not a Python project: it has no pyproject.toml with src/")
    shutil.copytree(
        source, root / CODE, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc")
    )
    described = tomllib.loads(about.read_text())["project"]
    _write_metadata(described, root / CODE)
    write_launchers(described.get("scripts", {}), root)


def write_launchers(commands: Mapping[str, str], root: Path) -> None:
    """A program in /usr/local/bin for each `command: module:function`."""
    for command, target in sorted(commands.items()):
        _write_launcher(root / "usr/local/bin" / command, target)


def _write_metadata(described: dict[str, Any], place: Path) -> None:
    name, version = described["name"], described.get("version", "0")
    info = place / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "INSTALLER").write_text("kvpool-images\n")
    groups = {"console_scripts": described.get("scripts", {}), **described.get("entry-points", {})}
    lines: list[str] = []
    for group, entries in sorted(groups.items()):
        if entries:
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in sorted(entries.items())), ""]
    (info / "entry_points.txt").write_text("\n".join(lines))


def _write_launcher(path: Path, target: str) -> None:
    module, _, function = target.partition(":")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_LAUNCHER.format(module=module, function=function))
    path.chmod(0o755)
