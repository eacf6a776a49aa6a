"""Mooncake: the contract, and what is its alone."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from connector.tests.store.conftest import Connect, NewServer
from connector.tests.store.contract import FAILED, HIT, MIB, MISS, TIMEOUT, StoreContract, get, noise, put, soon
from kvpool_connector.config import ConfigError
from kvpool_connector.stores import Breaker
from kvpool_connector.stores.mooncake import STAGING_BYTES, MooncakeStore
from testkit.mooncake import MooncakePool, make_importable
from testkit.servers import wait_until

make_importable()


@pytest.fixture(scope="module")
def new_server() -> NewServer:
    """Makes a pool that does not run yet."""
    return MooncakePool


class TestContract(StoreContract):
    """A put under a key that is there writes nothing, and there is no empty value."""

    replaces = False
    least = 1
    reconnects = 3

    @staticmethod
    def at(host: str) -> dict[str, object]:
        """Of the master."""
        return {"master": f"{host}:50051"}
