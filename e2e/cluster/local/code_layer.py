"""Our Python packages as they lie in an image: importable source, its metadata and its commands.

`install` copies `src/*` with its metadata (vLLM finds the connector by an entry point in it) and
writes a launcher for each command, as an installer would from `pyproject.toml`.  Nothing is built or
downloaded, so a change of our code is in a new image within a second.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

from e2e.cluster.progress import ClusterError
from images import payload

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
    payload.copy_project(project, root / CODE)
    described = tomllib.loads(about.read_text())["project"]
    write_launchers(described.get("scripts", {}), root)


def write_launchers(commands: Mapping[str, str], root: Path) -> None:
    """A program in /usr/local/bin for each `command: module:function`."""
    for command, target in sorted(commands.items()):
        _write_launcher(root / "usr/local/bin" / command, target)


def _write_launcher(path: Path, target: str) -> None:
    module, _, function = target.partition(":")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_LAUNCHER.format(module=module, function=function))
    path.chmod(0o755)
