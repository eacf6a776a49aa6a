"""InfiniStore, as far as it goes without RDMA: refusals, and whether the package is as the client uses it."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvpool_connector.config import ConfigError, InfiniStoreRemote
from kvpool_connector.stores import Breaker
from kvpool_connector.stores.factory import make_store
from testkit.engine import CONNECTOR, ENGINE_PYTHON, ROOT
from testkit.mooncake import libraries

OVERLAY = ROOT / ".venvs/infinistore"


def config(**fields: Any) -> InfiniStoreRemote:
    """A store that nobody needs to reach."""
    return InfiniStoreRemote.model_validate(
        {"type": "infinistore", "experimental": True, "host": "127.0.0.1", "port": 1} | fields
    )


def test_without_rdma_it_is_refused() -> None:
    """When the client is made, before the package is touched: it would end the process."""
    if any(Path("/sys/class/infiniband").glob("*")):
        pytest.skip("this machine has RDMA devices")
    with pytest.raises(ConfigError, match=r"remote\.type: infinistore needs RDMA, but .*choose another type"):
        make_store(config(), Breaker())


def test_a_device_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, with those that are."""
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr("kvpool_connector.stores.rdma._DEVICES", tmp_path)
    with pytest.raises(ConfigError, match=r"remote\.device: there is no RDMA device 'mlx5_9', only mlx5_0"):
        make_store(config(device="mlx5_9"), Breaker())


def test_a_package_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a device and without the package."""
    (tmp_path / "mlx5_0").mkdir()
    monkeypatch.setattr("kvpool_connector.stores.rdma._DEVICES", tmp_path)
    with pytest.raises(ConfigError, match=r"remote\.type: infinistore needs its client .*install infinistore"):
        make_store(config(), Breaker())


PROGRAM = """
import inspect, os
os.environ["OMP_NUM_THREADS"] = "7"
from kvpool_connector.stores.infinistore import load
package = load()
assert os.environ["OMP_NUM_THREADS"] == "7" and "MKL_NUM_THREADS" not in os.environ
connection = package.InfinityConnection
fields = dict(
    host_addr="127.0.0.1", service_port=1, connection_type=package.TYPE_RDMA, dev_name="x", link_type="IB", log_level="error"
)
client = connection(package.ClientConfig(**fields))
assert (client.config.host_addr, client.config.service_port, client.config.dev_name) == ("127.0.0.1", 1, "x")
for name in ("rdma_read_cache_async", "rdma_write_cache_async"):
    call = getattr(connection, name)
    assert inspect.iscoroutinefunction(call)
    assert list(inspect.signature(call).parameters) == ["self", "blocks", "block_size", "ptr"], name
assert list(inspect.signature(connection.check_exist).parameters) == ["self", "key"]
assert list(inspect.signature(connection.delete_keys).parameters) == ["self", "keys"]
assert list(inspect.signature(connection.connect).parameters) == ["self"]
assert issubclass(package.InfiniStoreKeyNotFound, Exception)
try:
    client.register_mr(1, 1)
except Exception as error:
    assert "rdma" in str(error)
else:
    raise AssertionError("registered without a connection")
print("as expected")
"""


def test_the_package_is_as_the_client_uses_it() -> None:
    """Imported in the engine's environment: names, fields and signatures; and its import leaves the environment as it was."""
    environment = {"PYTHONPATH": f"{OVERLAY}:{CONNECTOR}", "LD_LIBRARY_PATH": libraries(), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [str(ENGINE_PYTHON), "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert "as expected" in done.stdout, done.stderr
