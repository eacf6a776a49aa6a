"""Mooncake: the contract, and what is its alone."""

from __future__ import annotations

import ctypes.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from connector.tests.store.conftest import Connect, NewServer, filled
from connector.tests.store.contract import FAILED, HIT, MIB, MISS, TIMEOUT, StoreContract, get, noise, put, soon
from kvpool_connector.config import ConfigError, MooncakeRemote
from kvpool_connector.stores import Breaker
from kvpool_connector.stores.factory import make_store
from kvpool_connector.stores.mooncake import MooncakeStore
from kvpool_connector.stores.native import HANG_S
from testkit.mooncake import OVERLAY, MooncakePool, make_importable
from testkit.patience import promptly
from testkit.servers import wait_until

make_importable()


@pytest.fixture(scope="module")
def new_server() -> NewServer:
    """Makes a pool that does not run yet."""
    return MooncakePool


class TestContract(StoreContract):
    """A put under a key that is there writes nothing, and there is no empty value."""

    replaces = False
    sees_silence = False
    least = 1
    reconnects = 3

    @staticmethod
    def at(host: str) -> dict[str, object]:
        """Of the master."""
        return {"master": f"{host}:50051"}


def test_a_full_pool(connect: Connect) -> None:
    """FAILED per key or an older key evicted; what is read is whole, and the breaker stays closed."""
    with MooncakePool("32 MB") as pool:
        store = connect(pool, breaker=(breaker := Breaker()))
        values = {b"k%d" % number: noise(number, 2 * MIB) for number in range(40)}
        written = put(store, values)
        assert set(written) <= {HIT, FAILED}
        assert FAILED in written
        outcomes, read = get(store, list(values), [2 * MIB] * 40)
        assert set(outcomes) == {HIT, MISS}
        assert all(value == values[key] for key, o, value in zip(values, outcomes, read, strict=True) if o is HIT)
        assert breaker.closed


@pytest.mark.parametrize("stopped", ["master", "node"])
def test_one_process_that_hangs(stopped: str, own_server: MooncakePool, connect: Connect) -> None:
    """Deadlines are kept, the store says which buffers its call may still fill, other buffers are left alone also when it goes
    on, and then all is well."""
    store, value = connect(own_server), noise(1, MIB)
    assert put(store, {b"a": value}) == [HIT]
    process = getattr(own_server, stopped)
    process.pause()
    kept, other = filled([bytes(MIB)] * 2)
    returned = threading.Event()
    with promptly(0.6):
        assert store.get_into([b"a"], [kept], soon(0.3)) == [TIMEOUT]
    loan = store.lent
    assert loan
    assert loan.positions == range(1)
    loan.then(returned.set)
    with promptly(HANG_S + 0.5):
        for _ in range(5):  # an earlier call has not returned: once it is seen to hang, nobody waits for it again
            assert store.get_into([b"a"], [other], soon(5))[0] in (TIMEOUT, FAILED)
            assert store.lent is None
            assert store.put_from([b"b"], [other], soon(5))[0] in (TIMEOUT, FAILED)
    assert not returned.is_set()
    process.resume()
    wait_until("it is used again", lambda: get(store, [b"a"], [MIB]) == ([HIT], [value]), 60)
    assert returned.is_set()
    assert bytes(other) == bytes(MIB)
    assert put(store, {b"b": value}) == [HIT]
    assert get(store, [b"b"], [MIB]) == ([HIT], [value])


def test_a_pool_that_lost_its_content(own_server: MooncakePool, connect: Connect) -> None:
    """While nobody asked: the client reconnects by itself, and the lost marker tells."""
    store = connect(own_server)
    assert put(store, {b"a": b"1"}) == [HIT]
    before = store.generation
    client = connect(own_server)
    assert isinstance(client, MooncakeStore)
    assert client.ping(soon()) is HIT
    assert isinstance(store, MooncakeStore)
    assert client.delete([store._marker.encode()], soon()) == [HIT]
    assert store.ping(soon()) is HIT
    assert store.generation == before + 1
    assert store.exists([b"a"], soon()) == [HIT]
    assert store.generation == before + 1


def test_a_master_that_was_started_anew_while_nobody_asked(own_server: MooncakePool, connect: Connect) -> None:
    """The client's connection is stale: the first write all the same succeeds, and a lost master is no answer to a ping."""
    stores = [connect(own_server, breaker=Breaker()) for _ in range(2)]
    assert [put(store, {b"a%d" % number: b"1"}) for number, store in enumerate(stores)] == [[HIT]] * 2
    own_server.kill()
    assert stores[0].ping(soon()) is FAILED
    own_server.start()
    assert put(stores[1], {b"b": b"1"}) == [HIT]
    assert get(stores[1], [b"b"], [1]) == ([HIT], [b"1"])


def test_memory_that_an_engine_lends(connect: Connect) -> None:
    """Without a store node, parts live in the engines."""
    with MooncakePool() as pool:
        pool.node.kill()
        lender = make_store(_config(pool, segment_size="64Mi"), Breaker(), lends=True)
        try:
            assert lender.ping(soon()) is HIT
            other = connect(pool, segment_size="64Mi")
            value = noise(1, MIB)
            wait_until("it is stored", lambda: put(other, {b"a": value}) == [HIT], 30)
            assert get(connect(pool), [b"a"], [MIB]) == ([HIT], [value])
        finally:
            lender.close()


# ---- what is missing ------------------------------------------------------------------------------------------


def _config(pool: MooncakePool, **fields: object) -> MooncakeRemote:
    return MooncakeRemote.model_validate(pool.remote(**fields))


def test_rdma_where_there_is_none(idle_server: MooncakePool, connect: Connect) -> None:
    """Refused when the client is made, with the field and the fix."""
    if any(Path("/sys/class/infiniband").glob("*")):
        pytest.skip("this machine has RDMA devices")
    with pytest.raises(ConfigError, match=r"remote\.protocol: rdma, but .*set it to tcp"):
        connect(idle_server, protocol="rdma")


def test_an_rdma_device_that_is_not_there(
    idle_server: MooncakePool, connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named, with those that are."""
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr("kvpool_connector.stores.rdma._DEVICES", tmp_path)
    with pytest.raises(ConfigError, match=r"remote\.devices: there is no RDMA device 'mlx5_9', only mlx5_0"):
        connect(idle_server, protocol="rdma", devices="mlx5_0, mlx5_9")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "needs Mooncake's client .* install mooncake-transfer-engine"),
        (str(OVERLAY), "apt-get install libibverbs1"),
    ],
)
def test_a_package_or_library_that_is_missing(path: str, message: str, idle_server: MooncakePool) -> None:
    """In a fresh interpreter, without the libraries: a ConfigError with the command that helps."""
    if path and ctypes.util.find_library("ibverbs"):
        pytest.skip("libibverbs1 is installed on this machine")
    program = (
        "from kvpool_connector.config import MooncakeRemote\n"
        "from kvpool_connector.stores import Breaker\n"
        "from kvpool_connector.stores.factory import make_store\n"
        f"make_store(MooncakeRemote.model_validate({idle_server.remote()!r}), Breaker())\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("LD_LIBRARY_PATH", "PYTHONPATH")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode
    assert "ConfigError: remote.type: mooncake" in done.stderr
    assert re.search(message, done.stderr)
