"""A name in the disk tier's folder that belongs to one process: a lock that the kernel drops with its owner.

Two processes on one path would overwrite each other's slots. The lock is an exclusive ``flock`` on ``<name>.lock``; the
file stays behind and says who held it last, which matters only while the lock is held. A killed owner leaves nothing to
clean up. Locks of the kernel end at the node: a file system that several nodes mount must pass ``flock`` on (NFS does).
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import weakref
from pathlib import Path

from kvpool_connector.config import ConfigError

PRIVATE = 0o600
"""KV blocks can be turned back into prompts: nobody else reads them."""
_OWNER_BYTES = 400


class Ownership:
    """Held from construction to :meth:`release` or the end of the process."""

    def __init__(self, folder: Path, name: str) -> None:
        """Create the folder if need be, and take the lock.

        Raises:
            ConfigError: the folder cannot be used, or another user holds the lock; names it, ``tiers.disk.path`` and the fix.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT, PRIVATE)
        except OSError as error:
            raise unusable(folder, error) from None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, _this_process().encode(), 0)
        except BlockingIOError:
            owner = os.pread(self._fd, _OWNER_BYTES, 0).decode(errors="replace").strip()
            os.close(self._fd)
            raise ConfigError(
                f"tiers.disk.path: {folder} ({name}) is in use by {owner or 'another process'}: give each engine a folder of "
                "its own, or wait until that process has ended"
            ) from None
        except OSError as error:
            os.close(self._fd)
            raise unusable(folder, error) from None
        _held.add(self)

    def release(self) -> None:
        """Others may take it now. A second time does nothing."""
        _held.discard(self)
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def unusable(folder: Path, error: OSError) -> ConfigError:
    """What to tell about a folder in which files cannot be made, written or locked."""
    return ConfigError(
        f"tiers.disk.path: {folder} cannot be used: {error.strerror or error}: name a folder on a local file system that "
        "the engine's user may write to"
    )


def _this_process() -> str:
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017  (Python 3.10 has no other name for it)
    return f"pid {os.getpid()} on {socket.gethostname()} since {now:%Y-%m-%d %H:%M:%S} UTC"


_held: weakref.WeakSet[Ownership] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for ownership in list(_held):
        with contextlib.suppress(OSError):  # one on a file system that is gone; the others are still to be left
            ownership.release()


# flock belongs to the open file, which a forked child shares: without this, a child that outlives its parent keeps the lock.
# Closing the child's copy leaves the parent's lock as it is.
os.register_at_fork(after_in_child=_leave_to_parent)
