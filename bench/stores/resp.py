"""Redis and Valkey: our client against a raw stream, and against redis-py with hiredis. Batches of 1 and 4 MiB values."""

from __future__ import annotations

import contextlib
import functools

import redis

from bench.stores.batch import MIB, all_hit, soon, values
from bench.stores.pairs import Pair, tell
from bench.stores.raw import Stream
from kvpool_connector.config import RedisRemote
from kvpool_connector.stores import Breaker
from kvpool_connector.stores.redis import RedisStore
from testkit.servers import KeyValueServer, ServerKind

KINDS: tuple[ServerKind, ...] = ("redis", "valkey")
SIZES = (1, 4)
BATCH_MIB = 16


def main() -> None:
    """Entry point."""
    pairs: list[Pair] = []
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(Stream())
        for kind in KINDS:
            server = stack.enter_context(KeyValueServer(kind))
            store = RedisStore(RedisRemote.model_validate(server.remote()), Breaker())
            client = redis.Redis(port=server.port)
            for size in SIZES:
                pairs += _pairs(f"{kind} {{}}, {size} MiB", size * MIB, store, client, stream, server.pid)
        tell(pairs)


def _pairs(name: str, size: int, store: RedisStore, client: redis.Redis, stream: Stream, server: int) -> list[Pair]:
    keys, rows = values(size, BATCH_MIB * MIB // size)

    def put() -> None:
        all_hit(store.put_from(keys, rows, soon()))

    def get() -> None:
        all_hit(store.get_into(keys, rows, soon()))

    def theirs_put() -> None:
        for key, row in zip(keys, rows, strict=True):
            client.set(key, row)

    def theirs_get() -> None:
        for key, row in zip(keys, rows, strict=True):
            row[:] = client.get(key)  # type: ignore[assignment]

    put()
    pair = functools.partial(Pair, nbytes=BATCH_MIB * MIB, server=server)
    return [
        pair("redis_set_share", name.format("SET / raw stream"), ours=put, theirs=lambda: stream.write(rows)),
        pair("redis_get_share", name.format("GET / raw stream"), ours=get, theirs=lambda: stream.read(rows)),
        pair("redis_vs_redis_py", name.format("SET / redis-py"), ours=put, theirs=theirs_put),
        pair("redis_vs_redis_py", name.format("GET / redis-py"), ours=get, theirs=theirs_get),
    ]


if __name__ == "__main__":
    main()
