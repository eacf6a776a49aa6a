"""The hash seed of a pool: engines that share blocks must hash prefixes alike, and nobody else can guess the hashes."""

from __future__ import annotations

import base64

from kvpool_operator.desired import names
from kvpool_operator.desired.pool import Manifest, Pool

KEY = "seed"
MAXIMUM = 4294967295
"""The largest PYTHONHASHSEED that Python accepts."""


def build_secret(pool: Pool) -> Manifest:
    return names.child(pool, "v1", "Secret", names.hash_seed(pool), names.labels(pool, "seed")) | {
        "type": "Opaque",
        "data": {KEY: base64.b64encode(pool.material.hash_seed.encode()).decode()},
    }


def environment(pool: Pool) -> Manifest:
    """The variable that hands the seed to vLLM."""
    return {
        "name": "PYTHONHASHSEED",
        "valueFrom": {"secretKeyRef": {"name": names.hash_seed(pool), "key": KEY}},
    }
