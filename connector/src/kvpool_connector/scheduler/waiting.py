"""Requests that were told to come back. Until something changes they get the same answer without a new scan.

vLLM scans all keys of every waiting request in every step, which for 200 requests of 100 keys takes longer than a decode step
may. One RETRY followed by a MISS ends the scan of a group of keys and still defers the request.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(slots=True)
class _Waiting:
    change: int
    """Of the pool, when the request was told to come back."""
    scanned: int
    """The step of that scan: it goes on to its end, since more keys may need asking."""
    answered: int = -1
    """The last step in which the scan was cut short, ..."""
    group: bytes = b""
    """... and the KV group for which it was."""


class WaitingRequests:
    """One thread."""

    def __init__(self) -> None:
        self._requests: dict[str, _Waiting] = {}
        self._asking: set[str] = set()
        self._change = self._step = 0

    def __bool__(self) -> bool:
        return bool(self._requests)

    def next_step(self) -> None:
        """A scheduling step ended."""
        self._step += 1

    def changed(self) -> None:
        """An answer may be another one now: all are scanned again but those that wait for the store, which gain nothing by it."""
        self._change += 1

    def answered(self, req_ids: Iterable[str]) -> None:
        """The store said all that these requests asked: they are scanned again."""
        for req_id in req_ids:
            self.forget(req_id)

    def reset(self) -> None:
        """All are scanned again."""
        self._requests.clear()
        self._asking.clear()

    def add(self, req_id: str, *, asked: bool = False) -> None:
        """The request was told to come back. ``asked``: it waits for the store, until :meth:`answered`."""
        if asked:
            self._asking.add(req_id)
        waiting = self._requests.get(req_id)
        if waiting is None or waiting.scanned != self._step:
            self._requests[req_id] = _Waiting(self._change, self._step)

    def forget(self, req_id: str) -> None:
        """The request is finished."""
        self._requests.pop(req_id, None)
        self._asking.discard(req_id)

    def cut_short(self, req_id: str, group: bytes) -> bool | None:
        """True: say RETRY. False: say MISS, RETRY was said for this group in this step. None: look up."""
        waiting = self._requests.get(req_id)
        if waiting is None or waiting.scanned == self._step:
            return None
        if waiting.change != self._change and req_id not in self._asking:
            del self._requests[req_id]
            return None
        if waiting.answered == self._step and waiting.group == group:
            return False
        waiting.answered, waiting.group = self._step, group
        return True
