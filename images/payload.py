"""Makes the payload: one folder with the connector, for vLLM images that have none.

    python3 images/payload.py TARGET [--uv PROGRAM]

It goes to the end of ``PYTHONPATH``, so nothing in it hides a package of the image. Of what the
connector needs, vLLM images lack at most xxhash, whose compiled files are in it for every Python and
architecture: their names tell them apart, so wheels of one version fit into one folder. pydantic and
PyYAML come with vLLM.

Runs with Python 3.11 and what it brings; pip or uv downloads the pinned wheels.
"""

from __future__ import annotations

import argparse
import shutil
import struct
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
CONNECTOR = REPOSITORY / "connector"
PINS = REPOSITORY / "images" / "serving-requirements.txt"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ARCHITECTURES = ("x86_64", "aarch64")
MAXIMUM_BYTES = 5 << 20
"""Each Pod copies the payload at its start."""
_LOADED = 1
"""``PT_LOAD`` in ELF's program headers: a part of the file that is mapped into memory."""


def build(target: Path, installer: Sequence[str]) -> None:
    """Make the payload.

    Args:
        target: the folder, which must not be there yet.
        installer: as for :func:`add_wheels`.

    Raises:
        ValueError: wheels do not fit into one folder, or the payload is too large.
        subprocess.CalledProcessError: the installer failed.
    """
    copy_project(CONNECTOR, target)
    add_wheels(target, installer)
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if size > MAXIMUM_BYTES:
        raise ValueError(f"the payload has {size} bytes, and at most {MAXIMUM_BYTES} are allowed")


def add_wheels(target: Path, installer: Sequence[str]) -> None:
    """Put the pinned wheels of all Pythons and architectures into one folder.

    Args:
        installer: the words before ``install`` in a command of pip's or uv's.

    Raises:
        ValueError: they do not fit into one folder.
        subprocess.CalledProcessError: the installer failed.
    """
    is_pip = "-m" in installer
    with tempfile.TemporaryDirectory() as folder:
        for python in PYTHONS:
            for architecture in ARCHITECTURES:
                wheel = Path(folder) / f"{python}-{architecture}"
                platform = (
                    ["--platform", f"manylinux2014_{architecture}", "--no-compile"]
                    if is_pip
                    else ["--python-platform", f"{architecture}-manylinux2014"]
                )
                fixed = ["--quiet", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", str(PINS)]
                where = ["--target", str(wheel), "--python-version", python, *platform]
                subprocess.run([*installer, "install", *fixed, *where], check=True)
                merge(wheel, target)


def copy_project(project: Path, target: Path) -> None:
    """Copy a project's source, with the metadata by which Python finds its entry points.

    Args:
        project: a folder with ``pyproject.toml`` and ``src``.
    """
    shutil.copytree(
        project / "src",
        target,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.pyc"),
    )
    described = tomllib.loads((project / "pyproject.toml").read_text())["project"]
    _write_metadata(described, target)


def _write_metadata(described: dict[str, Any], place: Path) -> None:
    name = described["name"]
    version = described.get("version", "0")
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


def merge(wheel: Path, target: Path) -> None:
    """Add an installed wheel's files: its code, and of its metadata what is alike in all wheels.

    Raises:
        ValueError: a file is there with another content.
    """
    for path in sorted(wheel.rglob("*")):
        name = path.relative_to(wheel)
        is_metadata = name.parts[0].endswith(".dist-info")
        if not path.is_file() or path.name == ".lock" or (is_metadata and "licenses" not in name.parts):
            continue
        content = stripped(path.read_bytes()) if path.suffix == ".so" else path.read_bytes()
        there = target / name
        if there.exists() and there.read_bytes() != content:
            raise ValueError(f"{name} differs between wheels: they do not fit into one folder")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(content)


def stripped(program: bytes) -> bytes:
    """Return a compiled library without what is never loaded, such as nine tenths of debug symbols.

    The loader reads program headers only. So the file may end where the last part that they map
    ends, if its header says that it has no sections. (ELF, 64 bits, little-endian: both
    architectures.)

    Raises:
        ValueError: it is no such library.
    """
    if program[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a library in ELF with 64 bits, little-endian")
    (table,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    headers = [struct.unpack_from("<IIQQQQ", program, table + number * size) for number in range(count)]
    end = max(offset + length for kind, _, offset, _, _, length in headers if kind == _LOADED)
    kept = bytearray(program[:end])
    struct.pack_into("<Q", kept, 40, 0)  # where the sections' headers are
    struct.pack_into("<HH", kept, 60, 0, 0)  # how many, and which one has their names
    return bytes(kept)


def main() -> int:
    """Make the payload that the command line asks for."""
    parser = argparse.ArgumentParser(description="Makes the payload: the connector as one folder.")
    parser.add_argument("target", type=Path, help="the folder to make")
    parser.add_argument("--uv", help="download with this uv, and not with this Python's pip")
    options = parser.parse_args()
    if options.target.exists():
        parser.error(f"{options.target} is there already: name a new folder")
    installer = [options.uv, "pip"] if options.uv else [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build(options.target, installer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
