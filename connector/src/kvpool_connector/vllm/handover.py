"""Prefill and decode in different engines: what each of the two does, and how the second knows what the first computed.

A router sends a prompt to a prefill engine with ``kv_transfer_params: {"do_remote_decode": true}`` and hands the
``kv_transfer_params`` of its answer on to a decode engine. The prefill engine puts a number of tokens into them; the decode
engine waits until it finds so many in the store, since the answer is faster than the write. Routers need to know nothing of it.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from typing import Any

PREFILLED = "kvpool_prefilled_tokens"
"""Key in ``kv_transfer_params``: tokens whose blocks a prefill engine is writing to the store."""


class Role(enum.Enum):
    """vLLM's ``kv_role``."""

    BOTH = "kv_both"
    PRODUCER = "kv_producer"
    """Stores. Loads as well: a prefix that some engine computed before is the prefill engine's gain too."""
    CONSUMER = "kv_consumer"
    """Loads and never stores."""

    @property
    def stores(self) -> bool:
        """Whether what this engine computes is kept."""
        return self is not Role.CONSUMER


def offer(role: Role, params: Mapping[str, Any] | None, tokens: int) -> dict[str, Any] | None:
    """What a finished request's answer tells the decode engine.

    Args:
        params: the request's ``kv_transfer_params``.
        tokens: of the prompt, computed.
    """
    if role is not Role.PRODUCER or not params or not params.get("do_remote_decode"):
        return None
    return {PREFILLED: tokens}


def promised(params: Mapping[str, Any] | None) -> int:
    """Tokens that a prefill engine offered; 0 if none did."""
    tokens = (params or {}).get(PREFILLED)
    return tokens if isinstance(tokens, int) else 0


def held_elsewhere(params: Mapping[str, Any] | None) -> bool:
    """Another connector can fetch the whole prompt from the engine that computed it (vLLM's NixlConnector and its like)."""
    return bool(params and params.get("do_remote_prefill") and params.get("remote_block_ids"))


class Awaited:
    """Requests of a decode engine that wait for the store. One thread."""

    def __init__(self, patience_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Args:
        patience_s: after this a request computes what has not arrived.
        """
        self._patience_s, self._clock = patience_s, clock
        self._until: dict[str, float] = {}
        self.late = 0
        """Requests that gave up."""

    def waits(self, req_id: str) -> bool:
        """Whether a request that lacks something shall go on waiting. Its patience begins with the first call."""
        now = self._clock()
        until = self._until.setdefault(req_id, now + self._patience_s)
        if now < until:
            return True
        if until > 0:
            self._until[req_id] = 0.0  # asked again, if vLLM has no room for the request: not to be counted again
            self.late += 1
        return False

    def forget(self, req_id: str) -> None:
        """The request is finished."""
        self._until.pop(req_id, None)
