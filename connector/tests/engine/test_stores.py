"""Every kind of store under an engine: with its tiers and KV memory emptied it loads what it stored, byte for byte, and it
loses the store in mid-use without an error. Redis itself is in test_bytes.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pytest
from pydantic import TypeAdapter

from connector.tests.engine.harness import PATTERN, prompt, running
from kvpool_connector.config import RemoteStore
from kvpool_connector.identity import document_name
from kvpool_connector.stores import Breaker, Outcome
from kvpool_connector.stores.factory import make_store
from kvpool_connector.transfer import Kind, Tier
from kvpool_connector.worker.secondary.remote import RemoteTier
from testkit.lmcache import LMCacheServer
from testkit.mooncake import MooncakePool, make_importable
from testkit.patience import STORE_TIMEOUTS
from testkit.sentinel import SentinelGroup
from testkit.servers import KeyValueServer, wait_until

WORDS = 450
pytestmark = pytest.mark.timeout(300)


class Subject(Protocol):
    """What the servers of `testkit` have in common."""

    def remote(self, **fields: Any) -> dict[str, Any]: ...
    def start(self) -> Any: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


STORES: dict[str, Callable[[], Subject]] = {
    "valkey": lambda: KeyValueServer("valkey"),
    "redis-sentinel": SentinelGroup,
    "lmcache": LMCacheServer,
    "mooncake": lambda: MooncakePool("512 MB"),
}


SLOW = ("valkey", "redis-sentinel")
"""Left out of every run: their clients are Redis' own, which other tests of this folder use."""
KINDS = [pytest.param(kind, marks=pytest.mark.slow if kind in SLOW else ()) for kind in STORES]


@pytest.mark.parametrize("kind", KINDS)
def test_a_store_that_is_used_lost_and_back(kind: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KV memory is overwritten before a load, so one that does nothing cannot pass."""
    if kind == "mooncake":
        make_importable()
    store: Subject = STORES[kind]()
    try:
        store.start()
        timeouts = STORE_TIMEOUTS | {"connect_ms": 3000}
        kvpool = {
            "tiers": {"cpu": {"size": "128Mi"}}, "remote": store.remote(timeouts=timeouts), "admission": "always",
        }  # fmt: skip
        with running(str(model), kvpool) as engine:
            text, cached = engine.generate(prompt(1, WORDS))
            assert cached == 0
            engine.settle()
            _has_the_document(kvpool["remote"], engine.mover._rows.parts.identity)
            computed = engine.snapshot(Kind.STORE)
            assert len(computed) >= 3
            engine.forget(tiers=True)
            engine.overwrite()
            assert engine.generate(prompt(1, WORDS)) == (text, len(computed) * engine.chunk_tokens)
            assert all(load.from_remote for load in engine.loads())
            loaded = engine.snapshot(Kind.LOAD)
            assert loaded == {key: computed[key] for key in loaded}
            assert len(loaded) == len(computed)
            assert not any(set(data) == {PATTERN} for data in loaded.values())

            # Lost between the answer that it has the parts and their reading.
            engine.forget(tiers=True)
            tier = engine.mover._secondary[Tier.REMOTE]
            assert isinstance(tier, RemoteTier)
            reader = tier._remote.reader
            read = reader.get_into
            lost: list[int] = []

            def lose(keys: Any, buffers: Any, deadline: float) -> list[Outcome]:
                if not lost:
                    store.kill()
                lost.append(len(keys))
                return read(keys, buffers, deadline)

            monkeypatch.setattr(reader, "get_into", lose)
            assert engine.generate(prompt(1, WORDS))[0] == text
            assert lost
            engine.forget(tiers=True)
            assert engine.generate(prompt(1, WORDS)) == (text, 0)
            engine.settle()

            # Back, and empty: what the engine still holds is stored again when it is used.
            store.start()
            wait_until("its return is noticed", lambda: engine.manager.pool.store_reachable)
            engine.forget()
            before = engine.mover.outbox.outcomes["put hit"]
            assert engine.generate(prompt(1, WORDS)) == (text, len(computed) * engine.chunk_tokens)  # from memory
            engine.settle()
            assert engine.mover.outbox.outcomes["put hit"] - before == len(computed)
            engine.forget(tiers=True)
            engine.overwrite()
            assert engine.generate(prompt(1, WORDS)) == (text, len(computed) * engine.chunk_tokens)
            engine.assert_nothing_is_left()
    finally:
        store.close()


def _has_the_document(remote: object, identity: str) -> None:
    """The first writer stores what an identity stands for, beside the parts."""
    config: RemoteStore = TypeAdapter[RemoteStore](RemoteStore).validate_python(remote)
    store = make_store(config, Breaker())
    try:
        wait_until(
            "the identity's document is in the store",
            lambda: store.exists([document_name(identity)], time.monotonic() + 5) == [Outcome.HIT],
        )
    finally:
        store.close()
