"""The hash seed of a pool: engines that share blocks must hash prefixes alike.

vLLM takes the first link of its chain of block hashes from PYTHONHASHSEED, which Python reads too
and refuses unless it is a number of 32 bits
(https://docs.python.org/3/using/cmdline.html#envvar-PYTHONHASHSEED). So the seed cannot be longer,
and it does not withstand a search: the key of one known prompt gives it away in 2**32 tries. The
hash is vLLM's ``sha256_cbor``, so blocks of different prompts do not collide whatever the seed is.
What keeps a cache apart are the store's credentials, its NetworkPolicy, and a pool for each tenant.
"""

from __future__ import annotations

import base64

from kvpool_operator.desired import names
from kvpool_operator.desired.pool import Manifest, Pool

KEY = "seed"
MAXIMUM = 4294967295
"""The largest PYTHONHASHSEED that Python accepts. 0 is never drawn: it turns randomisation off."""


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
