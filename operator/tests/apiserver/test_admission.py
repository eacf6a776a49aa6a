"""What the API server refuses, with the field named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from kvpool_operator.api import parse_spec

from .conftest import Operator
from .kubectl import Kubectl

TESTS = Path(__file__).parents[1]
QUICKSTART = TESTS.parents[1] / "examples" / "quickstart" / "kvcachepool.yaml"
BAD = yaml.safe_load((TESTS / "bad_pools.yaml").read_text())


@pytest.fixture(scope="module")
def kubectl(environment: dict[str, str], operator: Operator) -> Kubectl:
    """Nothing is stored by these tests, so they need no namespace of their own."""
    return Kubectl(environment, "default")


def dry_run(kubectl: Kubectl, spec: dict[str, Any], name: str = "bad") -> tuple[int, str]:
    body = {"apiVersion": "kvpool.dev/v1alpha1", "kind": "KVCachePool", "metadata": {"name": name}, "spec": spec}
    done = kubectl.run("create", "--dry-run=server", "-o", "json", "-f", "-", text=json.dumps(body))
    return done.returncode, done.stderr or done.stdout


@pytest.mark.parametrize("case", BAD, ids=[case["id"] for case in BAD])
def test_a_bad_pool_is_refused_with_the_field_and_the_fix(kubectl: Kubectl, case: dict[str, Any]) -> None:
    status, message = dry_run(kubectl, case["spec"])
    assert status != 0
    assert case["names"] in message
    assert case["says"] in message


def test_an_unknown_field_is_refused_by_name(kubectl: Kubectl) -> None:
    status, message = dry_run(kubectl, {"backend": {"type": "Redis", "memroy": "4Gi"}})
    assert status != 0
    assert 'unknown field "spec.backend.memroy"' in message


@pytest.mark.parametrize("name", ["a.b", "1a", "a" * 41])
def test_a_name_that_no_service_can_have_is_refused(kubectl: Kubectl, name: str) -> None:
    status, message = dry_run(kubectl, {"backend": {}}, name)
    assert status != 0
    assert "metadata.name must be at most 40" in message


@pytest.mark.parametrize(
    "spec",
    [
        yaml.safe_load(QUICKSTART.read_text())["spec"],
        {"backend": {}},
        {"tiers": {"cpu": {"size": "1Gi"}}, "backend": {"type": "None"}},
        {"backend": {"type": "Redis", "external": {"host": "h", "auth": {"secretRef": {"name": "s"}}}}},
        {
            "backend": {"memory": "64Mi", "resources": {"limits": {"cpu": 2, "x.example/y": "3"}}},
            "model": {"name": "/models/m", "revision": "main"},
            "engines": [{"name": "a", "podTemplate": {"spec": {"x": 1}}, "env": [{"name": "E", "value": ""}]}, {}],
            "connector": {"timeouts": {"lookupMs": 5}},
        },
    ],
    ids=["quickstart", "store alone", "tier alone", "external", "everything"],
)
def test_defaults_of_the_api_server_are_those_of_the_operator(kubectl: Kubectl, spec: dict[str, Any]) -> None:
    status, output = dry_run(kubectl, spec)
    assert status == 0, output
    assert parse_spec(json.loads(output)["spec"]) == parse_spec(spec)
