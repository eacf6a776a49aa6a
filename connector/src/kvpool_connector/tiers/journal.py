"""What the slots of the disk tier hold, remembered over a restart: an append-only file of the scheduler's process.

The file is a hint. What a slot holds is proved by the header of the part in it, on every load, so a record that is lost,
late or stale costs a miss and never a wrong byte. That is why nothing is synchronised to the device: it would cost a
flush per record to save what is at worst computed again.

vLLM's scheduler thread calls :meth:`Journal.stored`, :meth:`Journal.removed` and :meth:`Journal.clear`: they queue, they
do no I/O, take no lock over any, and raise nothing. A thread of the journal's own appends in batches, and rewrites the
file when most of its records are of the past.

File, little-endian: a header (magic, version, slots, row bytes, identity, CRC-32 of these), then records of one size
(kind, key length, zeros, slot, key padded with zeros, CRC-32 of these). The first damaged record ends it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvpool_connector import threads
from kvpool_connector.config import ConfigError
from kvpool_connector.log import get_logger
from kvpool_connector.tiers.ownership import PRIVATE, Ownership, unusable
from kvpool_connector.tiers.starting import Beat

logger = get_logger(__name__)

FILE = "index.journal"
MAX_KEY_BYTES = 64
MAX_QUEUED = 1 << 16
"""Records; more than this only if the disk hangs, and then they are dropped."""

_MAGIC, _VERSION = b"KVPJ", 1
_HEADER = struct.Struct("<4sHHIQ16s")
_RECORD = struct.Struct("<BBHI64s")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size
RECORD_BYTES = _RECORD.size + _CRC.size
_STORED, _REMOVED, _CLEARED = 1, 2, 3

_GATHER_S = 0.05
"""How long the thread lets records gather before it appends them."""
_BURST = 512
"""Records between two pauses of a rewrite. Its work holds the interpreter lock, which the scheduler's thread needs."""
_PAUSE_S = 0.002

_Record = tuple[int, int, bytes]
"""Kind, slot, key."""


class Journal:
    """See the module's text. :attr:`errors` counts what went wrong, by name of the error, or "dropped" or "key"."""

    def __init__(self, folder: Path, slots: int, row_bytes: int, identity: str, beat: Beat = lambda: None) -> None:
        """Take the lock, read what is there, start the thread.

        Args:
            folder: of the slabs; created if need be.
            slots: of each rank's slab.
            row_bytes: of a slot. A file made for another geometry or identity is started anew.
            identity: 32 hexadecimal digits.
            beat: called after each step that may take long, see :func:`kvpool_connector.tiers.starting.started`.

        Raises:
            ConfigError: another process uses the folder, or no file can be made in it; names ``tiers.disk.path``.
        """
        self._header = _sealed(_HEADER.pack(_MAGIC, _VERSION, 0, slots, row_bytes, bytes.fromhex(identity)))
        self._path, self._slots = folder / FILE, slots
        self.errors: Counter[str] = Counter()
        self._queue: queue.SimpleQueue[_Record | threading.Event | None] = queue.SimpleQueue()
        self._hurry = threading.Event()
        self._ending = False
        self._fd, self._end, self._rewrite_at = -1, 0, self._worth_rewriting()
        self._ownership = Ownership(folder, "index")
        beat()
        try:
            self._recovered = self._open()
        except OSError as error:
            self._release()
            raise unusable(folder, error) from None
        except ConfigError:
            self._release()
            raise
        self._thread = threads.start("journal", self._serve)

    def recovered(self) -> list[tuple[bytes, int]]:
        """Keys and slots at the start, the one stored last at the end. No key and no slot is named twice.

        Handed over, not kept: a second call returns nothing.
        """
        recovered, self._recovered = self._recovered, []
        return recovered

    def stored(self, key: bytes, slot: int) -> None:
        """The slot holds this key's block from now on, and nothing else."""
        if len(key) > MAX_KEY_BYTES:
            self._note("key", f"a key of {len(key)} bytes is longer than {MAX_KEY_BYTES}")
        else:
            self._put((_STORED, slot, key))

    def removed(self, slot: int) -> None:
        """The slot holds nothing that could be hit."""
        self._put((_REMOVED, slot, b""))

    def clear(self) -> None:
        """No slot holds anything."""
        self._put((_CLEARED, 0, b""))

    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was told before is in the file. False if that takes longer."""
        written = threading.Event()
        self._queue.put(written)
        self._hurry.set()
        return written.wait(timeout_s)

    def close(self, timeout_s: float = 5.0) -> None:
        """Append what is queued, release the folder, end the thread. A second time does nothing.

        All of it is the thread's, since on a disk that hangs even closing a file does not return.
        """
        self._ending = True
        self._queue.put(None)
        self._hurry.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("disk tier: the journal's thread hangs; %s stays locked until this process ends", self._path)

    def _put(self, record: _Record) -> None:
        if self._queue.qsize() < MAX_QUEUED:
            self._queue.put(record)
        else:
            self._note("dropped", "the disk is too slow")

    def _release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._ownership.release()

    def _note(self, name: str, why: str) -> None:
        self.errors[name] += 1
        if self.errors.total() == 1:
            logger.warning("disk tier: %s: %s; a restart will find fewer blocks. Said once.", self._path, why)

    def _failed(self, error: OSError) -> None:
        self._note(errno.errorcode.get(error.errno or 0, "unknown"), error.strerror or str(error))

    # ---- the start ---------------------------------------------------------------------------------------

    def _open(self) -> list[tuple[bytes, int]]:
        """Read the file; leave it open, ending with its last intact record.

        Raises:
            OSError: a file cannot be made.
            ConfigError: as :meth:`__init__`.
        """
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            content = b""
        if content[:_HEADER_BYTES] != self._header:
            if content:
                logger.info("disk tier: %s was made for other settings or another model: started anew", self._path)
            self._replace([])
            return []
        records = list(intact(content[_HEADER_BYTES:]))
        live = replay(records, self._slots)
        self._fd = os.open(self._path, os.O_RDWR)
        self._end = _HEADER_BYTES + len(records) * RECORD_BYTES
        os.ftruncate(self._fd, self._end)
        if len(records) > 2 * len(live):
            try:
                self._replace((_STORED, slot, key) for key, slot in live.items())
            except OSError as error:
                self._failed(error)
        logger.info("disk tier: %d blocks are known from %s", len(live), self._path)
        return list(live.items())

    # ---- the thread --------------------------------------------------------------------------------------

    def _serve(self) -> None:
        running = True
        while running:
            items = [self._queue.get()]
            if isinstance(items[0], tuple):
                self._hurry.wait(_GATHER_S)
            self._hurry.clear()
            with contextlib.suppress(queue.Empty):
                while len(items) < MAX_QUEUED:
                    items.append(self._queue.get_nowait())
            self._append([item for item in items if isinstance(item, tuple)])
            for item in items:
                if isinstance(item, threading.Event):
                    item.set()
            running = None not in items
            if running and self._end >= self._rewrite_at:
                self._rewrite()
        self._release()

    def _append(self, records: list[_Record]) -> None:
        """Always at the end of the last whole record: what a failed write left behind it is overwritten by the next."""
        data = b"".join(_packed(record) for record in records)
        try:
            count = os.pwrite(self._fd, data, self._end) if data else 0
        except OSError as error:
            self._failed(error)
            return
        self._end += count - count % RECORD_BYTES
        if count < len(data):
            self._note("short", "a record was cut, the disk may be full")

    def _rewrite(self) -> None:
        """Keep the records that still say something. Not urgent: an ending process leaves it."""
        try:
            content = os.pread(self._fd, self._end - _HEADER_BYTES, _HEADER_BYTES)
            live = replay(self._in_bursts(intact(content)), self._slots)
            self._replace(self._in_bursts((_STORED, slot, key) for key, slot in live.items()))
        except OSError as error:
            self._failed(error)
        except _Ending:
            return
        self._rewrite_at = max(self._worth_rewriting(), 2 * self._end)

    def _worth_rewriting(self) -> int:
        return _HEADER_BYTES + (4 * self._slots + 1024) * RECORD_BYTES

    def _replace(self, records: Iterable[_Record]) -> None:
        """Put a file with these records alone in the journal's place, in one step.

        Raises:
            OSError: it could not be written; the old one is as it was.
        """
        temporary, end = self._path.with_suffix(".new"), _HEADER_BYTES
        file = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, PRIVATE)
        try:
            with open(file, "wb", closefd=False) as stream:
                stream.write(self._header)
                for record in records:
                    end += stream.write(_packed(record))
            temporary.replace(self._path)
        except (OSError, _Ending):
            os.close(file)
            temporary.unlink(missing_ok=True)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._end = file, end

    def _in_bursts(self, records: Iterable[_Record]) -> Iterator[_Record]:
        for number, record in enumerate(records, start=1):
            if number % _BURST == 0:
                self._hurry.wait(_PAUSE_S)
                if self._ending:
                    raise _Ending
            yield record


class _Ending(Exception):
    """The process ends: a rewrite is given up."""


def intact(content: bytes) -> Iterator[_Record]:
    """The records of a file's content behind its header, up to the first that is cut or damaged."""
    for offset in range(0, len(content) - RECORD_BYTES + 1, RECORD_BYTES):
        body = content[offset : offset + _RECORD.size]
        if _CRC.unpack_from(content, offset + _RECORD.size) != (zlib.crc32(body),):
            return
        kind, length, _, slot, key = _RECORD.unpack(body)
        yield kind, slot, key[:length]


def replay(records: Iterable[_Record], slots: int) -> dict[bytes, int]:
    """Which key is in which slot after these records, the one stored last at the end. The last word on a key or a slot counts."""
    keys: dict[int, bytes] = {}
    live: dict[bytes, int] = {}
    for kind, slot, key in records:
        if kind == _CLEARED:
            keys.clear()
            live.clear()
            continue
        if slot in keys:
            del live[keys.pop(slot)]
        if kind == _STORED and slot < slots:
            if key in live:
                del keys[live.pop(key)]
            keys[slot], live[key] = key, slot
    return live


def _packed(record: _Record) -> bytes:
    kind, slot, key = record
    return _sealed(_RECORD.pack(kind, len(key), 0, slot, key))


def _sealed(body: bytes) -> bytes:
    return body + _CRC.pack(zlib.crc32(body))
