"""Mooncake: our client, whose calls run on a thread of their own and can be given up, against its own client. Batches of 16
values of 1 MiB in memory that both know."""

from __future__ import annotations

import itertools

from bench.stores.batch import MIB, all_hit, soon, values
from bench.stores.pairs import Pair, tell
from kvpool_connector.config import MooncakeRemote
from kvpool_connector.stores import Breaker, Memory
from kvpool_connector.stores.mooncake import MooncakeStore
from kvpool_connector.stores.mooncake_client import join, replicas
from testkit.mooncake import MooncakePool, make_importable

COUNT = 16
ROUNDS = 41
"""The rounds differ more than those of other stores, and are short."""


def main() -> None:
    """Entry point."""
    make_importable()
    with MooncakePool("2 GB") as pool:
        config = MooncakeRemote.model_validate(pool.remote())
        keys, rows = values(MIB, COUNT)
        memory = Memory(memoryview(rows[0].obj), most_lent=COUNT)
        store = MooncakeStore(config, Breaker(), memory)
        all_hit(store.put_from(keys, rows, soon()))
        native = join(config, lends=False)
        places, sizes = memory.places(rows), [MIB] * COUNT
        if native.register_buffer(places[0], COUNT * MIB):
            raise RuntimeError("Mooncake does not register the memory")
        names = [f"bench-{number}" for number in range(COUNT)]
        native.batch_put_from(names, places, sizes, replicas(config))
        calls = itertools.count()  # a key that is there already is not written again

        def put() -> None:
            call = next(calls)
            all_hit(store.put_from([b"ours-%d-%d" % (call, number) for number in range(COUNT)], rows, soon()))

        def theirs_put() -> None:
            call = next(calls)
            fresh = [f"theirs-{call}-{number}" for number in range(COUNT)]
            _check(native.batch_put_from(fresh, places, sizes, replicas(config)), 0)

        tell(
            [
                Pair(
                    "mooncake_share",
                    "Mooncake PUT, 1 MiB / its client",
                    COUNT * MIB,
                    ours=put,
                    theirs=theirs_put,
                    rounds=ROUNDS,
                ),
                Pair(
                    "mooncake_share",
                    "Mooncake GET, 1 MiB / its client",
                    COUNT * MIB,
                    ours=lambda: all_hit(store.get_into(keys, rows, soon())),
                    theirs=lambda: _check(native.batch_get_into(names, places, sizes), MIB),
                    rounds=ROUNDS,
                ),
            ]
        )
        native.close()
        store.close()


def _check(codes: list[int], wanted: int) -> None:
    if any(code != wanted for code in codes):
        raise RuntimeError(f"Mooncake's client fails: {codes}")


if __name__ == "__main__":
    main()
