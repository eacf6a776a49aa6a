"""InfiniStore, through its own client (infinistore 0.2.35), over RDMA. Experimental.

What was run: the import of the package, the signatures that are used here, and the refusals. What was not: any call over
RDMA. Its server does not start without an RDMA device, and its client ends the process there, so a container without one is
refused.

Its interface reads a given number of bytes and does not say how many the store has: a part of another length is noticed by
its header. It has no call to ask for many keys at once.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from kvpool_connector.config import ConfigError, InfiniStoreRemote
from kvpool_connector.stores.base import Outcome
from kvpool_connector.stores.breaker import Breaker
from kvpool_connector.stores.memory import Memory
from kvpool_connector.stores.native import NativeStore, name_of
from kvpool_connector.stores.rdma import require_devices

_DONE, _FAILED, _ABSENT = 0, -1, -404


def load() -> Any:
    """The package.

    Raises:
        ConfigError: it is missing, or a library that it needs; names the field and the fix.
    """
    before = dict(os.environ)
    try:
        return importlib.import_module("infinistore")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"remote.type: infinistore needs its client in the engine's environment ({error}): install infinistore"
        ) from None
    except ImportError as error:
        raise ConfigError(
            f"remote.type: infinistore: its client cannot be loaded: {error}. On Debian and Ubuntu: apt-get install "
            "libibverbs1"
        ) from None
    finally:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
            os.environ.pop(name, None)  # its import sets all of them to 1, for the whole engine
            if name in before:
                os.environ[name] = before[name]


class InfiniStore(NativeStore):
    """One connection."""

    _answers = frozenset({_ABSENT})

    def __init__(self, config: InfiniStoreRemote, breaker: Breaker, memory: Memory | None = None) -> None:
        """Raises:
        ConfigError: no RDMA device, or the package or a library is missing.
        """
        devices = require_devices(
            "remote.type: infinistore needs RDMA", "remote.device", config.device, "choose another type"
        )
        self._package = load()
        super().__init__(config.where, breaker, memory)
        self._config, self._device = config, config.device or devices[0]

    def exists(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """One question after the other."""

        def ask(native: Any) -> list[int]:
            return [_code(lambda key=key: native.check_exist(name_of(key)), deadline) for key in keys]  # type: ignore[misc]

        return self._ask(ask, len(keys), _presence, deadline)

    def delete(self, keys: Sequence[bytes], deadline: float) -> list[Outcome]:
        """One key after the other: the client says only how many of a list went."""

        def remove(native: Any) -> list[int]:
            return [_code(lambda key=key: native.delete_keys([name_of(key)]), deadline) for key in keys]  # type: ignore[misc]

        return self._ask(remove, len(keys), _presence, deadline)

    def ping(self, deadline: float) -> Outcome:
        """A question for a key that nobody has."""
        (outcome,) = self.exists([b"kvpool:ping"], deadline)
        return Outcome.HIT if outcome is Outcome.MISS else outcome

    def _join(self) -> Any:
        package, config = self._package, self._config
        native = package.InfinityConnection(
            package.ClientConfig(
                host_addr=config.host,
                service_port=config.port,
                connection_type=package.TYPE_RDMA,
                dev_name=self._device,
                link_type=config.link_type,
                log_level="error",
            )
        )
        try:
            native.connect()
        except Exception as error:  # it raises nothing more precise
            raise OSError(f"no connection: {error}") from None
        return native

    def _leave(self, native: Any) -> None:
        native.close()

    def _register(self, native: Any, address: int, size: int) -> int:
        return _code(lambda: native.register_mr(address, size), float("inf"))

    def _read(self, native: Any, names: list[str], places: list[int], sizes: list[int]) -> Sequence[int]:
        return asyncio.run(self._each(native.rdma_read_cache_async, names, places, sizes))

    def _write(self, native: Any, names: list[str], places: list[int], sizes: list[int]) -> Sequence[int]:
        return asyncio.run(self._each(native.rdma_write_cache_async, names, places, sizes))

    async def _each(self, call: Any, names: list[str], places: list[int], sizes: list[int]) -> list[int]:
        """A call for each key, all in flight together: in one call, one missing key fails all of them."""
        calls = [call([(name, 0)], size, place) for name, place, size in zip(names, places, sizes, strict=True)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        absent = self._package.InfiniStoreKeyNotFound
        return [
            _ABSENT if isinstance(result, absent) else _FAILED if isinstance(result, BaseException) else _DONE
            for result in results
        ]

    @staticmethod
    def _reading(code: int, size: int) -> Outcome:  # noqa: ARG004 - it says no length
        return {_DONE: Outcome.HIT, _ABSENT: Outcome.MISS}.get(code, Outcome.FAILED)

    @staticmethod
    def _change(code: int, size: int = 0) -> Outcome:  # noqa: ARG004 - it says no length
        return Outcome.HIT if code == _DONE else Outcome.FAILED


def _presence(code: int, _: int) -> Outcome:
    return {1: Outcome.HIT, 0: Outcome.MISS}.get(code, Outcome.FAILED)


def _code(call: Callable[[], int], deadline: float) -> int:
    """A call's number, or _FAILED if it raises or comes too late to be worth making."""
    if time.monotonic() >= deadline:
        return _FAILED
    try:
        return int(call())
    except Exception:  # it raises nothing more precise
        return _FAILED
