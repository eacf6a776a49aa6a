"""What the cache did for each request, as two lines in the log: what was hit, and what was stored.

Called on the scheduler's thread, a few times per request and never per key. The times are the scheduler's: from the step that
began a load to the step that learnt of its end on all ranks, which is what the request waited.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from kvpool_connector.log import get_logger
from kvpool_connector.transfer import Transfer

logger = get_logger(__name__)


@dataclasses.dataclass(slots=True)
class _Load:
    began: float
    transfer: Transfer
    tokens: int = 0
    of: int = 0


@dataclasses.dataclass(slots=True)
class _Stores:
    running: int = 0
    """Chunks on their way."""
    stored: int = 0
    """Chunks that arrived."""
    finished_with: int | None = None
    """Tokens that could have been stored, once the request is finished."""


class RequestLog:
    """Tokens are counted by whole chunks; of several KV groups, by their average."""

    def __init__(self, chunk_tokens: int, groups: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        chunk_tokens: of one chunk.
        groups: KV groups. Each has a chunk for the same tokens.
        """
        self._chunk_tokens, self._groups, self._clock = chunk_tokens, groups, clock
        self._loads: dict[str, _Load] = {}
        self._stores: dict[str, _Stores] = {}
        self._told: set[str] = set()  # of which requests a lookup was told
        self._tokens: dict[str, int] = {}  # of requests that end

    # ---- hits ----------------------------------------------------------------------------------------------

    def load_begins(self, req_id: str, transfer: Transfer) -> None:
        """Its tokens are known a moment later, by :meth:`scheduled`."""
        self._loads[req_id] = _Load(self._clock(), transfer)

    def scheduled(self, req_id: str, hit: int, on_device: int, tokens: int) -> None:
        """The request was given blocks. Told once where nothing is loaded; a load is told at its end.

        Args:
            hit: tokens that the load brings.
            on_device: tokens before them that vLLM's own cache holds.
            tokens: of the prompt.
        """
        load = self._loads.get(req_id)
        if load is not None and hit:
            load.tokens, load.of = hit, tokens
        elif req_id not in self._told:
            logger.info(
                "request %s: hit 0 of %d tokens%s", req_id, tokens,
                f" beyond the {on_device} on the device" if on_device else "",
            )  # fmt: skip
        self._told.add(req_id)

    def load_ended(self, req_id: str, *, complete: bool) -> None:
        """On all ranks. What failed, and why, each rank said itself."""
        load = self._loads.pop(req_id, None)
        if load is None:
            return
        milliseconds = (self._clock() - load.began) * 1e3
        if not complete:
            logger.info(
                "request %s: the load of %d of %d tokens failed after %.0f ms, they will be computed",
                req_id, load.tokens, load.of, milliseconds,
            )  # fmt: skip
            return
        chunks = len(load.transfer.keys)
        disk = load.tokens * len(load.transfer.from_disk) // chunks
        remote = load.tokens * len(load.transfer.from_remote) // chunks
        logger.info(
            "request %s: hit %d of %d tokens (%d from memory, %d from disk, %d from the remote store) in %.0f ms",
            req_id, load.tokens, load.of, load.tokens - disk - remote, disk, remote, milliseconds,
        )  # fmt: skip

    # ---- stores --------------------------------------------------------------------------------------------

    def store_begins(self, req_id: str, chunks: int) -> None:
        """So many chunks of a request are on their way."""
        if chunks:
            self._stores.setdefault(req_id, _Stores()).running += chunks

    def store_ended(self, req_id: str, chunks: int, stored: int) -> None:
        """On all ranks; ``stored`` of the chunks arrived."""
        stores = self._stores.get(req_id)
        if stores is not None:
            stores.running -= chunks
            stores.stored += stored
            self._tell_stored(req_id, stores)

    def ends(self, req_id: str, tokens: int) -> None:
        """The request ends with so many tokens that could be stored; the last of them will be offered now."""
        self._tokens[req_id] = tokens

    def finished(self, req_id: str) -> None:
        """No store of the request begins any more."""
        self._told.discard(req_id)
        tokens, stores = self._tokens.pop(req_id, 0), self._stores.get(req_id)
        if stores is not None:
            stores.finished_with = tokens
            self._tell_stored(req_id, stores)

    def _tell_stored(self, req_id: str, stores: _Stores) -> None:
        if stores.running or stores.finished_with is None:
            return
        del self._stores[req_id]
        tokens = stores.stored * self._chunk_tokens // self._groups
        logger.info("request %s: stored %d of %d tokens", req_id, tokens, stores.finished_with)

    def reset(self) -> None:
        """Of what runs now, nobody will hear the end."""
        self._loads.clear()
        self._stores.clear()
