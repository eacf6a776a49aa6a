"""Pools as unit tests need them: parsed from the YAML that a user would write. Namespaces that they allow take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from kvpool_operator.api import Settings, parse_spec
from kvpool_operator.desired import Material, Pool
from testkit import properties

properties.use()

MakePool = Callable[..., Pool]


@pytest.fixture
def make_pool() -> MakePool:
    def make(spec: str | dict[str, Any], *, settings: dict[str, Any] | None = None, **material: str) -> Pool:
        raw = yaml.safe_load(spec) if isinstance(spec, str) else spec
        values = {"store_password": "canary-password", "hash_seed": "4242", "store_secret_uid": "uid-1", **material}
        parsed = parse_spec(raw)
        return Pool(
            name="demo",
            namespace="team",
            uid="pool-uid",
            spec=parsed,
            material=Material(**values),
            settings=Settings.model_validate(settings or {}),
            shared_with=tuple(name for name in parsed.injection.allowed_namespaces if name != "team"),
        )

    return make
