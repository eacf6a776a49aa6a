"""The payload: what users' Pods get of kvpool where their image has none."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from e2e.cluster.local import wheels
from e2e.cluster.settings import read_settings
from images import payload

_LOOK = """
import importlib.metadata, sys
import kvpool_connector.format, xxhash
(entry,) = importlib.metadata.entry_points(group="vllm.general_plugins")
print(entry.name, callable(entry.load()), xxhash.xxh3_64(b"a").hexdigest(), xxhash.__file__)
print("%d.%d" % sys.version_info[:2])
"""
DIGEST = "e6c632b61e964e1f"
"""xxh3_64 of ``a``."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("payload") / "payload"
    payload.build(target, wheels.installer(read_settings("default").cache))
    return target


def interpreter(version: str) -> str | None:
    """Return a Python of this version, or None if this machine has none."""
    kept = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    return str(kept[0]) if kept else shutil.which(f"python{version}", path="/usr/bin:/usr/local/bin")


def looked(python: str, *path: Path) -> str:
    environment = {"PYTHONPATH": os.pathsep.join(map(str, path)), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([python, "-c", _LOOK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_small_and_holds_every_python_and_architecture(made: Path) -> None:
    size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    print(f"{size / 1e6:.2f} MB")
    assert size < 5e6
    names = {path.name for path in (made / "xxhash").glob("*.so")}
    assert names == {
        f"_xxhash.cpython-{python.replace('.', '')}-{architecture}-linux-gnu.so"
        for python in ("3.10", "3.11", "3.12", "3.13")
        for architecture in ("x86_64", "aarch64")
    }
    assert {path.name.partition("-")[0] for path in made.iterdir()} == {"kvpool_connector", "xxhash"}
    assert not list(made.rglob("*.pyc"))
    assert list(made.glob("xxhash-*.dist-info/licenses/LICENSE"))


@pytest.mark.parametrize("version", payload.PYTHONS)
def test_a_python_finds_the_plug_in_and_all_that_it_needs(made: Path, version: str) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} on this machine")
    assert looked(python, made) == f"KVPoolConnector True {DIGEST} {made}/xxhash/__init__.py\n{version}\n"


def test_a_package_of_the_image_is_not_hidden(made: Path, tmp_path: Path) -> None:
    """Ours comes last in PYTHONPATH."""
    own = tmp_path / "xxhash"
    shutil.copytree(made / "xxhash", own)
    python = interpreter("3.11")
    assert python is not None
    assert f"{own}/__init__.py" in looked(python, tmp_path, made)


def test_wheels_that_differ_do_not_fit_into_one_folder(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text(f"name = {name!r}\n")
    target = tmp_path / "target"
    payload.merge(tmp_path / "first", target)
    with pytest.raises(ValueError, match=r"code\.py differs between wheels"):
        payload.merge(tmp_path / "second", target)


def test_what_is_no_library_is_refused() -> None:
    with pytest.raises(ValueError, match="not a library"):
        payload.stripped(b"\x7fELF\x01\x01" + b"\0" * 60)
