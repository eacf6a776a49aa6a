"""The disk slab: real files, real errors of the kernel, real killed writers."""

from __future__ import annotations

import errno
import itertools
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.tests.unit.limits import file_size_limit
from kvpool_connector.config import ConfigError
from kvpool_connector.format import HEADER_BYTES, Verdict, check, part_name, seal
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers import slab as slab_module
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.ownership import Ownership
from kvpool_connector.tiers.slab import PAGE, Slab, runs

IDENTITY = "00112233445566778899aabbccddeeff"
PAGES = 3
ROW = PAGES * PAGE
PAYLOAD = ROW - HEADER_BYTES
SLOTS = 8
LATER = 30.0

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def slab_in(folder: Path, slots: int = SLOTS, row_bytes: int = ROW, identity: str = IDENTITY) -> Slab:
    """Rank 0's."""
    return Slab(folder, 0, slots, row_bytes, identity)


def soon() -> float:
    """A deadline that does not matter."""
    return time.monotonic() + LATER


def name_of(number: int) -> bytes:
    """Of part ``number``."""
    return part_name(IDENTITY, 0, number.to_bytes(8, "little"))


def fill(arena: Arena, slot: int, number: int) -> None:
    """Part ``number``, sealed."""
    payload = arena.payload(slot, arena.row_bytes - HEADER_BYTES)
    payload[:] = np.random.default_rng(number).integers(0, 256, payload.size, np.uint8)
    seal(arena.row(slot), IDENTITY, name_of(number))


def filled(numbers: Sequence[int]) -> Arena:
    """One part per row."""
    arena = Arena(len(numbers), ROW)
    for slot, number in enumerate(numbers):
        fill(arena, slot, number)
    return arena


def write(slab: Slab, slots: Sequence[int], numbers: Sequence[int]) -> list[Outcome]:
    """Parts of these numbers to these slots."""
    arena = filled(numbers)
    return slab.write_from(slots, [arena.row(row) for row in range(len(slots))], soon())


def verdict(slab: Slab, slot: int, number: int) -> Verdict:
    """What a load of part ``number`` from this slot finds."""
    arena = Arena(1, slab.row_bytes)
    assert slab.read_into([slot], [arena.row(0)], soon()) == [Outcome.HIT]
    return check(arena.row(0), IDENTITY, name_of(number))


@pytest.fixture
def slab(tmp_path: Path) -> Iterator[Slab]:
    """Fresh."""
    slab = slab_in(tmp_path)
    yield slab
    slab.close()


@contextmanager
def another_file(slab: Slab, path: str) -> Iterator[None]:
    """The slab's file descriptor leads elsewhere: the kernel's own errors, without a broken disk."""
    saved, other = os.dup(slab._fd), os.open(path, os.O_RDWR)
    os.dup2(other, slab._fd)
    try:
        yield
    finally:
        os.dup2(saved, slab._fd)
        os.close(saved)
        os.close(other)


# ---- reads and writes


def test_round_trip_in_any_order(slab: Slab) -> None:
    """Neighbours and single slots, written in one order and read in another."""
    order = [3, 4, 5, 0, 7, 6, 1, 2]
    assert write(slab, order, [100 + slot for slot in order]) == [Outcome.HIT] * SLOTS
    arena = Arena(SLOTS, ROW)
    assert slab.read_into(range(SLOTS), [arena.row(slot) for slot in range(SLOTS)], soon()) == [Outcome.HIT] * SLOTS
    for slot in range(SLOTS):
        assert check(arena.row(slot), IDENTITY, name_of(100 + slot)) is Verdict.INTACT
    assert slab.direct, "the temporary folder's file system has no direct I/O"
    assert not slab.errors


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(1, 4))
def test_runs_cover_all_positions_in_order(slots: list[int], longest: int) -> None:
    """Each run neighbours only, none too long, none that could have been one with the run before it."""
    found = list(runs(slots, longest))
    assert [position for start, stop in found for position in range(start, stop)] == list(range(len(slots)))
    for start, stop in found:
        assert stop - start <= longest
        assert slots[start:stop] == list(range(slots[start], slots[start] + stop - start))
    for (before, border), _ in itertools.pairwise(found):
        assert border - before == longest or slots[border] != slots[border - 1] + 1


def test_no_slots(slab: Slab) -> None:
    """A batch may be empty."""
    assert slab.read_into([], [], soon()) == []


def test_short_calls_are_completed(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may move less than asked for, even part of a page. A stand-in, since it rarely does so on demand."""

    def cut(call: object) -> object:
        def short(fd: int, buffers: Sequence[memoryview], offset: int) -> int:
            count: int = call(fd, [buffers[0][: 2 * PAGE]], offset)  # type: ignore[operator]
            return min(count, PAGE + 100)

        return short

    monkeypatch.setattr(os, "pwritev", cut(os.pwritev))
    monkeypatch.setattr(os, "preadv", cut(os.preadv))
    assert write(slab, [2, 3, 4], [2, 3, 4]) == [Outcome.HIT] * 3
    for number in (2, 3, 4):
        assert verdict(slab, number, number) is Verdict.INTACT


def test_late_calls_are_not_begun(slab: Slab) -> None:
    """The rows stay as they are."""
    assert write(slab, [0], [1]) == [Outcome.HIT]
    arena = filled([7])
    assert slab.read_into([0], [arena.row(0)], time.monotonic()) == [Outcome.TIMEOUT]
    assert check(arena.row(0), IDENTITY, name_of(7)) is Verdict.INTACT


def test_a_deadline_cuts_the_end(slab: Slab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at between calls: what was read before it stays a hit, and the first of the batch comes first."""
    assert write(slab, [5, 1, 3], [5, 1, 3]) == [Outcome.HIT] * 3
    clock = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(slab_module, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    arena = Arena(3, ROW)
    outcomes = slab.read_into([5, 1, 3], [arena.row(row) for row in range(3)], 1.5)
    assert outcomes == [Outcome.HIT, Outcome.HIT, Outcome.TIMEOUT]
    assert check(arena.row(0), IDENTITY, name_of(5)) is Verdict.INTACT
    assert check(arena.row(1), IDENTITY, name_of(1)) is Verdict.INTACT


# ---- torn writes


@pytest.mark.parametrize("whole", range(1, PAGES))
@pytest.mark.parametrize("from_the_end", [False, True])
def test_a_torn_write_is_never_served(slab: Slab, tmp_path: Path, whole: int, from_the_end: bool) -> None:
    """Some pages of the new part over the old one, in either order: no name finds an intact part."""
    assert write(slab, [2], [1]) == [Outcome.HIT]
    new = bytes(filled([2]).row(0))
    kept = slice((PAGES - whole) * PAGE, ROW) if from_the_end else slice(0, whole * PAGE)
    with (tmp_path / "rank-0.slab").open("r+b") as file:
        file.seek(2 * ROW + kept.start)
        file.write(new[kept])
    assert verdict(slab, 2, 1) is (Verdict.DAMAGED if from_the_end else Verdict.OTHER_NAME)
    assert verdict(slab, 2, 2) is (Verdict.OTHER_NAME if from_the_end else Verdict.DAMAGED)


def test_half_a_part_in_an_empty_slot(slab: Slab, tmp_path: Path) -> None:
    """With its header it is damaged, without it is no part."""
    part = bytes(filled([2]).row(0))
    with (tmp_path / "rank-0.slab").open("r+b") as file:
        file.write(part[: ROW // 2])
        file.seek(ROW + ROW // 2)
        file.write(part[ROW // 2 :])
    assert verdict(slab, 0, 2) is Verdict.DAMAGED
    assert verdict(slab, 1, 2) is Verdict.NO_PART


WRITER = """
import sys, time
from pathlib import Path
import numpy as np
from kvpool_connector.format import HEADER_BYTES, part_name, seal
from kvpool_connector.tiers.arena import Arena
from kvpool_connector.tiers.slab import Slab
folder, identity, slots, row, batch = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
slab, arena, number = Slab(folder, 0, slots, row, identity), Arena(batch, row), 0
while True:
    for position in range(batch):
        name = part_name(identity, 0, (number + position).to_bytes(8, "little"))
        arena.payload(position, row - HEADER_BYTES)[:] = (number + position) % 251
        seal(arena.row(position), identity, name)
    first = number % slots
    slab.write_from(range(first, first + batch), [arena.row(p) for p in range(batch)], time.monotonic() + 30)
    number += batch
    print(number, flush=True)
"""


@pytest.mark.parametrize("after", [8, 40, 56])
def test_a_killed_writer_leaves_misses_at_worst(tmp_path: Path, after: int) -> None:
    """kill -9 while it writes: the lock is free, and every slot is a part of the slot's own or refused."""
    slots, row, batch = 16, 1 << 20, 8
    command = [sys.executable, "-c", WRITER, str(tmp_path), IDENTITY, str(slots), str(row), str(batch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as writer:
        assert writer.stdout is not None
        written = next(int(line) for line in writer.stdout if int(line) >= after)
        os.kill(writer.pid, signal.SIGKILL)
        rest = writer.stdout.read().split()
    limit = max([written, *map(int, rest)]) + batch
    slab, arena = slab_in(tmp_path, slots, row), Arena(slots, row)
    rows = [arena.row(slot) for slot in range(slots)]
    assert slab.read_into(range(slots), rows, soon()) == [Outcome.HIT] * slots
    intact = 0
    for slot in range(slots):
        verdicts = {number: check(rows[slot], IDENTITY, name_of(number)) for number in range(slot, limit, slots)}
        for number, found in verdicts.items():
            if found is Verdict.INTACT:
                intact += 1
                assert np.all(arena.payload(slot, row - HEADER_BYTES) == number % 251)
    assert batch <= intact <= slots  # what was whole before the last write still is
    slab.close()


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


# ---- errors


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
