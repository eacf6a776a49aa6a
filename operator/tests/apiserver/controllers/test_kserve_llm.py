"""An LLMInferenceService goes through KServe's controller and its templates, and its Pods have the cache."""

from __future__ import annotations

from typing import Any

import pytest

from testkit.patience import PATIENCE_S

from ..kubectl import Kubectl, eventually
from . import looks
from .conftest import pool
from .process import Controller

NAME, MAIN = "llama", "main"
PODS = ("-l", f"app.kubernetes.io/name={NAME},app.kubernetes.io/part-of=llminferenceservice")
NIXL = '{"kv_connector":"NixlConnector","kv_role":"kv_both"}'

pytestmark = pytest.mark.timeout(600, func_only=True)
"""Controllers, API server and operator at once are slow on two cores that others use too."""


def service(*, on_the_object: bool = True, **spec: Any) -> dict[str, Any]:
    """One of two replicas, without a router."""
    annotations = {looks.POOL: looks.NAME}
    return {
        "apiVersion": "serving.kserve.io/v1alpha2",
        "kind": "LLMInferenceService",
        "metadata": {"name": NAME, "annotations": annotations if on_the_object else {}},
        "spec": {
            "model": {"uri": "hf://meta-llama/Llama-3.2-1B-Instruct", "name": "meta-llama/Llama-3.2-1B-Instruct"},
            "replicas": 2,
            **({} if on_the_object else {"annotations": annotations}),
            **spec,
        },
    }


def pods(kubectl: Kubectl, count: int = 2) -> list[dict[str, Any]]:
    def look() -> list[dict[str, Any]]:
        found = [one for one in kubectl.list("pods", *PODS) if "deletionTimestamp" not in one["metadata"]]
        return found if len(found) == count else []

    return eventually(look, seconds=2 * PATIENCE_S, what=f"{count} Pods of the LLMInferenceService")


@pytest.fixture
def team(kubectl: Kubectl, kserve_llm: Controller) -> Kubectl:
    """A namespace with a pool."""
    kubectl.apply_pool(looks.NAME, pool())
    looks.config_hash(kubectl)
    return kubectl


@pytest.mark.parametrize("on_the_object", [True, False], ids=["metadata", "spec.annotations"])
def test_an_llminferenceservice_with_nothing_but_the_annotation(team: Kubectl, on_the_object: bool) -> None:
    team.apply(service(on_the_object=on_the_object))
    for pod in pods(team):
        looks.assert_carries_the_cache(team, pod, MAIN, looks.config_hash(team))
        main = looks.container(pod, MAIN)
        assert "kvpool" not in str((main["command"], main.get("args"))).lower()
        # KServe's own part: its template's command, with the service's variables in it.
        assert main["command"][:3] == ["vllm", "serve", "/mnt/models"]
        assert "meta-llama/Llama-3.2-1B-Instruct" in main["command"]
    team.await_condition(looks.NAME, "InjectionReady", reason="Written")
    (deployment,) = team.list("deployments", *PODS)
    template = deployment["spec"]["template"]["metadata"].get("annotations", {})
    assert (looks.POOL in template) == (not on_the_object), "KServe copies none of the object's own annotations"


def test_prefill_and_decode_with_a_transport_of_their_own(team: Kubectl) -> None:
    """KServe adds a routing side-car to the decode Pods; the transport stays in the line, and the engine combines both."""
    team.apply_pool(looks.NAME, pool(injection={"conflictPolicy": "Multi"}))
    own = {"containers": [{"name": MAIN, "args": ["--kv-transfer-config", NIXL]}]}
    team.apply(service(replicas=1, template=own, prefill={"replicas": 1, "template": own}))
    found = pods(team)
    roles = {looks.label(pod, "llm-d.ai/role") for pod in found}
    assert roles == {"prefill", "decode"}
    for pod in found:
        looks.assert_carries_the_cache(team, pod, MAIN, looks.config_hash(team))
        main = looks.container(pod, MAIN)
        assert main["args"] == ["--kv-transfer-config", NIXL]
        assert {"name": "KVPOOL_CONFLICT_POLICY", "value": "Multi"} in main["env"]


def test_three_edits_of_the_pool_do_not_reach_the_service(team: Kubectl) -> None:
    team.apply(service())
    pods(team)

    def state() -> list[tuple[Any, Any]]:
        bodies = [team.must_get("llminferenceservice", NAME), *team.list("deployments,replicasets", *PODS)]
        return [(one["metadata"].get("generation"), one["spec"]) for one in bodies]

    before, running = state(), {one["metadata"]["uid"] for one in pods(team)}
    for seconds in (60, 61, 62):
        looks.edit_pool(team, {"connector": {"ttlSeconds": seconds}})
    assert state() == before
    assert {one["metadata"]["uid"] for one in pods(team)} == running
