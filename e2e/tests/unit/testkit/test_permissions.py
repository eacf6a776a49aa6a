"""Permissions beside an audit log."""

from __future__ import annotations

import json
from typing import Any

import pytest

from testkit.permissions import Right, Use, compare, rights_of, uses_of

ACCOUNT = ("ops", "robot")


def event(verb: str, *, user: str = "system:serviceaccount:ops:robot", code: int = 200, **target: str) -> str:
    body: dict[str, Any] = {"verb": verb, "user": {"username": user}, "responseStatus": {"code": code}}
    return json.dumps(body | {"objectRef": target} if target else body)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (event("list", resource="pods"), {Use("", "pods", "list")}),
        (
            event("get", resource="secrets", namespace="a", name="s"),
            {Use("", "secrets", "get", "a", "s")},
        ),
        (
            event(
                "patch", apiGroup="kvpool.dev", resource="kvcachepools", subresource="status", namespace="a", name="p"
            ),
            {Use("kvpool.dev", "kvcachepools/status", "patch", "a", "p")},
        ),
        (
            event("patch", code=201, apiGroup="apps", resource="deployments", namespace="a", name="d"),
            {Use("apps", "deployments", "patch", "a", "d"), Use("apps", "deployments", "create", "a", "d")},
        ),
        (event("get", code=403, resource="nodes", name="n"), {Use("", "nodes", "get", "", "n")}),
        (event("list", user="somebody", resource="pods"), set()),
        (event("get"), set()),
    ],
    ids=["all namespaces", "one object", "status", "apply", "refused", "another account", "no resource"],
)
def test_uses(line: str, expected: set[Use]) -> None:
    assert uses_of(ACCOUNT, [line]) == expected


@pytest.mark.parametrize(
    ("right", "allowed"),
    [
        (Right("", "secrets", "get"), True),
        (Right("", "secrets", "get", "a"), True),
        (Right("", "secrets", "get", "b"), False),
        (Right("", "secrets", "get", names=("s", "t")), True),
        (Right("", "secrets", "get", names=("t",)), False),
        (Right("", "secrets", "list"), False),
        (Right("", "configmaps", "get"), False),
        (Right("apps", "secrets", "get"), False),
        (Right("", "secrets/status", "get"), False),
    ],
)
def test_allows(right: Right, allowed: bool) -> None:
    use = Use("", "secrets", "get", "a", "s")
    assert right.allows(use) == allowed
    comparison = compare({right}, {use})
    assert comparison.missing == (() if allowed else (use,))
    assert comparison.unused == (() if allowed else (right,))


def test_a_right_for_a_namespace_does_not_allow_all() -> None:
    use = Use("", "pods", "list")
    assert compare({Right("", "pods", "list", "a")}, {use}).missing == (use,)


def role(kind: str, name: str, namespace: str = "", **rule: list[str]) -> dict[str, Any]:
    rules = [{"apiGroups": [""], "verbs": ["get"], **rule}]
    return {"kind": kind, "metadata": {"name": name, "namespace": namespace}, "rules": rules}


def binding(kind: str, name: str, role_kind: str, namespace: str = "", subject: str = "robot") -> dict[str, Any]:
    subjects = [{"kind": "ServiceAccount", "name": subject, "namespace": "ops"}]
    reference = {"kind": role_kind, "name": name}
    metadata = {"name": name, "namespace": namespace}
    return {"kind": kind, "metadata": metadata, "roleRef": reference, "subjects": subjects}


def test_rights_are_those_of_bound_roles() -> None:
    manifests = [
        role("ClusterRole", "wide", resources=["pods"], verbs=["get", "list"]),
        binding("ClusterRoleBinding", "wide", "ClusterRole"),
        role("Role", "own", "ops", resources=["secrets"], resourceNames=["s"]),
        binding("RoleBinding", "own", "Role", "ops"),
        role("ClusterRole", "editors", resources=["nodes"]),
        role("ClusterRole", "others", resources=["events"]),
        binding("ClusterRoleBinding", "others", "ClusterRole", subject="somebody"),
        {"kind": "Service", "metadata": {"name": "unrelated"}},
    ]
    assert rights_of(ACCOUNT, manifests) == {
        Right("", "pods", "get"),
        Right("", "pods", "list"),
        Right("", "secrets", "get", "ops", ("s",)),
    }
