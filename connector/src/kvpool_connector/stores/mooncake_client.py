"""Mooncake's own client (the package mooncake-transfer-engine, 0.3.13): what it needs, and how it joins a pool."""

from __future__ import annotations

import importlib
import os
import socket
from typing import Any

from kvpool_connector.config import ConfigError, MooncakeRemote
from kvpool_connector.stores.rdma import require_devices

_PROBE_S = 1.0
_LOCAL_BUFFER = 0
"""Bytes of the client's own staging memory: calls with registered buffers need none."""


class SetupFailed(OSError):
    """The pool could not be joined."""


def load(config: MooncakeRemote) -> Any:
    """The module ``mooncake.store``.

    Raises:
        ConfigError: the package, a library that it needs, or RDMA devices are missing; names the field and the fix.
    """
    if config.protocol == "rdma":
        require_devices("remote.protocol: rdma", "remote.devices", config.devices, "set it to tcp")
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")  # else a full pool writes a line for each put, and each call some
    try:
        return importlib.import_module("mooncake.store")
    except ModuleNotFoundError:
        raise ConfigError(
            "remote.type: mooncake needs Mooncake's client in the engine's environment: install "
            "mooncake-transfer-engine, or mooncake-transfer-engine-non-cuda where there is no CUDA"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"remote.type: mooncake: its client cannot be loaded: {error}. On Debian and Ubuntu: apt-get install "
            "libibverbs1 libnuma1"
        ) from None


def join(config: MooncakeRemote, *, lends: bool) -> Any:
    """A client that is part of the pool. May block without a limit.

    Args:
        lends: whether it gives the pool ``segment_size`` bytes of this process.

    Raises:
        SetupFailed: the client's code is in the text.
        OSError: the master's name is unknown.
    """
    address = _address_towards(config.master)
    native = load(config).MooncakeDistributedStore()
    code = native.setup(
        {
            "local_hostname": config.local_host or address,
            "metadata_server": config.metadata_server,
            "global_segment_size": str(config.segment_size if lends else 0),
            "local_buffer_size": str(_LOCAL_BUFFER),
            "protocol": config.protocol,
            "rdma_devices": config.devices,
            "master_server_addr": config.master,
        }
    )
    if code:
        raise SetupFailed(f"it cannot be joined (code {code})")
    return native


def replicas(config: MooncakeRemote) -> Any:
    """How parts are to be stored."""
    wanted = load(config).ReplicateConfig()
    wanted.replica_num = config.replicas
    return wanted


def _address_towards(master: str) -> str:
    """This host's address on the way to the first of the masters (or members of etcd) that takes connections.

    Without such a server, Mooncake's client tries for 90 seconds and cannot be stopped.

    Raises:
        OSError: none does.
    """
    error = OSError(f"{master!r} is no host:port")
    for endpoint in master.removeprefix("etcd://").split(";"):
        host, _, port = endpoint.rpartition(":")
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S) as probe:
                return str(probe.getsockname()[0])
        except (UnicodeError, ValueError):  # from IDNA, for names such as "a..b"; a port that is none
            error = OSError(f"{endpoint!r} is no host:port")
        except OSError as fault:
            error = fault
    raise error
