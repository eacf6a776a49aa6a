"""The documents behind kvpool: their manifests, as written but for the connector's name, and kvpool's way (docs/seeds.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from .kubectl import SEEDS, Kubectl, eventually


def _bodies(path: Path) -> list[dict[str, Any]]:
    return [body for body in yaml.safe_load_all(path.read_text()) if body and "apiVersion" in body]


AS_WRITTEN = [path for path in sorted(SEEDS.glob("*/as-written/*.yaml")) if _bodies(path)]
KVPOOL = sorted(SEEDS.glob("*/kvpool/*.yaml"))
FAULTY = SEEDS / "sharing/as-written/deployment.yaml"


def _name(path: Path) -> str:
    return f"{path.parents[1].name}-{path.stem}"


@pytest.mark.parametrize("path", [path for path in AS_WRITTEN if path != FAULTY], ids=_name)
def test_a_manifest_as_written_is_accepted(kubectl: Kubectl, foreign_kinds: None, path: Path) -> None:
    for body in _bodies(path):
        kubectl.apply(body)
        kubectl.must_get(body["kind"], body["metadata"]["name"])


def test_deployments_without_a_selector_are_refused_as_written(kubectl: Kubectl) -> None:
    """The document shows them shortened. With the selector that Kubernetes asks for they are accepted."""
    refused = kubectl.run("apply", "-f", str(FAULTY))
    assert refused.returncode != 0
    assert "spec.selector: Required value" in refused.stderr
    for body in _bodies(FAULTY):
        labels = {"app": body["metadata"]["name"]}
        body["spec"]["selector"] = {"matchLabels": labels}
        body["spec"]["template"]["metadata"] = {"labels": labels}
        kubectl.apply(body)


@pytest.mark.parametrize("path", KVPOOL, ids=_name)
def test_kvpools_way_is_accepted(kubectl: Kubectl, foreign_kinds: None, path: Path) -> None:
    """A pool makes all that the document's other manifests make; a service of others stays as it was applied."""
    for body in _bodies(path):
        kubectl.apply(body)
        name = body["metadata"]["name"]
        if body["kind"] == "KVCachePool":
            kubectl.await_condition(name, "ConfigRendered", reason="Rendered")
            for engine in body["spec"].get("engines", ()):
                kubectl.must_get("deployment", f"{name}-{engine.get('name', 'engine')}")
            if body["spec"].get("backend"):
                eventually(lambda: kubectl.condition(name, "BackendAvailable").get("reason"), what="the store is known")  # noqa: B023
        else:
            assert kubectl.must_get(body["kind"], name)["spec"].keys() == body["spec"].keys()
