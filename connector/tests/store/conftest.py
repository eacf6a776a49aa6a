"""Real servers, one of each kind for the tests that leave it as it was. The fixtures here are Redis's and Valkey's; a test
module of another store has its own `new_server`."""

from __future__ import annotations

import itertools
import mmap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import pytest
from pydantic import TypeAdapter

from kvpool_connector.config import RemoteStore
from kvpool_connector.stores import Breaker, Memory, Store
from kvpool_connector.stores.factory import make_store
from testkit.servers import KeyValueServer, ServerKind

pytest.register_assert_rewrite("connector.tests.store.contract")

Connect = Callable[..., Store]

MEMORY = Memory(memoryview(mmap.mmap(-1, 256 << 20)), most_lent=8)
"""Where all buffers of these tests lie, as an engine's lie in its arena."""
_lock = threading.Lock()
_used = 0


def buffers(sizes: Sequence[int]) -> list[memoryview]:
    """Buffers one after the other, of anything. They are used again by and by: when 256 MiB more were taken."""
    global _used  # noqa: PLW0603
    with _lock:
        if _used + sum(sizes) > len(MEMORY.view):
            _used = 0
        ends = [_used + end for end in itertools.accumulate(sizes)]
        _used = ends[-1] if ends else _used
    return [MEMORY.view[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def filled(values: Sequence[bytes]) -> list[memoryview]:
    """Buffers that hold these values."""
    rows = buffers(list(map(len, values)))
    for row, value in zip(rows, values, strict=True):
        row[:] = value
    return rows


class Subject(Protocol):
    """A server, or a group of them that is one store."""

    def remote(self, **fields: Any) -> dict[str, Any]: ...
    def start(self) -> Any: ...
    def kill(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...
    def close(self) -> None: ...


NewServer = Callable[[], Subject]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def kind(request: pytest.FixtureRequest) -> ServerKind:
    """Both speak the same protocol, and are tested to."""
    kind: ServerKind = request.param
    return kind


@pytest.fixture(scope="module")
def new_server(kind: ServerKind) -> NewServer:
    """Makes a server that does not run yet."""
    return lambda: KeyValueServer(kind)


@pytest.fixture(scope="module")
def server(new_server: NewServer) -> Iterator[Subject]:
    """Shared: not to be stopped."""
    server = new_server()
    server.start()
    yield server
    server.close()


@pytest.fixture
def own_server(new_server: NewServer) -> Iterator[Subject]:
    """For this test alone: may be stopped."""
    server = new_server()
    server.start()
    yield server
    server.close()


@pytest.fixture
def idle_server(new_server: NewServer) -> Iterator[Subject]:
    """For this test alone, and not started."""
    server = new_server()
    yield server
    server.close()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Makes clients and closes them at the end. Probes of a lost server come fast."""
    made: list[Store] = []

    def make(server: Subject | int, *, breaker: Breaker | None = None, **fields: Any) -> Store:
        """Args:
        server: or the port of a Redis on loopback.
        fields: of the configuration. Without time-outs among them, a server may be silent for
            long: these tests run on starved hosts, too.
        """
        fields = {"timeouts": {"stall_ms": 3000}} | fields
        remote = (
            {"type": "redis", "host": "127.0.0.1", "port": server} | fields
            if isinstance(server, int)
            else server.remote(**fields)
        )
        config: RemoteStore = TypeAdapter[RemoteStore](RemoteStore).validate_python(remote)
        store = make_store(config, breaker or Breaker(first_s=0.02, longest_s=0.05), MEMORY)
        made.append(store)
        return store

    yield make
    for store in made:
        store.close()
