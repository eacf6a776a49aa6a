"""Permissions of an account beside what it asked for: rules of RBAC and an API server's audit log. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Use:
    """A request that needed a permission.

    Attributes:
        resource: with its subresource after a slash, as rules name it.
        namespace: empty for an object that is in none, and for a request for all namespaces.
        name: empty where the request names no object.
    """

    group: str
    resource: str
    verb: str
    namespace: str = ""
    name: str = ""


@dataclass(frozen=True, order=True)
class Right:
    """A verb of a resource that a rule allows.

    Attributes:
        namespace: of a Role; empty for a ClusterRole that is bound everywhere.
        names: objects that the rule is limited to; empty for all.
    """

    group: str
    resource: str
    verb: str
    namespace: str = ""
    names: tuple[str, ...] = ()

    def allows(self, use: Use) -> bool:
        """Whether the request needs no other right than this one."""
        return (
            (self.group, self.resource, self.verb) == (use.group, use.resource, use.verb)
            and self.namespace in ("", use.namespace)
            and (not self.names or use.name in self.names)
        )


@dataclass(frozen=True)
class Comparison:
    """How permissions and requests differ.

    Attributes:
        missing: requests that no right allows.
        unused: rights that no request needed.
    """

    missing: tuple[Use, ...]
    unused: tuple[Right, ...]


def compare(rights: Iterable[Right], uses: Iterable[Use]) -> Comparison:
    """Compare what an account may do with what it did."""
    allowed = set(rights)
    done = set(uses)
    return Comparison(
        missing=tuple(sorted(use for use in done if not any(right.allows(use) for right in allowed))),
        unused=tuple(sorted(right for right in allowed if not any(right.allows(use) for use in done))),
    )


def rights_of(account: tuple[str, str], manifests: Iterable[Mapping[str, Any]]) -> set[Right]:
    """Return the rights of a service account by the roles and bindings among these manifests.

    Args:
        account: its namespace and name.
    """
    known = list(manifests)
    roles = {_key(one["kind"], one["metadata"]): one for one in known if one["kind"] in ("Role", "ClusterRole")}
    found: set[Right] = set()
    for binding in known:
        if binding["kind"] not in ("RoleBinding", "ClusterRoleBinding"):
            continue
        if account not in {(one.get("namespace", ""), one["name"]) for one in binding["subjects"]}:
            continue
        namespace = binding["metadata"].get("namespace", "")
        reference = {"name": binding["roleRef"]["name"], "namespace": namespace}
        role = roles[_key(binding["roleRef"]["kind"], reference)]
        found |= {right for rule in role["rules"] for right in _rights(rule, namespace)}
    return found


def _key(kind: str, metadata: Mapping[str, Any]) -> tuple[str, str, str]:
    namespace = metadata.get("namespace", "") if kind == "Role" else ""
    return kind, namespace, metadata["name"]


def _rights(rule: Mapping[str, Any], namespace: str) -> Iterable[Right]:
    for group in rule["apiGroups"]:
        for resource in rule["resources"]:
            for verb in rule["verbs"]:
                yield Right(group, resource, verb, namespace, tuple(rule.get("resourceNames", ())))


def uses_of(account: tuple[str, str], lines: Iterable[str]) -> set[Use]:
    """Return what a service account asked for by the lines of an audit log, requests that were refused among them.

    A request that is for no resource (versions, discovery) needs none of the rights that charts give.
    """
    namespace, name = account
    username = f"system:serviceaccount:{namespace}:{name}"
    found: set[Use] = set()
    for line in lines:
        event = json.loads(line)
        if event["user"]["username"] == username and "objectRef" in event:
            found |= _uses(event)
    return found


def _uses(event: Mapping[str, Any]) -> set[Use]:
    target = event["objectRef"]
    subresource = target.get("subresource")
    use = Use(
        group=target.get("apiGroup", ""),
        resource=f"{target['resource']}/{subresource}" if subresource else target["resource"],
        verb=event["verb"],
        namespace=target.get("namespace", ""),
        name=target.get("name", ""),
    )
    # An apply that makes the object is a PATCH which the API server authorises once more, as "create", and logs once.
    if use.verb == "patch" and event.get("responseStatus", {}).get("code") == 201:
        return {use, Use(use.group, use.resource, "create", use.namespace, use.name)}
    return {use}
