"""An InferenceService goes through KServe's controller and its webhooks, and its Pods have the cache."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import yaml

from testkit.patience import PATIENCE_S

from ..kubectl import SEEDS, Kubectl, eventually
from . import looks
from .conftest import pool
from .process import Controller

SEED: dict[str, Any] = yaml.safe_load(
    (SEEDS / "kserve/as-written/lmcache_isvc.yaml").read_text().replace("KVPoolConnector", "LMCacheConnectorV1")
)
"""KServe's own example of KV cache offloading, with LMCache as the connector."""
NAME = SEED["metadata"]["name"]
MAIN = "kserve-container"
PODS = ("-l", f"serving.kserve.io/inferenceservice={NAME}")
EDITS: tuple[dict[str, Any], ...] = (
    {"tiers": {"cpu": {"size": "2Gi"}}},
    {"connector": {"ttlSeconds": 60}},
    {"tiers": {"cpu": {"size": "3Gi"}}, "connector": {"ttlSeconds": 120}},
)

pytestmark = pytest.mark.timeout(600, func_only=True)
"""Controllers, API server and operator at once are slow on two cores that others use too."""


def with_annotation() -> dict[str, Any]:
    """As it stands, with the pool named on it."""
    body = copy.deepcopy(SEED)
    body["metadata"]["annotations"] = {looks.POOL: looks.NAME}
    return body


def plain() -> dict[str, Any]:
    """No connector, no LMCache: only the annotation."""
    body = with_annotation()
    model, predictor = body["spec"]["predictor"]["model"], body["spec"]["predictor"]
    place = model["args"].index("--kv-transfer-config")
    del model["args"][place : place + 2]
    model["env"] = [one for one in model["env"] if not one["name"].startswith("LMCACHE")]
    del model["volumeMounts"], predictor["volumes"]
    return body


def pods(kubectl: Kubectl, count: int = 2) -> list[dict[str, Any]]:
    """The service's Pods that are there to stay."""

    def look() -> list[dict[str, Any]]:
        found = [one for one in kubectl.list("pods", *PODS) if "deletionTimestamp" not in one["metadata"]]
        return found if len(found) == count else []

    return eventually(look, seconds=2 * PATIENCE_S, what=f"{count} Pods of the InferenceService")


def new_pods(kubectl: Kubectl) -> list[dict[str, Any]]:
    """Let the ReplicaSet make all Pods anew."""
    old = {one["metadata"]["uid"] for one in pods(kubectl)}
    kubectl("delete", "pods", *PODS, "--wait=false", "--grace-period=0", "--force")

    def look() -> list[dict[str, Any]]:
        found = pods(kubectl)
        return found if not old & {one["metadata"]["uid"] for one in found} else []

    return eventually(look, seconds=2 * PATIENCE_S, what="new Pods")


def state(kubectl: Kubectl) -> dict[str, Any]:
    """What GitOps and a rollout look at: the spec and generation of the service and all that KServe made of it."""
    made = kubectl.list("deployments,replicasets,services,horizontalpodautoscalers", *PODS)
    bodies = [kubectl.must_get("inferenceservice", NAME), *made]
    return {
        f"{one['kind']} {one['metadata']['name']}": (
            one["metadata"].get("generation"),
            one["spec"],
            {key: value for key, value in one["metadata"].get("annotations", {}).items() if "kvpool" in key},
        )
        for one in bodies
    }


@pytest.fixture
def team(kubectl: Kubectl, kserve: Controller) -> Kubectl:
    """A namespace with a pool."""
    kubectl.apply_pool(looks.NAME, pool())
    looks.config_hash(kubectl)
    return kubectl


def test_an_inferenceservice_with_nothing_but_the_annotation(team: Kubectl) -> None:
    team.apply(plain())
    for pod in pods(team):
        looks.assert_carries_the_cache(team, pod, MAIN, looks.config_hash(team))
        main = looks.container(pod, MAIN)
        assert "kvpool" not in str((main.get("command"), main["args"])).lower()
        # KServe's Pod webhook was there too: only it writes this.
        assert looks.annotation(pod, "serving.kserve.io/enable-metric-aggregation") == "false"
        # KServe's own part: the runtime's arguments before the service's, its shared memory, its choice of image.
        assert main["args"][0] == f"--model_name={NAME}"
        assert main["image"].endswith("-gpu")
        assert [one["name"] for one in main["volumeMounts"] if one["mountPath"] == "/dev/shm"] == ["devshm"]  # noqa: S108
        assert main["resources"]["limits"]["memory"] == "25Gi"
    team.await_condition(looks.NAME, "InjectionReady", reason="Written")


@pytest.mark.parametrize("policy", ["Skip", "Multi", "Replace", "Fail"])
def test_the_example_as_it_stands_by_conflict_policy(team: Kubectl, policy: str) -> None:
    """Its line stays as it is: the engine decides, and is told by which policy."""
    team.apply_pool(looks.NAME, pool(injection={"conflictPolicy": policy}))
    team.apply(with_annotation())
    for pod in pods(team):
        looks.assert_carries_the_cache(team, pod, MAIN, looks.config_hash(team))
        main = looks.container(pod, MAIN)
        written = SEED["spec"]["predictor"]["model"]["args"]
        assert main["args"][-len(written) :] == written
        assert {"name": "KVPOOL_CONFLICT_POLICY", "value": policy} in main["env"]
        # What the example brings itself is still there.
        assert {"name": "LMCACHE_CONFIG_FILE", "value": "/lmcache/lmcache_config.yaml"} in main["env"]
        assert "/lmcache" in {one["mountPath"] for one in main["volumeMounts"]}


def test_three_edits_of_the_pool_change_new_pods_and_nothing_else(team: Kubectl, kserve: Controller) -> None:
    team.apply(plain())
    pods(team)
    before = state(team)
    assert {key.split()[0] for key in before} >= {"InferenceService", "Deployment", "ReplicaSet"}
    running = {one["metadata"]["uid"] for one in pods(team)}
    for edit in EDITS:
        looks.edit_pool(team, edit)
    # All services are looked at once more when the controller starts.
    kserve.end()
    kserve.start()
    again = f'"isvc":"{NAME}","namespace":"{team.namespace}"'
    eventually(
        lambda: again in kserve.log.replace(": ", ":").replace(", ", ","),
        seconds=2 * PATIENCE_S,
        what="a reconciliation",
    )
    assert state(team) == before
    assert {one["metadata"]["uid"] for one in pods(team)} == running
    drift = team.run("diff", "-f", "-", text=json.dumps(plain()))
    assert drift.returncode == 0, drift.stdout
    for pod in new_pods(team):
        looks.assert_carries_the_cache(team, pod, MAIN, looks.config_hash(team))
        assert looks.container(pod, MAIN)["resources"]["limits"]["memory"] == "27Gi"
    assert state(team) == before


def test_the_connector_comes_behind_kserves_checks(team: Kubectl) -> None:
    """PYTHONPATH is on the Pod alone: later versions of KServe refuse it on an InferenceService."""
    team.apply(plain())
    for pod in pods(team):
        assert [one["name"] for one in pod["spec"]["initContainers"]] == ["kvpool-payload"]
    (deployment,) = team.list("deployments", *PODS)
    assert "PYTHONPATH" not in json.dumps(deployment["spec"])


def test_kserves_own_checks_are_on(team: Kubectl) -> None:
    bad = plain()
    bad["metadata"]["name"] = "9-begins-with-a-digit"
    done = team.run("apply", "-f", "-", text=json.dumps(bad))
    assert done.returncode != 0
    assert "kserve-webhook-server.validator" in done.stderr
