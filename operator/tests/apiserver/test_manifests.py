"""Thirty manifests as people write them: the environment comes, and no word of them changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from . import manifests
from .conftest import POOL
from .injection import create
from .kubectl import Kubectl, eventually
from .manifests import CASES, Case, Json

PAGE = Path(__file__).parents[3] / "docs" / "injection.md"
ADDED = {"KVPOOL_CONFIG_FILE", "KVPOOL_CONFLICT_POLICY", "KVPOOL_ON_FAILURE", "PYTHONHASHSEED", "PYTHONPATH"}


@pytest.fixture
def anything(kubectl: Kubectl, foreign_kinds: None) -> Kubectl:
    """A namespace that takes every Pod, with a pool that makes a start long."""
    enforced = "pod-security.kubernetes.io/enforce=privileged"
    kubectl("label", "namespace", kubectl.namespace, enforced, "--overwrite")
    kubectl.apply_pool("demo", {**POOL, "tiers": {"cpu": {"size": "16Gi"}}})
    kubectl.await_condition("demo", "ConfigRendered", reason="Rendered")
    return kubectl


def lines(spec: Json) -> dict[str, Any]:
    """The words of each container."""
    return {one["name"]: (one.get("command"), one.get("args")) for one in spec["containers"]}


def made(kubectl: Kubectl, body: Json) -> list[tuple[Json, Json]]:
    """Apply an object; return pairs of a Pod's spec as it was asked for, and the Pod as it is."""
    create(kubectl, body)
    template = manifests.template_of(body)
    if template is not None:
        labels = ",".join(f"{key}={value}" for key, value in template["metadata"]["labels"].items())
        found = eventually(lambda: kubectl.list("pods", "-l", labels), what=f"Pods of {body['metadata']['name']}")
        live = kubectl.must_get(body["kind"], body["metadata"]["name"])["spec"]["template"]
        assert lines(live["spec"]) == lines(template["spec"])
        return [(template["spec"], one) for one in found]
    if body["kind"] == "RayService":
        create(kubectl, manifests.ray_cluster(body))
    asked = list(manifests.pods(body))
    for one in asked:
        if one is not body:
            create(kubectl, one)
    return [(one["spec"], kubectl.must_get("pod", one["metadata"]["name"])) for one in asked]


def assert_injected(spec: Json, pod: Json, case: Case) -> None:
    annotations = pod["metadata"]["annotations"]
    assert "kvpool.dev/injected" in annotations, annotations
    assert lines(pod["spec"]) == lines(spec), "byte for byte"
    before = {one["name"]: {variable["name"] for variable in one.get("env", ())} for one in spec["containers"]}
    changed = [one for one in pod["spec"]["containers"] if {v["name"] for v in one.get("env", ())} >= ADDED]
    assert [one["name"] in case.container.split() for one in changed] == [True]
    for one in pod["spec"]["containers"]:
        assert before[one["name"]] <= {variable["name"] for variable in one.get("env", ())}
        assert one in changed or "kvpool" not in str(one)
    assert case.warning in annotations.get("kvpool.dev/warning", "")
    assert bool(case.warning) == ("kvpool.dev/warning" in annotations)


@pytest.mark.parametrize("name", CASES)
def test_a_manifest(anything: Kubectl, name: str) -> None:
    found = []
    for body in manifests.bodies(name):
        found += made(anything, body)
        live = anything.must_get(body["kind"], body["metadata"]["name"])
        if body["kind"] not in ("Pod", "Deployment", "StatefulSet", "Job", "LimitRange", "ResourceQuota"):
            assert live.get("spec") == body.get("spec"), "the object is as it was written"
    assert found
    for spec, pod in found:
        assert_injected(spec, pod, CASES[name])


def test_every_file_is_a_case() -> None:
    assert sorted(path.stem for path in manifests.FOLDER.glob("*.yaml")) == sorted(CASES)


def test_the_page_says_what_becomes_of_each() -> None:
    section = PAGE.read_text().split("## What becomes of real manifests")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    assert {row[0].strip("`"): row[-1] for row in rows} == {
        name: manifests.outcome(case.given) for name, case in CASES.items()
    }
