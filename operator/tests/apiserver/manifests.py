"""Manifests as people write them, the Pods that the kinds' controllers make of them, and what becomes of each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kvpool_connector.vllm.choice import Conflict, Given, Policy, choose

FOLDER = Path(__file__).with_name("manifests")
Json = dict[str, Any]
_SCRIPT = 'eval "vllm serve /mnt/models --port 8000 ${VLLM_ADDITIONAL_ARGS} $@"'
"""What KServe's template for an LLMInferenceService comes to."""
NOTHING = Given()
LMCACHE, NIXL, OFFLOADING, OTHER = (
    Given({"kv_connector": name})
    for name in ("LMCacheConnectorV1", "NixlConnector", "OffloadingConnector", "AIBrixOffloadingConnectorV1Type3")
)


@dataclass(frozen=True)
class Case:
    """What becomes of a manifest.

    Attributes:
        container: the one that gets the environment, in every Pod.
        given: what vLLM's parsed arguments say; a text where it is decided elsewhere.
        warning: a part of what the owner is told; empty: nothing.
    """

    container: str
    given: Given | str = NOTHING
    warning: str = ""


_SEED = "is replaced by the pool's"
_HASH = Given({"kv_connector": "NixlConnector"}, "xxhash_cbor")
_REFUSED = "disabled: vLLM refuses it with a connector, and starts without"
CASES = {
    "all-in-command": Case("vllm", LMCACHE),
    "another-vendors-connector": Case("vllm-openai", OTHER),
    "bash-installs-first": Case("vllm", Given({"kv_connector": "MooncakeStoreConnector"}), _SEED),
    "claimed-device": Case("model"),
    "config-file": Case("vllm", _HASH),
    "custom-predictor-script": Case("kserve-container"),
    "dotted-flags": Case("decode", _HASH),
    "eight-gpus-local-ssd": Case("engine", LMCACHE),
    "entry-point-of-the-image": Case("app"),
    "eval-of-a-variable": Case("main", OFFLOADING),
    "expandable-segments": Case("vllm", _REFUSED),
    "huggingface-server": Case("kserve-container", LMCACHE, _SEED),
    "leader-worker-set": Case("vllm-leader vllm-worker"),
    "limits-of-the-namespace": Case("vllm"),
    "llm-service-additional-args": Case("main", LMCACHE, _SEED),
    "llm-service-offloading": Case("main", OFFLOADING),
    "llm-service-precise-routing": Case("main", Given(hash_algorithm="sha256_cbor"), _SEED),
    "native-tiers-as-root": Case("vllm", OFFLOADING),
    "offline-job": Case("batch"),
    "own-server": Case("api", NOTHING, "has a livenessProbe without a startupProbe"),
    "plug-ins-listed": Case("vllm", "the plug-in is not loaded", "add KVPoolConnector to it"),
    "python-path-from-a-key": Case("vllm"),
    "ray-application-of-ones-own": Case("head worker"),
    "ray-prefill-decode": Case("ray-head", NIXL),
    "ray-runtime-env": Case("ray-head ray-worker", LMCACHE),
    "seed-in-the-manifest": Case("vllm", NOTHING, _SEED),
    "settings-by-env-from": Case("main"),
    "side-car-first": Case("server"),
    "speech-model": Case("vllm", _REFUSED),
    "stock-image": Case("vllm"),
}


def outcome(given: Given | str) -> str:
    """Return what the engine makes of kvpool under each policy, as the table in docs/injection.md says it."""
    if isinstance(given, str):
        return given
    found: dict[str, list[str]] = {}
    for policy in Policy:
        try:
            state = choose(given, policy).state.value
        except Conflict:
            state = "no start"
        found.setdefault(state, []).append(policy.value)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{', '.join(policies)}: {state}" for state, policies in found.items())


def bodies(name: str) -> list[Json]:
    return [body for body in yaml.safe_load_all((FOLDER / f"{name}.yaml").read_text()) if body]


def template_of(body: Json) -> Json | None:
    """Return the Pod template of a kind whose controller runs beside the API server, or None for other kinds."""
    found: Json | None = body["spec"].get("template") if body["kind"] in ("Deployment", "StatefulSet", "Job") else None
    return found


def pods(body: Json) -> Iterator[Json]:
    """Yield Pods as the controllers of other kinds make them."""
    spec = body.get("spec", {})
    name = body["metadata"]["name"]
    own = body["metadata"].get("annotations", {})
    match body["kind"]:
        case "Pod":
            yield body
        case "LeaderWorkerSet":
            for part in ("leaderTemplate", "workerTemplate"):
                template = spec["leaderWorkerTemplate"][part]
                yield _pod(f"{name}-{part[:6]}", template["spec"], **template["metadata"])
        case "InferenceService":
            labels = {"serving.kserve.io/inferenceservice": name, "component": "predictor"}
            predictor = spec["predictor"]
            containers = predictor.get("containers") or [_runtime(predictor["model"])]
            agent = {"name": "agent", "image": "kserve/agent:v0.17.0"}
            yield _pod(f"{name}-predictor", {"containers": [*containers, agent]}, labels=labels, annotations=own)
        case "LLMInferenceService":
            labels = {"app.kubernetes.io/component": "llminferenceservice-workload", "app.kubernetes.io/name": name}
            (main,) = spec["template"]["containers"]
            started = {
                "image": "ghcr.io/example/llm-d-cuda:v0.8.0",
                "command": ["/bin/bash", "-c", _SCRIPT, "--"],
                **main,
            }
            yield _pod(f"{name}-kserve", {"containers": [started]}, labels=labels)
        case "RayService":
            groups = {"head": spec["rayClusterConfig"]["headGroupSpec"]}
            groups |= {group["groupName"]: group for group in spec["rayClusterConfig"].get("workerGroupSpecs", ())}
            for group, content in groups.items():
                labels = {"ray.io/cluster": name, "ray.io/node-type": "head" if group == "head" else "worker"}
                first, *others = content["template"]["spec"]["containers"]
                started = {"command": ["/bin/bash", "-c", "--"], "args": ["ulimit -n 65536; ray start"], **first}
                yield _pod(f"{name}-{group}", {"containers": [started, *others]}, labels=labels)


def ray_cluster(service: Json) -> Json:
    """Return the cluster that KubeRay makes of a RayService: it copies the annotations."""
    head = {"name": service["metadata"]["name"], "annotations": service["metadata"].get("annotations", {})}
    return {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": head, "spec": {}}


def _runtime(model: Json) -> Json:
    """Return the container of KServe's runtime for Hugging Face."""
    kept: Json = {key: model[key] for key in ("args", "env", "resources") if key in model}
    return {"name": "kserve-container", "image": "kserve/huggingfaceserver:v0.17.0-gpu", **kept}


def _pod(name: str, spec: Json, **metadata: Any) -> Json:
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name.lower(), **metadata}, "spec": spec}
