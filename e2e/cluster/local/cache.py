"""Results of slow work, each in a folder named by a hash of what it was made from.

A folder that exists is complete: work is done in a temporary folder beside it, which is renamed at the end.
An interrupted run leaves only a temporary folder, which the next run with the same inputs deletes.
Two runs that want the same result take turns, across processes, by a lock file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from e2e.cluster.progress import Progress

KEY_LENGTH = 16


def key_of(inputs: Iterable[str | bytes | Path]) -> str:
    """A name for these inputs, in this order: text, bytes, or a file's content (its place does not count)."""
    whole = hashlib.sha256()
    for item in inputs:
        content = item.read_bytes() if isinstance(item, Path) else item.encode() if isinstance(item, str) else item
        # Digests have one length, so no two lists of inputs run together into the same bytes.
        whole.update(hashlib.sha256(content).digest())
    return whole.hexdigest()[:KEY_LENGTH]


@contextmanager
def locked(path: Path, progress: Progress, what: str) -> Iterator[None]:
    """Hold the lock file `path`; say so when another process has it.  The kernel frees it if we are killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with progress.during(f"waiting for another process: {what}"):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def folder(
    cache: Path, kind: str, inputs: Iterable[str | bytes | Path], make: Callable[[Path], None], progress: Progress
) -> Path:
    """The cached folder `<kind>-<hash of inputs>`; when it is missing, `make` fills a new one."""
    done = cache / f"{kind}-{key_of(inputs)}"
    if done.is_dir():
        return done
    with locked(cache / f".{done.name}.lock", progress, kind):
        if done.is_dir():  # made while we waited
            return done
        unfinished = cache / f".{done.name}.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        make(unfinished)
        unfinished.rename(done)
    return done
