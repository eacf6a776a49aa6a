"""Is a recomputed block the cached one? Compared as numbers: a forward pass over another batch rounds differently."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

TOLERANCE = {"float32": 1e-3, "float16": 0.02, "bfloat16": 0.06}
"""Largest ``|a - b| / |a|`` (Euclidean norms over a block). Two unrelated blocks are at about 1.4; another batch shape moves
a block by 1e-6 (float32, measured) to a few units in the last place of the narrower types."""
QUANTISED_TOLERANCE = 0.1
"""Share of unequal bytes in types that cannot be compared as numbers here (FP8, packed)."""


def differs(cached: npt.NDArray[np.uint8], computed: npt.NDArray[np.uint8], dtype: str) -> bool:
    """True when two payloads of equal length are not the same block.

    Args:
        dtype: the KV cache's type, as torch names it without the prefix.
    """
    if np.array_equal(cached, computed):
        return False
    if dtype not in TOLERANCE:
        return float(np.mean(cached != computed)) > QUANTISED_TOLERANCE
    a, b = _numbers(cached, dtype), _numbers(computed, dtype)
    known = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return True
    distance, size = np.linalg.norm(a[known] - b[known]), np.linalg.norm(a[known])
    return bool(distance > TOLERANCE[dtype] * size)


def _numbers(payload: npt.NDArray[np.uint8], dtype: str) -> npt.NDArray[np.float64]:
    if dtype == "bfloat16":
        return (payload.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return payload.view(dtype).astype(np.float64)
