"""One engine in this process, shared by the tests of this folder: a start takes most of a minute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-engine` uses the engine environment")

from testkit.engine import ensure_model, environment
from testkit.servers import KeyValueServer

# vLLM reads its environment at import. One process: the tests read and overwrite the worker's KV memory.
os.environ.update(environment() | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING"})


@pytest.fixture(scope="session")
def model() -> Path:
    """SmolLM2-135M-Instruct."""
    return ensure_model()


@pytest.fixture(scope="session")
def store() -> Iterator[KeyValueServer]:
    """A real Redis that asks for a password."""
    with KeyValueServer("redis", password="quarterdeck") as server:
        yield server
