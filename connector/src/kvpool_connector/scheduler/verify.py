"""Verification by recomputation: of so many requests that hit, one is computed all the same and compared.

A picked request sees misses. When vLLM then offers its blocks to be stored, the rows that hold them already are compared
with what was computed (`Transfer.compared`). It answers the question that checksums cannot: are these the right bytes for
these tokens?
"""

from __future__ import annotations


class Verification:
    """Which requests are picked. One thread."""

    def __init__(self, one_in: int) -> None:
        """Args:
        one_in: 1 picks every request that hits.
        """
        self._one_in = one_in
        self._hits = 0
        self._picked: dict[str, bool] = {}

    def picks(self, req_id: str) -> bool:
        """Asked at each hit; decides at a request's first one."""
        if req_id not in self._picked:
            self._hits += 1
            self._picked[req_id] = self._hits % self._one_in == 0
        return self._picked[req_id]

    def is_picked(self, req_id: str) -> bool:
        """Whether the request's blocks are compared when they are offered."""
        return self._picked.get(req_id, False)

    def forget(self, req_id: str) -> None:
        """The request is finished."""
        self._picked.pop(req_id, None)
