"""Tells adapters (LoRA) apart by what is in their files.

vLLM's block hash holds an adapter's name and path. An adapter that was trained again under the same
name and path computes other KV, which a store, a disk and other engines would mix up with the
former one's. So the keys of a request with an adapter also depend on a digest of the adapter's
files.

The files are read by a thread of this module, once for each adapter; for each further request it
only looks whether they are still the same. The scheduler's thread never waits: until a request's
check has ended, its lookups are asked again, and after `PATIENCE_S` the request is computed and
stores nothing.

What counts is what vLLM has loaded, perhaps long before the first request. `Adapters.loading` notes
the files then, and the digest is taken only of files that are still these.
"""

from __future__ import annotations

import dataclasses
import hashlib
import queue
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from huggingface_hub import snapshot_download

from kvpool_connector import threads
from kvpool_connector.log import get_logger
from kvpool_connector.weights import configuration_fingerprint, weights_fingerprint

logger = get_logger(__name__)

PATIENCE_S = 0.5
"""How long a request waits at most for the check of its adapter's files."""

Signature = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of change of each file."""
UNKNOWN: tuple[Signature, bytes] = ((), b"")
"""In place of an adapter's files and digest: no files are like these, so its requests share nothing."""


@dataclasses.dataclass
class AdapterCheck:
    """Holds what one request's adapter is. `Adapters` fills it in on its own thread; all methods run
    on the scheduler's."""

    path: str
    deadline: float
    digest: bytes | None = None
    """None: the files cannot be told, and the request shares nothing."""
    done: bool = False
    """Set by the thread, after the digest."""
    _salt: bytes | None = None
    _closed: bool = False

    @property
    def waits(self) -> bool:
        """Return whether the answer may still come in time."""
        return self.salt() is None and not self._closed

    def salt(self) -> bytes | None:
        """Return what the request's keys depend on. Once it is there, or came too late, it stays
        so."""
        if not self._closed:
            if self.done:
                self._salt = self.digest
            self._closed = self.done or time.monotonic() >= self.deadline
        return self._salt

    def keys(self, keys: Iterable[bytes]) -> list[bytes]:
        """Return the keys of this adapter, or none if its files are not known."""
        salt = self.salt()
        return [] if salt is None else [salted(key, salt) for key in keys]


def salted(key: bytes, salt: bytes) -> bytes:
    """Return another key of the same length and KV group, which vLLM's key holds in its last four
    bytes."""
    return hashlib.blake2b(key[:-4], digest_size=len(key) - 4, key=salt).digest() + key[-4:]


class Adapters:
    """Answers checks one after the other, on a thread that begins with the first of them."""

    def __init__(self, folder_of: Callable[[str], Path] | None = None) -> None:
        """Args:
        folder_of: finds an adapter's folder by its path; absent: where vLLM loads it from.
        """
        self.used = False
        """False in an engine that never saw an adapter."""
        self._folder_of = folder_of or local_folder
        self._checks: queue.SimpleQueue[AdapterCheck | None] = queue.SimpleQueue()
        self._loaded: dict[str, Signature] = {}
        """By path: the files as they were when vLLM first loaded them, if it told so. Written on the
        scheduler's thread, read on the other."""
        self._known: dict[str, tuple[Signature, bytes]] = {}
        self._told: set[str] = set()

    def check(self, path: str) -> AdapterCheck:
        """Ask for an adapter, on the scheduler's thread."""
        if not self.used:
            self.used = True
            threads.start("adapters", self._answer)
        check = AdapterCheck(path, time.monotonic() + PATIENCE_S)
        self._checks.put(check)
        return check

    def loading(self, path: str) -> None:
        """Note an adapter's files, right before and right after vLLM loads them, on the scheduler's thread.

        The first note that finds them counts. It looks at their names, sizes and times alone. A file
        system that hangs here hangs in vLLM's own reading a moment later. A later load of other files
        under the same path changes nothing: they are not the noted ones, so its requests share nothing.
        """
        try:
            signature = signature_of(self._folder_of(path))
        except Exception as error:
            # They come with the load, or vLLM says what is wrong with the path in its answer to the client.
            logger.debug("the adapter in %s is not here yet: %s", path, error)
            return
        self._loaded.setdefault(path, signature)

    def close(self) -> None:
        """End the thread when it has answered what was asked."""
        self._checks.put(None)

    def _answer(self) -> None:
        while (check := self._checks.get()) is not None:
            try:
                check.digest = self._digest(check)
            except Exception as error:
                self._tell(check.path, f"cannot be read ({error})")
            check.done = True

    def _digest(self, check: AdapterCheck) -> bytes | None:
        """Return the digest of the files that vLLM has loaded, or None if that cannot be said.

        vLLM keeps an adapter that it has loaded and may load it again from its files at any time.
        Once they changed under a running engine, nobody knows which ones a request is computed
        with. An adapter that vLLM did not announce is loaded with its first request, which waits
        until its deadline here: who looks later may see other files.
        """
        path = check.path
        folder = self._folder_of(path)
        signature = signature_of(folder)
        known = self._known.get(path)
        if known is None:
            loaded = self._loaded.get(path)
            if loaded is None and time.monotonic() >= check.deadline:
                self._known[path] = UNKNOWN
                self._tell(path, "was looked at when its first request had waited for too long")
                return None
            content = f"{weights_fingerprint(folder)} {configuration_fingerprint(folder)}"
            known = (loaded or signature, hashlib.sha256(content.encode()).digest())
            self._known[path] = known
            signature = signature_of(folder)
        if known[0] != signature:
            self._tell(path, "changed while this engine was running")
            return None
        return known[1]

    def _tell(self, path: str, what: str) -> None:
        if path not in self._told:
            self._told.add(path)
            logger.warning(
                "the adapter in %s %s: its requests are computed and not stored. Load it under another path, or "
                "restart the engine",
                path,
                what,
            )


def local_folder(path: str) -> Path:
    """Return where vLLM finds an adapter: a folder, or a repository of the hub that is on this
    machine.

    Raises:
        Exception: the hub's client does not find it here.
    """
    folder = Path(path).expanduser()
    return folder if folder.is_dir() else Path(snapshot_download(path, local_files_only=True))


def signature_of(folder: Path) -> Signature:
    """Return what changes when a file of the folder is replaced or written."""
    entries = [(file, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return tuple((file.name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in entries)
