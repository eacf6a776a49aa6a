"""Our code as a layer, and the Dockerfiles' promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.cluster.local import code_layer
from e2e.cluster.local.images import Workshop, build
from e2e.cluster.progress import ClusterError, Progress
from e2e.cluster.provider import ImageSources
from e2e.cluster.settings import REPOSITORY

IMAGES = REPOSITORY / "images"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    source = tmp_path / "project" / "src" / "sample_package"
    (source / "__pycache__").mkdir(parents=True)
    (source / "__pycache__" / "x.pyc").touch()
    (source / "__init__.py").write_text("def main() -> str:\n    return 'main ran'\n")
    (tmp_path / "project" / "pyproject.toml").write_text(
        '[project]\nname = "sample-package"\nversion = "1.2"\nscripts = {sample = "sample_package:main"}\n'
        '[project.entry-points."some.group"]\nplug = "sample_package:main"\n'
    )
    return tmp_path / "project"


def test_installed_code_is_found_with_its_entry_points(project: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    code_layer.install(project, root)
    look = (
        "import importlib.metadata as m; (e,) = m.entry_points(group='some.group');"
        "print(m.version('sample-package'), e.name, e.load()())"
    )
    seen = subprocess.run(
        [sys.executable, "-c", look],
        env={"PYTHONPATH": str(root / code_layer.CODE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert seen.stdout == "1.2 plug main ran\n"


def test_a_command_becomes_a_launcher(project: Path, tmp_path: Path) -> None:
    code_layer.install(project, tmp_path / "root")
    assert not list((tmp_path / "root").rglob("*.pyc"))
    launcher = tmp_path / "root/usr/local/bin/sample"
    assert launcher.stat().st_mode & 0o111
    assert "from sample_package import main" in launcher.read_text()


def test_a_folder_that_is_no_project_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"{tmp_path} is not a Python project"):
        code_layer.install(tmp_path, tmp_path / "root")


def test_missing_pins_are_named(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "cache", tmp_path, Progress())
    with pytest.raises(ClusterError, match="pins of an image's packages are missing"):
        workshop.python_packages(tmp_path / "operator.txt")


def test_an_unknown_image_is_refused(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path / "cache", tmp_path, Progress())
    with pytest.raises(ClusterError, match="no image named 'sore'"):
        build(workshop, "sore", ImageSources(tmp_path, tmp_path, tmp_path), tmp_path)


@pytest.mark.parametrize("name", ["Dockerfile.operator", "Dockerfile.serving", "Dockerfile.payload"])
def test_a_dockerfile_has_a_tagged_base_a_numeric_user_and_checked_pins(name: str) -> None:
    text = (IMAGES / name).read_text()
    bases = re.findall(r"^ARG (?:BASE|BUILDER)=(\S+)$", text, re.MULTILINE)
    assert bases
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+", base) and not base.endswith(":latest") for base in bases)
    assert set(re.findall(r"^FROM (\S+)", text, re.MULTILINE)) <= {"${BASE}", "${BUILDER}"}
    assert re.findall(r"^USER (.+)$", text, re.MULTILINE)[-1] == "10001:10001"
    for line in re.findall(r"pip install [^&]*", text.replace("\\\n", " ")):
        assert "--require-hashes" in line or "--no-index" in line


@pytest.mark.parametrize("name", ["Dockerfile.operator", "Dockerfile.serving", "Dockerfile.payload"])
def test_what_a_dockerfile_copies_exists_and_is_not_ignored(name: str) -> None:
    allowed = [line[1:] for line in (IMAGES / f"{name}.dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in re.findall(r"^COPY (\S+) ", (IMAGES / name).read_text(), re.MULTILINE):
        assert (REPOSITORY / source).exists()
        assert any(Path(source).match(each) or each.startswith(f"{source}/") for each in allowed), source


@pytest.mark.parametrize("name", ["build-requirements.txt", "serving-requirements.txt"])
def test_pins_have_hashes_and_name_no_index(name: str) -> None:
    text = (IMAGES / name).read_text()
    assert "://" not in text
    for block in re.split(r"\n(?=\w)", text.split("\n", 1)[1]):
        assert re.match(r"[\w-]+==[\w.]+ ", block)
        assert "--hash=sha256:" in block
