"""A RayService goes through KubeRay's operator, and the Pods of its RayCluster have the cache."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from e2e.cluster.local import published
from e2e.cluster.progress import Progress
from e2e.cluster.settings import read_settings
from e2e.controllers import kuberay as kuberay_parts
from testkit.patience import PATIENCE_S

from ..kubectl import SEEDS, Kubectl, eventually
from . import looks
from .conftest import pool
from .dashboard import Dashboards
from .process import Controller

SEED = (SEEDS / "ray-serve/as-written/app.yaml").read_text().replace("KVPoolConnector", "LMCacheConnectorV1")
"""Ray Serve's own example of KV cache offloading, with LMCache as the connector."""
NAME = "ray-serve-llm"
NODE = "nobody"
CONTAINERS = {"head": "ray-head", "worker": "ray-worker"}
EDITS: tuple[dict[str, Any], ...] = (
    {"tiers": {"cpu": {"size": "2Gi"}}},
    {"connector": {"ttlSeconds": 60}},
    {"tiers": {"cpu": {"size": "3Gi"}}, "connector": {"ttlSeconds": 120}},
)
ROUNDS = 3
"""Of KubeRay's operator, which looks at a RayService every two seconds, after each edit."""

pytestmark = pytest.mark.timeout(600, func_only=True)
"""Controllers, API server and operator at once are slow on two cores that others use too."""


def without_connector() -> str:
    """Ray's example with nothing of a cache in it."""
    config = yaml.safe_load(SEED)
    for application in config["applications"]:
        del application["runtime_env"]
        for engine in application["args"]["llm_configs"]:
            del engine["engine_kwargs"]["kv_transfer_config"]
    return str(yaml.safe_dump(config, sort_keys=False))


def service(serve_config: str) -> dict[str, Any]:
    """KubeRay's own sample with this application, and the pool named on it."""
    folder = published.folder(kuberay_parts.PROGRAM, read_settings().cache, Progress())
    body: dict[str, Any] = next(yaml.safe_load_all(kuberay_parts.sample(folder).read_text()))
    assert body["metadata"]["name"] == NAME
    body["metadata"]["annotations"] = {looks.POOL: looks.NAME}
    body["spec"]["serveConfigV2"] = serve_config
    return body


def pods(kubectl: Kubectl) -> dict[str, dict[str, Any]]:
    """The cluster's Pods by node type: one head, one worker."""

    def look() -> dict[str, dict[str, Any]]:
        found = [
            one for one in kubectl.list("pods", "-l", "ray.io/cluster") if "deletionTimestamp" not in one["metadata"]
        ]
        by_type = {one["metadata"]["labels"]["ray.io/node-type"]: one for one in found}
        return by_type if len(found) == 2 and by_type.keys() == CONTAINERS.keys() else {}

    return eventually(look, seconds=2 * PATIENCE_S, what="a head and a worker")


def play_kubelet(kubectl: Kubectl) -> None:
    """Write what a scheduler and a kubelet would: the head runs on the node, is ready and has an address."""
    name = pods(kubectl)["head"]["metadata"]["name"]
    binding = {
        "apiVersion": "v1",
        "kind": "Binding",
        "metadata": {"name": name},
        "target": {"kind": "Node", "name": NODE},
    }
    path = f"/api/v1/namespaces/{kubectl.namespace}/pods/{name}/binding"
    kubectl("create", "--raw", path, "-f", "-", text=json.dumps(binding))
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}
        for kind in ("Ready", "ContainersReady")
    ]
    status = {"phase": "Running", "podIP": "10.244.9.9", "podIPs": [{"ip": "10.244.9.9"}], "conditions": conditions}
    patch = json.dumps({"status": status})
    kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)


def clusters(kubectl: Kubectl) -> dict[str, tuple[int, Any]]:
    """Generation and spec of each RayCluster."""
    return {
        one["metadata"]["name"]: (one["metadata"]["generation"], one["spec"]) for one in kubectl.list("rayclusters")
    }


def serving(kubectl: Kubectl) -> str:
    """Wait until KubeRay says that the service is ready; returns its active cluster."""
    play_kubelet(kubectl)

    def look() -> str:
        status = kubectl.must_get("rayservice", NAME).get("status", {})
        ready = [one for one in status.get("conditions", ()) if one["type"] == "Ready" and one["status"] == "True"]
        return str(status["activeServiceStatus"]["rayClusterName"]) if ready else ""

    # Ready needs an endpoint of the Serve service: the head's Pod, on a node that exists.
    return eventually(look, seconds=2 * PATIENCE_S, what="a RayService that is ready")


@pytest.fixture
def node(kubectl: Kubectl) -> Iterator[None]:
    """A Node in name only, on which nothing is scheduled by itself."""
    taint = {"key": "kvpool.dev/nobody", "effect": "NoSchedule"}
    kubectl.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}, "spec": {"taints": [taint]}})
    yield
    kubectl("delete", "node", NODE, "--wait=false")


@pytest.fixture
def team(kubectl: Kubectl, kuberay: Controller) -> Kubectl:
    """A namespace with a pool."""
    kubectl.apply_pool(looks.NAME, pool())
    looks.config_hash(kubectl)
    return kubectl


def test_a_rayservice_and_three_edits_of_the_pool(team: Kubectl, node: None, dashboards: Dashboards) -> None:
    team.apply(service(without_connector()))
    for kind, pod in pods(team).items():
        looks.assert_carries_the_cache(team, pod, CONTAINERS[kind], looks.config_hash(team))
        memory = looks.container(pod, CONTAINERS[kind])["resources"]["limits"]["memory"]
        assert memory == {"head": "5Gi", "worker": "33Gi"}[kind]
        # KubeRay's own part: the command, and the shared memory of Ray's object store.
        assert "ray start" in " ".join(looks.container(pod, CONTAINERS[kind])["args"])

    active = serving(team)
    host = next(host for host in dashboards.given if host.startswith(f"{active}-head-svc.{team.namespace}."))
    (given,) = dashboards.given[host]
    assert given == yaml.safe_load(without_connector())

    before, spec = clusters(team), team.must_get("rayservice", NAME)["spec"]
    assert spec["serveConfigV2"] == without_connector()
    generation = team.must_get("rayservice", NAME)["metadata"]["generation"]
    assert list(before) == [active]
    uids = {pod["metadata"]["uid"] for pod in pods(team).values()}
    for edit in EDITS:
        looks.edit_pool(team, edit)
        rounds = dashboards.asked[host] + ROUNDS

        def asked(rounds: int = rounds) -> bool:
            return dashboards.asked[host] >= rounds

        eventually(asked, seconds=2 * PATIENCE_S, what="rounds of KubeRay")
        assert clusters(team) == before
    after = team.must_get("rayservice", NAME)
    assert (after["metadata"]["generation"], after["spec"]) == (generation, spec)
    assert {pod["metadata"]["uid"] for pod in pods(team).values()} == uids
    assert len(dashboards.given[host]) == 1

    # The same manifest again, as GitOps applies it.
    team.apply(service(without_connector()))
    after = team.must_get("rayservice", NAME)
    assert (after["metadata"]["generation"], after["spec"]) == (generation, spec)

    # A worker that is made anew has the pool's present configuration.
    team("delete", "pod", pods(team)["worker"]["metadata"]["name"], "--wait=false", "--grace-period=0", "--force")

    def new_worker() -> dict[str, Any]:
        found = pods(team)["worker"]
        return found if found["metadata"]["uid"] not in uids else {}

    worker = eventually(new_worker, seconds=2 * PATIENCE_S, what="a new worker")
    looks.assert_carries_the_cache(team, worker, "ray-worker", looks.config_hash(team))
    assert looks.container(worker, "ray-worker")["resources"]["limits"]["memory"] == "35Gi"
    assert clusters(team) == before

    # What a second RayCluster does come of, so that its absence says something.
    changed = copy.deepcopy(service(without_connector()))
    changed["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["env"] = [
        {"name": "OF_THE_USER", "value": "1"}
    ]
    team.apply(changed)
    eventually(lambda: len(clusters(team)) == 2, seconds=2 * PATIENCE_S, what="a second RayCluster")


def test_rays_example_as_it_stands(team: Kubectl) -> None:
    """serveConfigV2 names LMCache's connector: it stays, byte for byte, and the engines are told by which policy to decide."""
    team.apply_pool(looks.NAME, pool(injection={"conflictPolicy": "Replace"}))
    team.apply(service(SEED))
    body = team.must_get("rayservice", NAME)
    assert body["spec"]["serveConfigV2"] == SEED
    assert looks.annotation(body, looks.SKIP_REASON) == ""
    for kind, pod in pods(team).items():
        looks.assert_carries_the_cache(team, pod, CONTAINERS[kind], looks.config_hash(team))
        assert {"name": "KVPOOL_CONFLICT_POLICY", "value": "Replace"} in looks.container(pod, CONTAINERS[kind])["env"]
