"""The slab when the kernel refuses: limits, read errors, full devices and file systems, a file cut from outside."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from connector.tests.unit.limits import file_size_limit
from connector.tests.unit.slabs import ENVIRONMENT, ROW, another_file, soon, verdict, write
from kvpool_connector.format import Verdict
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.slab import PAGE, Slab


def test_a_limit_in_the_middle_of_a_row(slab: Slab, caplog: pytest.LogCaptureFixture) -> None:
    """A short write, then EFBIG: what was written before is a hit, the torn one and what follows failed."""
    write(slab, [2], [50])
    with file_size_limit(2 * ROW + PAGE), caplog.at_level(logging.WARNING):
        assert write(slab, [0, 1, 2, 3], [0, 1, 2, 3]) == [Outcome.HIT] * 2 + [Outcome.FAILED] * 2
        for _ in range(3):
            assert write(slab, [4], [4]) == [Outcome.FAILED]
    assert slab.errors == {"EFBIG": 4}
    assert caplog.text.count("failed, its blocks are misses") == 1  # not once per error
    assert verdict(slab, 1, 1) is Verdict.INTACT
    assert verdict(slab, 2, 2) is Verdict.DAMAGED
    assert verdict(slab, 2, 50) is Verdict.OTHER_NAME


def test_a_read_error_fails_its_run_alone(slab: Slab) -> None:
    """EIO from the kernel, by reading unmapped memory as a file; afterwards the slab goes on."""
    write(slab, [0, 1, 4], [0, 1, 4])
    arena = Arena(3, ROW)
    rows = [arena.row(row) for row in range(3)]
    with another_file(slab, "/proc/self/mem"):
        assert slab.read_into([0, 1, 4], rows, soon()) == [Outcome.FAILED] * 3
    assert slab.errors == {"EIO": 2}
    assert slab.read_into([0, 1, 4], rows, soon()) == [Outcome.HIT] * 3


def test_a_full_device(slab: Slab) -> None:
    """ENOSPC from the kernel."""
    with another_file(slab, "/dev/full"):
        assert write(slab, [0, 4], [0, 1]) == [Outcome.FAILED] * 2
    assert slab.errors == {"ENOSPC": 2}


def test_a_file_cut_from_outside(slab: Slab, tmp_path: Path) -> None:
    """A read behind the end is short, not endless."""
    os.truncate(tmp_path / "rank-0.slab", ROW + PAGE)
    arena = Arena(2, ROW)
    assert slab.read_into([0, 1], [arena.row(0), arena.row(1)], soon()) == [Outcome.HIT, Outcome.FAILED]
    assert slab.errors == {"short": 1}


def test_buffered_writes_count_when_the_device_has_them(slab: Slab) -> None:
    """Only then would a bad disk tell. /dev/null takes writes, and refuses to synchronise them."""
    slab.direct = False
    with another_file(slab, "/dev/null"):
        assert write(slab, [0, 4], [0, 1]) == [Outcome.FAILED] * 2
    assert slab.errors == {"EINVAL": 1}


FILE_SYSTEMS = """
import json, logging, os, sys, time
from pathlib import Path
from kvpool_connector.config import ConfigError
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.slab import Slab
logging.basicConfig(level=logging.INFO, stream=sys.stderr)
small, plain, row, said = Path(sys.argv[1]), Path(sys.argv[2]), 1 << 20, {}
try:
    Slab(small, 0, 9, row, "0" * 32)
except ConfigError as error:
    said["refused"] = str(error)
slab, arena = Slab(small, 0, 4, row, "0" * 32), Arena(1, row)
os.truncate(small / "rank-0.slab", 0)  # as where a copy-on-write file system has no room for the copy
(small / "other").write_bytes(bytes(os.statvfs(small).f_bavail * 4096))
said["full"] = [o.value for o in slab.write_from([2], [arena.row(0)], time.monotonic() + 30)], dict(slab.errors)
slab = Slab(plain, 0, 4, row, "0" * 32)
arena.row(0)[:] = b"x" * row
said["direct"] = slab.direct
said["buffered"] = [o.value for o in slab.write_from([2], [arena.row(0)], time.monotonic() + 30)]
arena.row(0)[:] = bytes(row)
slab.read_into([2], [arena.row(0)], time.monotonic() + 30)
said["read"] = bytes(arena.row(0)) == b"x" * row
print(json.dumps(said))
"""


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode != 0,
    reason="mounts file systems: root, with the right to a mount namespace",
)
def test_a_full_file_system_and_one_without_direct_io(tmp_path: Path) -> None:
    """A tmpfs of 8 MiB and a ramfs, in a mount namespace of the child's own."""
    small, plain = tmp_path / "small", tmp_path / "plain"
    small.mkdir()
    plain.mkdir()
    mounts = 'mount -t tmpfs -o size=8m none "$3" && mount -t ramfs none "$4" && exec "$1" -c "$2" "$3" "$4"'
    child = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounts, "sh", sys.executable, FILE_SYSTEMS, small, plain],
        capture_output=True, text=True, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    said = json.loads(child.stdout)
    assert "tiers.disk.size: 9 MiB for rank-0.slab cannot be had" in said["refused"]
    assert "8.0 MiB free" in said["refused"]
    assert said["full"] == [["failed"], {"ENOSPC": 1}]
    assert said["direct"] is False
    assert "buffered, and slower" in child.stderr
    assert said["buffered"] == ["hit"]
    assert said["read"]
