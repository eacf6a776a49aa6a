"""Disk rows of one rank: one preallocated file, slots of equal size, each holding a row as the arena has it.

The slab knows no keys: the scheduler decides which slot holds what, the header of each part proves it (``format.check``
on every load). So nothing here is synchronised: a slot that was torn by a crash, a full disk or a bad sector reads as
bytes which the check refuses, a miss. The file is private and preallocated: the tier never takes more than it was given.

Belongs to one thread at a time. Only the constructor raises; reads and writes end in an outcome per slot. A call to a file
system that hangs does not return: see :mod:`kvpool_connector.tiers.slab_calls` for what gives it up.
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kvpool_connector.config import ConfigError, format_bytes
from kvpool_connector.log import get_logger
from kvpool_connector.stores import Outcome
from kvpool_connector.tiers.ownership import PRIVATE, Ownership, unusable
from kvpool_connector.tiers.starting import Beat

logger = get_logger(__name__)

PAGE = 4096
"""Direct I/O wants memory, offset and length in multiples of the device's block, which is 512 or 4096 bytes."""
_CALL_BYTES = 8 << 20
"""Most bytes of one system call, so that a deadline is looked at often. From 1 MiB on, a larger call is not faster."""
_ALLOCATE_BYTES = 1 << 30
"""Bytes of one call that reserves room: where a file system writes zeros for it, one call would take too long."""
_LOG_EVERY_S = 10.0
_LAYOUT_VERSION = 1

_Call = Callable[[int, Sequence[memoryview], int], int]


class Slab:
    """The file ``rank-<n>.slab``, its lock, and beside it ``rank-<n>.json``, which says for what it was made."""

    def __init__(
        self, folder: Path, rank: int, slots: int, row_bytes: int, identity: str, beat: Beat = lambda: None
    ) -> None:
        """Open the file, or start it anew if it was made for something else.

        Args:
            folder: created if need be.
            row_bytes: of a slot and of an arena row, a multiple of PAGE.
            identity: parts of another identity would never be hit, so their room is given to new ones at once.
            beat: called after each step that may take long, see :func:`kvpool_connector.tiers.starting.started`.

        Raises:
            ConfigError: the folder is in use or unusable (``tiers.disk.path``), or there is not enough room in it
                (``tiers.disk.size``). Nothing stays open and no room stays taken.
        """
        assert row_bytes > 0
        assert row_bytes % PAGE == 0
        if slots < 1:
            raise ConfigError(f"tiers.disk.size: not one block of {format_bytes(row_bytes)} fits: make it larger")
        self.slots, self.row_bytes = slots, row_bytes
        self.errors: Counter[str] = Counter()
        """Failed calls by name of the error, such as ENOSPC or EIO; "short": the file was cut behind our back."""
        self._logged_at = -_LOG_EVERY_S
        self._fd = -1
        self._beat = beat
        self._path = folder / f"rank-{rank}.slab"
        self._ownership = Ownership(folder, f"rank-{rank}")
        beat()
        try:
            self._prepare({"version": _LAYOUT_VERSION, "identity": identity, "slots": slots, "row_bytes": row_bytes})
            self._fd, self.direct = _open(self._path)
        except OSError as error:
            self.close()
            raise unusable(folder, error) from None
        except ConfigError:
            self.close()
            raise
        if not self.direct:
            logger.info("disk tier: %s is on a file system without direct I/O: buffered, and slower", self._path)

    def read_into(self, slots: Sequence[int], rows: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Fill rows of the arena from slots, in the order given.

        Args:
            rows: writable, of row_bytes each, on a page's border (``Arena.row``).
            deadline: absolute ``time.monotonic()``, looked at between system calls.

        Returns:
            HIT: the row has what the slot holds, which the caller still has to check; FAILED or TIMEOUT: it may hold anything.
        """
        outcomes = self._each_run(os.preadv, slots, rows, deadline)
        if not self.direct:
            self._forget(slots)
        return outcomes

    def write_from(self, slots: Sequence[int], rows: Sequence[memoryview], deadline: float) -> list[Outcome]:
        """Write rows of the arena to slots, in the order given. The caller keeps the rows unchanged meanwhile.

        Returns:
            HIT: the slot holds the row; FAILED or TIMEOUT: it may hold anything, and what it held before is lost.
        """
        outcomes = self._each_run(os.pwritev, slots, rows, deadline)
        if not self.direct:
            try:
                os.fdatasync(self._fd)  # only clean pages can be forgotten, and only now would EIO be told
            except OSError as error:
                self._note(errno.errorcode.get(error.errno or 0, "unknown"))
                return [Outcome.FAILED if outcome is Outcome.HIT else outcome for outcome in outcomes]
            self._forget(slots)
        return outcomes

    def close(self) -> None:
        """Others may use the file now. A second time does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._ownership.release()

    # ---- the file ----------------------------------------------------------------------------------------

    def _prepare(self, made_for: dict[str, object]) -> None:
        """See that the file is there, in full length and made for this."""
        note, size = self._path.with_suffix(".json"), self.slots * self.row_bytes
        there = self._path.exists()
        if there and self._path.stat().st_size == size and _read_note(note) == made_for:
            return
        if there:
            logger.info("disk tier: %s was made for other settings or another model: started anew", self._path)
        self._path.unlink(missing_ok=True)
        self._beat()
        self._allocate(size)
        note.write_text(json.dumps(made_for))

    def _allocate(self, size: int) -> None:
        space = os.statvfs(self._path.parent)
        free = space.f_bavail * space.f_frsize
        if space.f_blocks and size > free:  # some file systems do not say; asking first spares others a full disk
            raise self._no_room(size, free)
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, PRIVATE)
        try:
            for offset in range(0, size, _ALLOCATE_BYTES):
                os.posix_fallocate(file, offset, min(_ALLOCATE_BYTES, size - offset))
                self._beat()
        except OSError as error:
            self._path.unlink()
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise self._no_room(size, free) from None
            raise
        finally:
            os.close(file)

    def _no_room(self, size: int, free: int) -> ConfigError:
        folder = self._path.parent
        return ConfigError(
            f"tiers.disk.size: {format_bytes(size)} for {self._path.name} cannot be had in {folder} ({format_bytes(free)} "
            "free, less where a quota or a limit of the file size says so): make it smaller or give the path more room"
        )

    # ---- reads and writes --------------------------------------------------------------------------------

    def _each_run(
        self, call: _Call, slots: Sequence[int], rows: Sequence[memoryview], deadline: float
    ) -> list[Outcome]:
        assert len(slots) == len(rows)
        outcomes = [Outcome.TIMEOUT] * len(slots)
        for start, stop in runs(slots, max(1, _CALL_BYTES // self.row_bytes)):
            if time.monotonic() >= deadline:
                break
            whole = self._run(call, slots[start], rows[start:stop])
            outcomes[start : start + whole] = [Outcome.HIT] * whole
            outcomes[start + whole : stop] = [Outcome.FAILED] * (stop - start - whole)
        return outcomes

    def _run(self, call: _Call, slot: int, rows: Sequence[memoryview]) -> int:
        """Read or write neighbouring slots; how many of them from the first on are complete."""
        offset, total, done = slot * self.row_bytes, len(rows) * self.row_bytes, 0
        assert 0 <= offset <= offset + total <= self.slots * self.row_bytes
        while done < total:
            row, inside = divmod(done, self.row_bytes)
            try:
                count = call(self._fd, [rows[row][inside:], *rows[row + 1 :]], offset + done)
            except OSError as error:
                self._note(errno.errorcode.get(error.errno or 0, "unknown"))
                break
            count -= (done + count) % PAGE  # go on where direct I/O can
            if count <= 0:
                self._note("short")
                break
            done += count
        return done // self.row_bytes

    def _forget(self, slots: Sequence[int]) -> None:
        """The arena is the cache; the page cache would hold the same bytes again, at the cost of the Pod's memory."""
        for start, stop in runs(slots, self.slots):
            with contextlib.suppress(OSError):  # a hint
                length = (stop - start) * self.row_bytes
                os.posix_fadvise(self._fd, slots[start] * self.row_bytes, length, os.POSIX_FADV_DONTNEED)

    def _note(self, name: str) -> None:
        self.errors[name] += 1
        now = time.monotonic()
        if now - self._logged_at >= _LOG_EVERY_S:
            self._logged_at = now
            logger.warning(
                "disk tier: %s failed, its blocks are misses; since the start: %s", self._path, dict(self.errors)
            )


def runs(slots: Sequence[int], longest: int) -> Iterator[tuple[int, int]]:
    """Positions (start, stop) of neighbouring slots that follow each other, none longer than this.

    The order is kept, and not sorted for longer runs: a deadline must cut the end of a prefix, not its middle.
    """
    start = 0
    for position in range(1, len(slots) + 1):
        if position == len(slots) or slots[position] != slots[position - 1] + 1 or position - start == longest:
            yield start, position
            start = position


def _read_note(path: Path) -> object:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _open(path: Path) -> tuple[int, bool]:
    """The file, and whether its I/O is direct. Some file systems refuse the flag at once, some at the first read."""
    try:
        direct = os.open(path, os.O_RDWR | os.O_DIRECT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    else:
        try:
            os.preadv(direct, [mmap.mmap(-1, PAGE)], 0)
        except OSError as error:
            os.close(direct)
            if error.errno != errno.EINVAL:
                raise
        else:
            return direct, True
    return os.open(path, os.O_RDWR), False
