"""``lm://``: single PUTs of 256 KiB by our client and by LMCache's own, each with the question that shows that it arrived.

LMCache's PUT has no answer. Its client is given an EXIST behind it; ours puts a HEALTH behind it by itself. A round is 16 such
PUTs, one after the other: its client stands still for 40 ms in some of them and in others not (its socket holds the last segment
back until the one before is acknowledged, which the kernel may put off), so that a median of single ones would be a matter
of chance. Runs in the environment of `make bench-engine`.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.connector.lm_connector import LMCServerConnector

from bench.stores.batch import all_hit, soon, values
from bench.stores.pairs import Pair, tell
from kvpool_connector.config import LMCacheRemote
from kvpool_connector.stores import Breaker
from kvpool_connector.stores.lmcache import LMCacheStore
from testkit.lmcache import LMCacheServer

SIZE = 256 << 10
PUTS = 16
"""Of a round."""


def main() -> None:
    """Entry point."""
    with LMCacheServer() as server:
        store = LMCacheStore(LMCacheRemote.model_validate(server.remote()), Breaker())
        keys, rows = values(SIZE, 1)
        loop = asyncio.new_event_loop()
        theirs = _their_client(server, loop)
        key = CacheEngineKey("bench", 1, 0, 7, torch.bfloat16)
        value = SimpleNamespace(
            byte_array=bytes(rows[0]),
            get_shape=lambda: torch.Size([1, 1, 1, SIZE // 2]),
            get_dtype=lambda: torch.bfloat16,
            get_memory_format=lambda: MemoryFormat.KV_2LTD,
        )

        async def put() -> None:
            for _ in range(PUTS):
                await theirs.put(key, value)
                if not await theirs.exists(key):
                    raise RuntimeError("LMCache's client lost a value")

        def ours() -> None:
            for _ in range(PUTS):
                all_hit(store.put_from(keys, rows, soon()))

        tell(
            [
                Pair(
                    "lm_put_ratio",
                    "lm:// PUT 256 KiB / LMCache's client",
                    PUTS * SIZE,
                    ours=ours,
                    theirs=lambda: loop.run_until_complete(put()),
                )
            ]
        )
        store.close()


def _their_client(server: LMCacheServer, loop: asyncio.AbstractEventLoop) -> Any:
    """Its base class reads the sizes of a chunk from the engine's description, and settings that PUT does not use."""
    engine = LMCacheMetadata("bench", 1, 1, 0, 0, torch.bfloat16, (1, 2, 256, 1, SIZE // 1024))
    return LMCServerConnector(
        server.host, server.port, loop, SimpleNamespace(config=LMCacheEngineConfig(), metadata=engine)
    )


if __name__ == "__main__":
    main()
