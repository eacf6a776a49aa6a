"""The slab's folder over several lives: restarts, other sizes, damage, and one owner at a time."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from connector.tests.unit.limits import file_size_limit
from connector.tests.unit.slabs import ENVIRONMENT, IDENTITY, ROW, SLOTS, slab_in, verdict, write
from kvpool_connector.config import ConfigError
from kvpool_connector.format import Verdict
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers.ownership import Ownership
from kvpool_connector.tiers.slab import Slab

# ---- the file


def test_survives_a_restart(tmp_path: Path) -> None:
    """Parts are where they were; the file has its length and its blocks from the start, and is private."""
    slab = slab_in(tmp_path)
    status = (tmp_path / "rank-0.slab").stat()
    assert status.st_size == SLOTS * ROW
    assert status.st_blocks * 512 >= SLOTS * ROW
    assert status.st_mode & 0o777 == 0o600
    write(slab, [6], [9])
    slab.close()
    slab = slab_in(tmp_path)
    assert verdict(slab, 6, 9) is Verdict.INTACT
    slab.close()
    slab.close()


@pytest.mark.parametrize("change", [{"identity": "f" * 32}, {"slots": SLOTS - 2}, {"row_bytes": 2 * ROW}])
def test_made_for_something_else(tmp_path: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object]) -> None:
    """Started anew, which is said once."""
    slab = slab_in(tmp_path)
    write(slab, [0], [1])
    slab.close()
    with caplog.at_level(logging.INFO):
        slab = slab_in(tmp_path, **change)  # type: ignore[arg-type]
    assert caplog.text.count("started anew") == 1
    assert (tmp_path / "rank-0.slab").stat().st_size == slab.slots * slab.row_bytes
    assert verdict(slab, 0, 1) is Verdict.NO_PART
    slab.close()


@pytest.mark.parametrize("note", ["", "{", '{"version": 0}'])
def test_a_damaged_note_starts_anew(tmp_path: Path, note: str) -> None:
    """Also what a crash in the middle of the first start leaves."""
    slab = slab_in(tmp_path)
    write(slab, [0], [1])
    slab.close()
    (tmp_path / "rank-0.json").write_text(note)
    slab = slab_in(tmp_path)
    assert verdict(slab, 0, 1) is Verdict.NO_PART
    slab.close()


def test_cut_between_two_lives(tmp_path: Path) -> None:
    """A file that lost its end is made in full length again."""
    slab_in(tmp_path).close()
    os.truncate(tmp_path / "rank-0.slab", ROW)
    slab = slab_in(tmp_path)
    assert write(slab, [SLOTS - 1], [1]) == [Outcome.HIT]
    assert (tmp_path / "rank-0.slab").stat().st_blocks * 512 >= SLOTS * ROW
    slab.close()


def test_no_slots_is_a_size_too_small(tmp_path: Path) -> None:
    """Named by its field."""
    with pytest.raises(ConfigError, match=r"tiers\.disk\.size: not one block of 12 KiB fits"):
        slab_in(tmp_path, slots=0)


def test_the_folder_is_a_file(tmp_path: Path) -> None:
    """Named by its field."""
    (tmp_path / "folder").touch()
    with pytest.raises(ConfigError, match=r"tiers\.disk\.path: .*folder cannot be used"):
        slab_in(tmp_path / "folder")


def test_the_slab_is_a_folder(tmp_path: Path) -> None:
    """The lock is free again afterwards."""
    (tmp_path / "rank-0.slab").mkdir()
    with pytest.raises(ConfigError, match=r"tiers\.disk\.path: "):
        slab_in(tmp_path)
    Ownership(tmp_path, "rank-0").release()


def test_more_than_the_disk_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused with both sizes, before anything is taken: others on the disk must not find it full for a while."""
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: pytest.fail("asked for"))
    with pytest.raises(ConfigError, match=r"tiers\.disk\.size: \d+ TiB for rank-0\.slab .* free"):
        slab_in(tmp_path, slots=1 << 36)
    assert not (tmp_path / "rank-0.slab").exists()


def test_preallocation_hits_a_limit(tmp_path: Path) -> None:
    """The kernel refuses although the disk has room. Nothing stays behind, and a smaller one can be had at once."""
    with file_size_limit(4 * ROW):
        with pytest.raises(ConfigError, match=r"tiers\.disk\.size: 96 KiB for rank-0\.slab"):
            slab_in(tmp_path)
        assert not (tmp_path / "rank-0.slab").exists()
        slab_in(tmp_path, slots=4).close()


# ---- one owner

HOLDER = """
import sys
from pathlib import Path
from kvpool_connector.tiers.slab import Slab
slab = Slab(Path(sys.argv[1]), 0, int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
print("held", flush=True)
sys.stdin.read()
"""


def test_a_second_process_is_told_who_is_there(tmp_path: Path) -> None:
    """Process, host and since when; a killed owner leaves nothing behind."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(SLOTS), str(ROW), IDENTITY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=ENVIRONMENT, **pipes) as holder:  # type: ignore[call-overload]
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError) as refused:
            slab_in(tmp_path)
        assert (
            f"tiers.disk.path: {tmp_path} (rank-0) is in use by pid {holder.pid} on {socket.gethostname()} since 2"
            in str(refused.value)
        )
        os.kill(holder.pid, signal.SIGKILL)
    slab_in(tmp_path).close()


def test_ranks_do_not_meet(tmp_path: Path) -> None:
    """One folder, a file and a lock for each; a second slab of one rank is refused in the same process too."""
    with_rank = [Slab(tmp_path, rank, SLOTS, ROW, IDENTITY) for rank in (0, 1)]
    with pytest.raises(ConfigError, match=f"is in use by pid {os.getpid()} "):
        slab_in(tmp_path)
    write(with_rank[0], [0], [1])
    assert verdict(with_rank[1], 0, 1) is Verdict.NO_PART
    for slab in with_rank:
        slab.close()


def test_an_owner_that_is_only_just_there(tmp_path: Path) -> None:
    """It holds the lock and has not yet written who it is."""
    ownership = Ownership(tmp_path, "rank-0")
    (tmp_path / "rank-0.lock").write_text("")
    with pytest.raises(ConfigError, match="in use by another process"):
        slab_in(tmp_path)
    ownership.release()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """It leaves the parent's lock alone, and outlives the parent's release."""
    ownership = Ownership(tmp_path, "rank-0")
    ready, tell = os.pipe()
    wait, go = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tell, b"x")
        os.close(go)
        os.read(wait, 1)
        os._exit(0)
    os.read(ready, 1)
    with pytest.raises(ConfigError, match="in use"):
        Ownership(tmp_path, "rank-0")
    ownership.release()
    Ownership(tmp_path, "rank-0").release()
    os.close(go)
    os.waitpid(child, 0)
    for end in (ready, tell, wait):
        os.close(end)


def test_nothing_stays_open(tmp_path: Path) -> None:
    """Neither after an end nor after a refusal; and no thread was made."""
    slab_in(tmp_path).close()
    before = len(list(Path("/proc/self/fd").iterdir()))
    threads = threading.active_count()
    slab = slab_in(tmp_path)
    with pytest.raises(ConfigError):
        slab_in(tmp_path)
    slab.close()
    with pytest.raises(ConfigError):
        slab_in(tmp_path, slots=1 << 36)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert threading.active_count() == threads


def test_other_faults_at_the_start_are_the_path_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that cannot be read. A stand-in: there is no broken disk here."""

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(ConfigError, match=r"tiers\.disk\.path: .* cannot be used: Input/output error"):
        slab_in(tmp_path)
    Ownership(tmp_path, "rank-0").release()
