"""What `make test` does with a part that fails.

`make` is a stand-in here: the real one takes half an hour, and no real part fails on demand. The
script is the real one, and so are the folders that it measures, but for the caches, which are
empty.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from e2e.cluster.settings import REPOSITORY

PARTS = [
    "setup",
    "check",
    "test-unit",
    "test-controllers",
    "test-paced",
    "test-store",
    "test-apiserver",
    "test-engine",
    "test-demo",
    "test-cluster",
]
PYTEST = """\
Using --randomly-seed=4711
FAILED in the middle of a test's output is no verdict
=========================== short test summary info ============================
SKIPPED [2] connector/tests/store/test_mooncake.py:12: needs RDMA
FAILED connector/tests/store/test_redis.py::test_one - assert 1 == 2
ERROR connector/tests/store/test_redis.py::test_two - OSError: no server
"""
PASSED = """\
Using --randomly-seed=12
=========================== short test summary info ============================
SKIPPED [1] operator/tests/apiserver/test_ray.py:3: KubeRay's chart is not here
"""


@pytest.fixture
def fake(tmp_path: Path) -> Path:
    """A folder with a `make` that prints the file named like its target and exits with the code in
    `<target>.code`."""
    script = tmp_path / "bin/make"
    script.parent.mkdir()
    lines = ["#!/bin/bash", f'cd "{tmp_path}"', 'echo "part $2"', 'cat "$2" 2>/dev/null']
    script.write_text("\n".join([*lines, 'exit "$(cat "$2.code" 2>/dev/null || echo 0)"']) + "\n")
    script.chmod(0o755)
    return tmp_path


def outcome(fake: Path) -> tuple[int, list[str]]:
    """The script's exit code and the lines that it printed."""
    caches = ("KVPOOL_CACHE", "UV_CACHE_DIR", "GOCACHE", "GOMODCACHE", "TMPDIR")
    variables = {name: str(fake / name.lower()) for name in caches} | {"KVPOOL_BUSY": ""}
    (fake / "tmpdir").mkdir()
    done = subprocess.run(
        [str(REPOSITORY / "tools/run_tests.sh")],
        env={**os.environ, **variables, "PATH": f"{fake}/bin{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout.splitlines()


def cells(lines: list[str]) -> dict[str, list[str]]:
    """The table of parts: a row without its seconds, by the name of the part."""
    rows = [line.split() for line in lines[lines.index("==== parts") + 1 :]]
    return {row[0]: [*row[1:3], *row[4:]] for row in rows if row and row[0] in PARTS}


def test_later_parts_run_after_a_failure_and_all_failures_are_told(fake: Path) -> None:
    (fake / "check").write_text("".join(f"line {number}\n" for number in range(50)) + "bad.py:1: F401 unused import\n")
    (fake / "check.code").write_text("2")
    (fake / "test-store").write_text(PYTEST)
    (fake / "test-store.code").write_text("3")
    (fake / "test-apiserver").write_text(PASSED)
    code, lines = outcome(fake)
    assert code == 3
    assert [line for line in lines if line.startswith("part ")][: len(PARTS)] == [f"part {part}" for part in PARTS]
    table = cells(lines)
    assert list(table) == PARTS
    assert table["check"] == ["FAILED", "2"]
    assert table["test-store"] == ["FAILED", "3", "--randomly-seed=4711"]
    assert table["test-apiserver"] == ["ok", "0", "--randomly-seed=12"]
    summary = lines[lines.index("==== skipped tests") :]
    assert "none" not in summary
    check = summary[summary.index("==== failed: make check") :][:14]
    assert "bad.py:1: F401 unused import" in check
    assert "line 10" not in check
    assert [line for line in summary if line.startswith(("FAILED", "ERROR", "SKIPPED", "in the same order"))] == [
        "SKIPPED [2] connector/tests/store/test_mooncake.py:12: needs RDMA",
        "SKIPPED [1] operator/tests/apiserver/test_ray.py:3: KubeRay's chart is not here",
        "FAILED connector/tests/store/test_redis.py::test_one - assert 1 == 2",
        "ERROR connector/tests/store/test_redis.py::test_two - OSError: no server",
        "in the same order: PYTEST_ADDOPTS=--randomly-seed=4711 make test-store",
    ]
    assert "make test: failed: check test-store" in lines[-1]
    assert max(map(len, summary[:-1])) <= 100
    log = Path(lines[-1].rpartition(" ")[2])
    assert (log / "test-store").read_text() == "part test-store\n" + PYTEST


def test_nothing_else_runs_when_setup_fails(fake: Path) -> None:
    (fake / "setup").write_text("setup: python3.11 is missing\n")
    (fake / "setup.code").write_text("2")
    code, lines = outcome(fake)
    assert code == 2
    assert cells(lines) == {"setup": ["FAILED", "2"]}
    assert "part check" not in lines
    assert "setup: python3.11 is missing" in lines[lines.index("==== failed: make setup") :]
    assert "nothing works without make setup" in lines[-1]


def test_a_run_without_failures_says_so_by_its_code_and_keeps_no_logs(fake: Path) -> None:
    code, lines = outcome(fake)
    assert code == 0
    assert {row[0] for row in cells(lines).values()} == {"ok"}
    assert lines[lines.index("==== skipped tests") + 1] == "none"
    assert any(line.startswith("disk in all") for line in lines)
    assert lines[-1].endswith("caches at the start: cold: without vLLM's environment, Kubernetes, the model")
    assert not list((fake / "tmpdir").iterdir())
