"""Which versions of vLLM compute and lay out the same KV bytes, by a number that is kept by hand.

An identity holds this number, not vLLM's version: else each patch release of vLLM would begin with
an empty pool. The rule for a new version is in ``docs/adr/0013-what-an-identity-holds.md``. A
version that is not in the table stands for itself alone, and shares blocks with no other one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

KV_ABI: Mapping[str, int] = {"0.32.0": 1}
"""The number of each release that was checked. Equal numbers share blocks."""
_BUILD = re.compile(r"cpu|cu\d+|rocm[\d.]*|xpu")
"""Local versions of vLLM's own builds, such as "cu130". The device is in the identity anyway."""


def kv_abi(version: str) -> int | None:
    """Return the number of a version, or None if nobody checked it.

    Args:
        version: ``vllm.__version__``, such as "0.32.0" or "0.32.0+cu130". A version with any other
            local part was built from changed sources, and is unknown.
    """
    release, _, build = version.partition("+")
    return KV_ABI.get(release) if not build or _BUILD.fullmatch(build) else None
