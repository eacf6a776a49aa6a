"""Published modules: what was pinned or nothing, and what is kept of them."""

import json
from pathlib import Path

import pytest

from e2e.cluster.local import golang, published
from e2e.cluster.local.published import Published
from e2e.cluster.progress import ClusterError, Progress
from e2e.controllers import kserve, kuberay

PROGRAM = Published("tool", "example.org/tool", "v1.2.3", "h1:pinned", "./cmd/tool", ("crds", "config/one.yaml"))


def go(folder: Path, checksum: str) -> Path:
    """A stand-in for Go, which would ask the network: it answers a download and "builds" an empty program."""
    module = folder / "module"
    for name in ("crds/a.yaml", "crds/deep/b.yaml", "config/one.yaml", "config/other.yaml"):
        (module / name).parent.mkdir(parents=True, exist_ok=True)
        (module / name).write_text(name)
        (module / name).chmod(0o444)
    answer = json.dumps({"Dir": str(module), "Sum": checksum})
    program = folder / "go"
    program.write_text(
        f"""#!/bin/sh
case "$1" in
  mod) echo '{answer}' ;;
  build) while [ "$1" != -o ]; do shift; done; touch "$2" ;;
esac
"""
    )
    program.chmod(0o755)
    return program


def test_the_program_and_its_files_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = go(tmp_path, "h1:pinned")
    monkeypatch.setattr(golang, "find_or_install", lambda *_: program)
    place = published.folder(PROGRAM, tmp_path / "cache", Progress())
    files = sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file())
    assert files == ["config/one.yaml", "crds/a.yaml", "crds/deep/b.yaml", "tool"]
    assert (place / "crds/deep/b.yaml").read_text() == "crds/deep/b.yaml"
    (place / "crds/a.yaml").write_text("writable, unlike in the module cache")


def test_another_content_than_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = go(tmp_path, "h1:other")
    monkeypatch.setattr(golang, "find_or_install", lambda *_: program)
    with pytest.raises(ClusterError, match="h1:other, and h1:pinned was expected"):
        published.folder(PROGRAM, tmp_path / "cache", Progress())
    assert not list((tmp_path / "cache").glob("tool-*"))


def test_programs_are_pinned_by_checksum() -> None:
    for program in (kserve.PROGRAM, kuberay.PROGRAM):
        assert program.checksum.startswith("h1:")
        assert program.checksum in program.inputs
