"""Every kind of store between two engines: the second one loads what the first one stored, byte for byte, and loses the store in
mid-use without an error. Redis itself is in test_bytes.py."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any, Protocol

import pytest

from connector.tests.engine.harness import PATTERN, prompt, running
from kvpool_connector.transfer import Kind
from testkit.lmcache import LMCacheServer
from testkit.mooncake import MooncakePool, make_importable
from testkit.sentinel import SentinelGroup
from testkit.servers import KeyValueServer, wait_until

pytestmark = pytest.mark.timeout(300)


class Subject(Protocol):
    """What the servers of `testkit` have in common."""

    def remote(self, **fields: Any) -> dict[str, Any]: ...
    def start(self) -> Any: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


STORES = {
    "valkey": lambda: KeyValueServer("valkey"),
    "redis-sentinel": SentinelGroup,
    "lmcache": LMCacheServer,
    "mooncake": lambda: MooncakePool("512 MB"),
}


@pytest.mark.parametrize("kind", STORES)
def test_two_engines_and_a_store_that_is_lost_and_back(kind: str, model: Path) -> None:
    """The second engine's KV memory is overwritten before it loads, so a load that does nothing cannot pass."""
    if kind == "mooncake":
        make_importable()
    store: Subject = STORES[kind]()
    try:
        store.start()
        timeouts = {"lookup_ms": 2000, "connect_ms": 1000}
        kvpool = {
            "tiers": {"cpu": {"size": "128Mi"}}, "remote": store.remote(timeouts=timeouts), "admission": "always",
        }  # fmt: skip
        with running(str(model), kvpool) as first:
            text, cached = first.generate(prompt(1))
            assert cached == 0
            first.settle()
            computed = first.snapshot(Kind.STORE)
            assert len(computed) >= 5
        with running(str(model), kvpool) as second:
            second.overwrite()
            assert second.generate(prompt(1)) == (text, len(computed) * 128)
            assert all(load.from_remote for load in second.loads())
            loaded = second.snapshot(Kind.LOAD)
            assert loaded == {key: computed[key] for key in loaded}
            assert len(loaded) == len(computed)
            assert not any(set(data) == {PATTERN} for data in loaded.values())

            # Lost in mid-use: a request is in the engine while it goes.
            second.forget(tiers=True)
            begun = second.mover.outcomes["get hit"]
            killer = threading.Thread(target=_kill_when, args=(store, lambda: second.mover.outcomes["get hit"] > begun))
            killer.start()
            assert second.generate(prompt(1))[0] == text
            killer.join()
            second.forget(tiers=True)
            assert second.generate(prompt(1)) == (text, 0)
            second.settle()

            # Back, and empty: what the engine still holds is stored again when it is used.
            store.start()
            wait_until("its return is noticed", lambda: second.manager.pool.store_reachable)
            second.forget()
            assert second.generate(prompt(1))[0] == text
            second.settle()
            second.forget(tiers=True)
            second.overwrite()
            assert second.generate(prompt(1)) == (text, len(computed) * 128)
            second.assert_nothing_is_left()
    finally:
        store.close()


def _kill_when(store: Subject, condition: Any) -> None:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.0005)
    store.kill()
