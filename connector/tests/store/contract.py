"""What every remote store must do: the rules in ``kvpool_connector/stores/base.py``, against a real server.

A new kind of store gets a test module with a fixture ``new_server`` as in ``conftest.py`` and a class derived from
`StoreContract`. What its kind does otherwise by nature, the class says in its attributes.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from connector.tests.store.conftest import Connect, Subject, buffers, filled
from kvpool_connector.stores import Breaker, Outcome, Store
from testkit.patience import PATIENCE_S, promptly
from testkit.servers import wait_until

HIT, MISS, CORRUPT, FAILED, TIMEOUT = Outcome.HIT, Outcome.MISS, Outcome.CORRUPT, Outcome.FAILED, Outcome.TIMEOUT
STALLED = Outcome.STALLED
MIB = 1 << 20


def soon(seconds: float = 10.0) -> float:
    """A deadline."""
    return time.monotonic() + seconds


def put(store: Store, values: dict[bytes, bytes]) -> list[Outcome]:
    """Store values."""
    return store.put_from(list(values), filled(list(values.values())), soon())


def get(store: Store, keys: Sequence[bytes], sizes: Sequence[int]) -> tuple[list[Outcome], list[bytes]]:
    """Read values of these sizes."""
    rows = filled([b"\xee" * size for size in sizes])
    outcomes = store.get_into(keys, rows, soon())
    return outcomes, [bytes(row) for row in rows]


def noise(seed: int, size: int) -> bytes:
    """The same bytes for the same seed."""
    return random.Random(seed).randbytes(size)


class StoreContract:
    """Inherited by the tests of each store."""

    deletes: ClassVar[bool] = True
    """Else `delete` is FAILED and changes nothing for other clients."""
    replaces: ClassVar[bool] = True
    """Else a put under a key that is there changes nothing, and is a HIT."""
    least: ClassVar[int] = 0
    """Bytes of the smallest value that the store takes."""
    sees_silence: ClassVar[bool] = True
    """Else a silent server is given up at the deadline: its client's calls cannot be watched."""
    reconnects: ClassVar[int] = 50
    """Connections made in the test that counts file descriptors."""

    # ---- values ----------------------------------------------------------------------------------------------

    def test_round_trip(self, server: Subject, connect: Connect) -> None:
        """Small, empty and large values, with line ends inside, in one batch."""
        store = connect(server)
        values = {
            b"a": b"\r\n$3\r\n",
            b"empty": b"0" * self.least,
            b"large": noise(1, 5 * MIB),
            b"\x00\r\n\xff": b"x",
            b"b": noise(2, 4096),
        }
        assert put(store, values) == [HIT] * 5
        outcomes, read = get(store, list(values), [len(value) for value in values.values()])
        assert outcomes == [HIT] * 5
        assert read == list(values.values())
        assert store.exists([*values, b"absent"], soon()) == [*[HIT] * 5, MISS]
        assert store.delete([b"a", b"absent"], soon()) == ([HIT, MISS] if self.deletes else [FAILED] * 2)
        assert store.exists([b"a"], soon()) == [MISS]
        assert store.ping(soon()) is HIT
        assert store.generation == 1

    def test_more_keys_than_the_window(self, server: Subject, connect: Connect) -> None:
        """Thousands of small ones, and large ones that fit the window only one by one."""
        store = connect(server)
        small = {b"s%d" % number: b"%d" % number for number in range(3000)}
        large = {b"l%d" % number: noise(number, 3 * MIB) for number in range(4)}
        for values in (small, large):
            assert put(store, values) == [HIT] * len(values)
            assert get(store, list(values), [len(v) for v in values.values()]) == (
                [HIT] * len(values), list(values.values())
            )  # fmt: skip
            assert store.delete(list(values), soon()) == [HIT if self.deletes else FAILED] * len(values)

    def test_misses_and_wrong_lengths_between_hits(self, server: Subject, connect: Connect) -> None:
        """What follows them is read as if they were not there."""
        store = connect(server)
        values = {b"m%d" % number: noise(number, 100_000 + number) for number in range(6)}
        put(store, values)
        keys = [b"m0", b"absent", b"m1", b"m2", b"m3", b"absent", b"m4", b"m5"]
        sizes = [100_000, 50, 100_001, 100_002 - 1, 100_003 + 1, 0, 0, 100_005]
        outcomes, read = get(store, keys, sizes)
        assert outcomes == [HIT, MISS, HIT, CORRUPT, CORRUPT, MISS, CORRUPT, HIT]
        assert (read[0], read[2], read[7]) == (values[b"m0"], values[b"m1"], values[b"m5"])
        assert store.generation == 1

    def test_a_put_over_a_value(self, server: Subject, connect: Connect) -> None:
        """Replaces it; where it does not, the old value is whole, and there is room for the new one after a delete."""
        store = connect(server)
        assert put(store, {b"again": b"first"}) == [HIT]
        assert put(store, {b"again": b"second"}) == [HIT]
        assert get(store, [b"again"], [6 if self.replaces else 5])[1] == [b"second" if self.replaces else b"first"]
        store.delete([b"again"], soon())
        assert store.exists([b"again"], soon()) == [MISS]
        assert put(store, {b"again": b"third"}) == [HIT]
        assert get(store, [b"again"], [5]) == ([HIT], [b"third"])

    def test_an_empty_batch(self, idle_server: Subject, connect: Connect) -> None:
        """Needs no server."""
        store = connect(idle_server)
        assert store.exists([], soon()) == store.get_into([], [], soon()) == store.put_from([], [], soon()) == []

    def test_random_operations(self, server: Subject, connect: Connect) -> None:
        """20 000 on one connection; every value is compared byte by byte, every answer with a model."""
        store, source, model = connect(server), random.Random(7), dict[bytes, bytes]()
        pool = noise(3, MIB)
        done = 0
        while done < 20_000:
            keys = [b"r%d" % number for number in source.sample(range(300), source.choice((1, 2, 7, 40, 280)))]
            verb = source.choice(("put", "get", "get", "exists", "delete" if self.deletes else "put"))
            if verb == "put":
                if not self.replaces:
                    keys = [key for key in keys if key not in model]
                for key in keys:
                    size = source.choice((self.least, 1, 2, 63, 4096, source.randrange(20_000)))
                    at = source.randrange(MIB - size)
                    model[key] = pool[at : at + size]
                assert put(store, {key: model[key] for key in keys}) == [HIT] * len(keys)
            elif verb == "get":
                sizes = [len(model.get(key, b"....")) + (source.random() < 0.05) for key in keys]
                outcomes, read = get(store, keys, sizes)
                for key, size, outcome, value in zip(keys, sizes, outcomes, read, strict=True):
                    held = model.get(key)
                    assert outcome is (MISS if held is None else HIT if len(held) == size else CORRUPT)
                    assert outcome is not HIT or value == held
            else:
                outcomes = store.exists(keys, soon()) if verb == "exists" else store.delete(keys, soon())
                assert outcomes == [HIT if key in model else MISS for key in keys]
                if verb == "delete":
                    for key in keys:
                        model.pop(key, None)
            done += len(keys)
        assert store.generation == 1

    # ---- faults ----------------------------------------------------------------------------------------------

    def test_a_deadline_that_has_passed(self, server: Subject, connect: Connect) -> None:
        """The caller was late: no fault of the store's."""
        breaker = Breaker()
        store = connect(server, breaker=breaker)
        assert store.exists([b"a", b"b"], time.monotonic() - 1) == [TIMEOUT, TIMEOUT]
        assert breaker.closed
        assert store.ping(soon()) is HIT

    def test_killed_in_mid_use(self, own_server: Subject, connect: Connect) -> None:
        """While another thread reads: every read is whole or no hit, and nothing raises."""
        store, value = connect(own_server), noise(4, MIB)
        put(store, {b"k%d" % number: value for number in range(8)})
        seen, wrong, stop = list[Outcome](), list[str](), threading.Event()

        def read() -> None:
            try:
                while not stop.is_set():
                    outcomes, values = get(store, [b"k%d" % n for n in range(8)], [MIB] * 8)
                    wrong.extend("bytes" for o, v in zip(outcomes, values, strict=True) if o is HIT and v != value)
                    seen.extend(outcomes)
            except BaseException as error:
                wrong.append(repr(error))

        thread = threading.Thread(target=read)
        thread.start()
        wait_until("some reads", lambda: len(seen) >= 24)
        own_server.kill()
        wait_until("the loss is seen", lambda: FAILED in seen)
        stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert not wrong
        assert set(seen) == {HIT, FAILED}

    def test_paused(self, own_server: Subject, connect: Connect) -> None:
        """Connections stay open and nothing comes: the deadline is kept, also for a new connection, and all is well after."""
        store, value = connect(own_server), noise(5, MIB)
        put(store, {b"p": value})
        own_server.pause()
        for _ in range(3):  # the old connection, then new ones, unless the breaker is open
            with promptly(0.7):
                (outcome,) = store.get_into([b"p"], buffers([MIB]), soon(0.4))
            assert outcome in (TIMEOUT, STALLED, FAILED)
        (outcome,) = store.put_from([b"q"], filled([noise(6, 20 * MIB)]), soon(0.4))
        assert outcome in (TIMEOUT, STALLED, FAILED)
        own_server.resume()
        wait_until("it is used again", lambda: get(store, [b"p"], [MIB]) == ([HIT], [value]))

    def test_the_first_call_after_a_pause_begins_times_out(self, own_server: Subject, connect: Connect) -> None:
        """TIMEOUT, not FAILED, for all keys of the batch."""
        store = connect(own_server)
        assert store.ping(soon()) is HIT
        own_server.pause()
        begin = time.monotonic()
        with promptly(0.5):
            assert store.exists([b"a", b"b"], soon(0.2)) == [TIMEOUT] * 2
        assert time.monotonic() - begin > 0.15
        own_server.resume()

    def test_a_server_that_falls_silent(self, own_server: Subject, connect: Connect) -> None:
        """Given up long before the deadline, whatever was asked. The breaker opens: the next call
        costs nothing."""
        if not self.sees_silence:
            pytest.skip("its client's calls cannot be watched")
        quick = {"stall_ms": 1500}  # a server that is well but starved answers by then
        breaker = Breaker(first_s=60)
        store = connect(own_server, breaker=Breaker(first_s=60), timeouts=quick)
        put(store, {b"p": noise(5, MIB)})
        other = connect(own_server, breaker=breaker, timeouts=quick)
        assert other.ping(soon()) is HIT
        own_server.pause()
        begin = time.monotonic()
        assert store.get_into([b"p", b"q"], buffers([MIB, MIB]), soon(30)) == [STALLED] * 2
        assert other.exists([b"p", b"q"], soon(30)) == [STALLED] * 2
        assert connect(own_server, timeouts=quick).ping(soon(30)) is STALLED  # a new connection
        assert time.monotonic() - begin < 15
        assert not breaker.closed
        assert store.get_into([b"p"], buffers([MIB]), soon(30)) == [FAILED]
        assert other.exists([b"p"], soon(30)) == [FAILED]
        own_server.resume()

    def test_the_longest_silence_is_configured(self, own_server: Subject, connect: Connect) -> None:
        """In both directions from the default."""
        if not self.sees_silence:
            pytest.skip("its client's calls cannot be watched")
        stores = {
            stall_ms: connect(own_server, breaker=Breaker(), timeouts={"stall_ms": stall_ms})
            for stall_ms in (120, 1500)
        }
        for store in stores.values():
            # A busy machine may need longer than the shorter of the two, now and then.
            wait_until("it answers", lambda store=store: store.ping(soon()) is HIT)
        own_server.pause()
        for stall_ms, store in stores.items():
            begin = time.monotonic()
            with promptly(stall_ms / 1000 + 1):
                assert store.exists([b"p"], soon(30)) == [STALLED]
            assert time.monotonic() - begin > stall_ms / 1000 - 0.01
        own_server.resume()

    def test_restarted(self, own_server: Subject, connect: Connect) -> None:
        """The idle connection is replaced without an error, and the change can be seen."""
        store = connect(own_server)
        put(store, {b"a": b"1"})
        own_server.kill()
        own_server.start()
        wait_until("it is used again", lambda: store.exists([b"a"], soon()) == [MISS])
        assert store.generation == 2

    def test_never_started(self, idle_server: Subject, connect: Connect) -> None:
        """FAILED at once, the breaker opens, and the store is used when it comes."""
        breaker = Breaker(first_s=0.05, longest_s=0.1)
        store = connect(idle_server, breaker=breaker)
        with promptly(0.5):
            assert store.exists([b"a", b"b"], soon()) == [FAILED] * 2
            assert not breaker.closed
            assert put(store, {b"a": b"1"}) == [FAILED]
        idle_server.start()
        wait_until("it is found", lambda: store.ping(soon()) is HIT)
        assert put(store, {b"a": b"1"}) == [HIT]

    def test_an_open_breaker_spares_the_network(self, server: Subject, connect: Connect) -> None:
        """Also where the server is fine: another connection of the process just failed."""
        breaker = Breaker(first_s=60)
        store = connect(server, breaker=breaker)
        breaker.failed()
        assert store.exists([b"a"], soon()) == [FAILED]
        assert store.generation == 0
        assert not breaker.closed

    @staticmethod
    def at(host: str) -> dict[str, object]:
        """The field of the configuration that names the server."""
        return {"host": host}

    def test_a_probe_over_a_stale_connection(self, own_server: Subject, connect: Connect) -> None:
        """Another connection of the process failed; this one was idle while the server was started anew. The one call that
        the breaker lets through makes a new connection and succeeds."""
        breaker = Breaker(first_s=0.01, longest_s=60, jitter=lambda: 0.5)
        store = connect(own_server, breaker=breaker)
        put(store, {b"a": b"1"})
        own_server.kill()
        own_server.start()
        for _ in range(15):  # the next probe after this one is minutes away
            breaker.failed()
        breaker._probe_at = 0
        assert store.exists([b"a"], soon()) == [MISS]
        assert breaker.closed

    @pytest.mark.parametrize("host", ["a..b", "x" * 70, "no-such-host.invalid"])
    def test_names_that_are_no_hosts(self, host: str, idle_server: Subject, connect: Connect) -> None:
        """A configuration error of the user's, found at the first use: an outcome like any other."""
        assert connect(idle_server, **self.at(host)).ping(soon(5)) is FAILED

    def test_file_descriptors_do_not_grow(self, own_server: Subject, idle_server: Subject, connect: Connect) -> None:
        """Over good and bad connections."""
        store = connect(own_server, breaker=Breaker(first_s=0, longest_s=0))
        refused = connect(idle_server, breaker=Breaker(first_s=0, longest_s=0))
        store.ping(soon())
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(self.reconnects):
            store.close()
            assert store.ping(soon()) is HIT
            assert refused.ping(soon()) is FAILED
        own_server.pause()
        for _ in range(5):
            assert store.ping(soon(0.05)) is TIMEOUT
        own_server.resume()
        store.close()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before
