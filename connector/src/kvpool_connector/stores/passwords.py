"""Passwords of stores, from their files.

They are read at each connection, so that a rotated Secret is taken up without a restart. A file may lie
on a file system that hangs, so it is read by a deadline. And the kubelets of two nodes bring a changed
Secret at different times, up to two minutes apart: a server that does not know the new password yet
still knows the former one.
"""

from __future__ import annotations

import threading
from pathlib import Path

from kvpool_connector.stores.questions import Questions


class Passwords:
    """Reads files, and remembers which content a server took last. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._files: Questions[str, bytes] = Questions(
            "password", lambda path: Path(path).read_bytes().strip(), keeps=lambda error: False
        )
        self._lock = threading.Lock()  # guards the next one
        self._taken: dict[str, bytes] = {}

    def to_try(self, path: str, deadline: float) -> list[bytes]:
        """Return the file's password, and the one that a server took last if that is another one.

        Args:
            deadline: absolute ``time.monotonic()``.

        Raises:
            Unanswered: the file could not be read by the deadline, and never before.
            OSError: it cannot be read.
        """
        present = self._files.answer(path, deadline, f"the password's file {path} cannot be read in time")
        with self._lock:
            former = self._taken.get(path, present)
        return list(dict.fromkeys((present, former)))

    def was_taken(self, path: str, password: bytes) -> None:
        """Remember a password that a server took."""
        with self._lock:
            self._taken[path] = password


PASSWORDS = Passwords()
"""The process's own: its connections to one store share what it knows."""
