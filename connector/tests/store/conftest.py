"""Real servers, one of each kind for the tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvpool_connector.config import RedisRemote
from kvpool_connector.stores import Breaker
from kvpool_connector.stores.redis import RedisStore
from testkit.servers import KeyValueServer, ServerKind

pytest.register_assert_rewrite("connector.tests.store.contract")

Connect = Callable[..., RedisStore]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def kind(request: pytest.FixtureRequest) -> ServerKind:
    """Both speak the same protocol, and are tested to."""
    kind: ServerKind = request.param
    return kind


@pytest.fixture(scope="module")
def server(kind: ServerKind) -> Iterator[KeyValueServer]:
    """Shared: not to be stopped."""
    with KeyValueServer(kind) as server:
        yield server


@pytest.fixture
def own_server(kind: ServerKind) -> Iterator[KeyValueServer]:
    """For this test alone: may be stopped."""
    with KeyValueServer(kind) as server:
        yield server


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients and closes them at the end. Probes of a lost server come fast."""
    made: list[RedisStore] = []

    def make(server: KeyValueServer | int, *, breaker: Breaker | None = None, **fields: Any) -> RedisStore:
        port = server if isinstance(server, int) else server.port
        config = RedisRemote.model_validate({"type": "redis", "host": "127.0.0.1", "port": port} | fields)
        store = RedisStore(config, breaker or Breaker(first_s=0.02, longest_s=0.05))
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()
