"""One engine in this process with a memory tier and a Redis, shared by the tests of this folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed here; `make test-paced` uses the engine environment")

from testkit.paced.engine import PacedEngine, engine, prepare_environment
from testkit.paced.profiles import PROFILES, Profile
from testkit.servers import KeyValueServer

prepare_environment(separate=False)  # vLLM reads the environment when it is imported

SMALL: Profile = dataclasses.replace(
    PROFILES["llama-8b"], device_tokens=8192, max_model_tokens=8192, max_batched_tokens=1024
)
"""A card whose KV memory a few documents fill, so that blocks are used again and again."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder in which the profiles' models are, each in a folder of its own."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def store() -> Iterator[KeyValueServer]:
    """A real Redis."""
    with KeyValueServer("redis") as server:
        yield server


@pytest.fixture(scope="module")
def shared(models: Path) -> Iterator[PacedEngine]:
    """An engine with a memory tier."""
    kvpool = {"tiers": {"cpu": {"size": "256Mi"}}}
    with engine(SMALL, models / "small", kvpool, separate=False, check=False) as running:
        yield running


@pytest.fixture
def paced(shared: PacedEngine) -> PacedEngine:
    """The shared engine, which remembers nothing of the test before."""
    shared.forget(tiers=True)
    shared.reports(forget=True)
    return shared
