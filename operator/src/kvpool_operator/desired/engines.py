"""vLLM: one workload and one Service for each entry of spec.engines.

The workload is a Deployment; or a StatefulSet where a disk tier outlives the Pods, since a Pod finds its own files again by its
name only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from kvpool_operator.api import ConnectorType, Engine
from kvpool_operator.desired import (
    connector_config,
    connector_files,
    connectors,
    disk,
    names,
    payload,
    seed,
    sizing,
)
from kvpool_operator.desired.podpatch import merge, merge_list, merge_templates
from kvpool_operator.desired.pool import Manifest, Pool
from kvpool_operator.desired.security import container_context, pod_basics, pod_context
from kvpool_operator.desired.stores import mooncake, remotes

COMPONENT = "engine"
COMMAND = ["python3", "-m", "vllm.entrypoints.openai.api_server"]
GPU_RESOURCE = "nvidia.com/gpu"
DRAIN_SECONDS = 120
"""How long vLLM may go on with the streams that run when it is told to end. A user's own
``--shutdown-timeout`` comes later and wins; then ``terminationGracePeriodSeconds`` of the Pod
template has to fit."""
_LEAVE_SECONDS = 5
"""How long a Pod that ends is still reached by clients that do not know it yet."""
_TEARDOWN_SECONDS = 25
"""What vLLM's processes need after the last stream."""
_START_SECONDS = 1800
"""Loading weights over a slow network and compiling kernels, before Kubernetes gives up on a Pod."""


def build_service(pool: Pool, engine: Engine) -> Manifest:
    labels = names.labels(pool, COMPONENT, engine.name)
    return names.child(pool, "v1", "Service", names.engine(pool, engine), labels) | {
        "spec": {
            "selector": names.selector(pool, COMPONENT, engine.name),
            "ports": [{"name": "http", "port": engine.port, "targetPort": "http", "protocol": "TCP"}],
        }
    }


def kind(pool: Pool) -> str:
    """Kind of every engine's workload."""
    return "StatefulSet" if pool.spec.tiers.disk and pool.spec.tiers.disk.claim else "Deployment"


def build_workload(pool: Pool, engine: Engine) -> Manifest:
    return (build_stateful_set if kind(pool) == "StatefulSet" else build_deployment)(pool, engine)


def build_deployment(pool: Pool, engine: Engine) -> Manifest:
    further = {
        "strategy": _strategy(engine),
        "progressDeadlineSeconds": _START_SECONDS + 300,
    }
    return _workload(pool, engine, "Deployment", further)


def build_stateful_set(pool: Pool, engine: Engine) -> Manifest:
    """Pods with a volume each. They start together, and roll one after the other: a volume can't be in two Pods."""
    further = {
        "serviceName": names.engine(pool, engine),
        "podManagementPolicy": "Parallel",
        "updateStrategy": {"type": "RollingUpdate"},
        **disk.claim_templates(pool),
    }
    return _workload(pool, engine, "StatefulSet", further)


def _workload(pool: Pool, engine: Engine, workload_kind: str, further: Manifest) -> Manifest:
    labels = names.labels(pool, COMPONENT, engine.name)
    template = {
        "metadata": {
            "labels": labels,
            "annotations": {
                names.CONFIG_HASH_ANNOTATION: connector_files.config_hash(pool),
                **connector_files.as_annotations(pool),
            },
        },
        "spec": _pod_spec(pool, engine),
    }
    return names.child(pool, "apps/v1", workload_kind, names.engine(pool, engine), labels) | {
        "spec": {
            "replicas": engine.replicas,
            "revisionHistoryLimit": 3,
            "selector": {"matchLabels": names.selector(pool, COMPONENT, engine.name)},
            "template": _patched(pool, engine, template),
            **further,
        }
    }


def _patched(pool: Pool, engine: Engine, template: Manifest) -> Manifest:
    """Return the Pod template with the chart's defaults and then the pool's own template on top."""
    return merge_templates(
        template,
        pool.settings.engine_defaults.pod_template,
        engine.pod_template,
        selector=names.selector(pool, COMPONENT, engine.name),
    )


def built_resources(pool: Pool, engine: Engine) -> Manifest:
    """Return the resources of the engine's container as its Pods get them, with all Pod templates
    merged in.

    It needs no configuration of the connector, so it also works where there is none. Where a Pod
    template removes the container or its resources, they are empty.
    """
    container = {"name": names.ENGINE_CONTAINER, "resources": _resources(pool, engine)}
    return resources_in(_patched(pool, engine, {"spec": {"containers": [container]}}))


def resources_in(template: Mapping[str, Any] | None) -> Manifest:
    """Return the resources of the engine's container in a Pod template, which a user may have
    written: empty where it says nothing of them."""
    spec = (template or {}).get("spec")
    containers = spec.get("containers") if isinstance(spec, Mapping) else None
    for container in containers if isinstance(containers, list | tuple) else ():
        if isinstance(container, Mapping) and container.get("name") == names.ENGINE_CONTAINER:
            resources = container.get("resources")
            return dict(resources) if isinstance(resources, Mapping) else {}
    return {}


def _strategy(engine: Engine) -> Manifest:
    """One Pod after the other.

    Replicas give up a Pod before they start its successor: a spare GPU, or memory for one more model, is rarely there. A
    single replica on CPU starts its successor first, so that somebody always answers.
    """
    surge = engine.replicas == 1 and engine.gpus == 0
    return {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": int(surge), "maxUnavailable": int(not surge)}}


def _pod_spec(pool: Pool, engine: Engine) -> Manifest:
    brought = _brings_payload(pool, engine)
    init = [payload.init_container(pool.settings.images.payload, pod_context())]
    return pod_basics() | {
        **({"initContainers": init} if brought else {}),
        "terminationGracePeriodSeconds": _LEAVE_SECONDS + DRAIN_SECONDS + _TEARDOWN_SECONDS,
        "affinity": {"podAntiAffinity": _spread(pool, engine)},
        "containers": [_container(pool, engine)],
        "volumes": [
            *connector_files.volumes(pool),
            {"name": "tmp", "emptyDir": {}},
            # Workers of one engine talk over shared memory; the container's memory limit bounds it.
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            *_password_volumes(pool),
            *disk.volumes(pool),
            *([payload.VOLUME] if brought else []),
        ],
    }


def _brings_payload(pool: Pool, engine: Engine) -> bool:
    """Return whether the connector comes with the Pod: an image of the user's may have none, and
    vLLM would start without the cache."""
    is_ours = pool.spec.connector.type is ConnectorType.KVPOOL
    return is_ours and payload.is_needed(_image(pool, engine), pool.settings.images.engine)


def _image(pool: Pool, engine: Engine) -> str:
    return engine.image or pool.settings.images.engine


def _spread(pool: Pool, engine: Engine) -> Manifest:
    term = {
        "topologyKey": "kubernetes.io/hostname",
        "labelSelector": {"matchLabels": names.selector(pool, COMPONENT, engine.name)},
    }
    return {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}


def _password_volumes(pool: Pool) -> list[Manifest]:
    return [
        {
            "name": source.volume,
            "secret": {
                "secretName": source.secret,
                "defaultMode": 0o440,
                "items": [{"key": source.key, "path": "password"}],
            },
        }
        for source in remotes.password_sources(pool)
    ]


def _container(pool: Pool, engine: Engine) -> Manifest:
    health = {"httpGet": {"path": "/health", "port": "http"}, "timeoutSeconds": 5}
    mounts: list[Manifest] = [
        *(
            {"name": volume["name"], "mountPath": connector_config.DIRECTORY, "readOnly": True}
            for volume in connector_files.volumes(pool)
        ),
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  (inside the container)
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        *(
            {"name": source.volume, "mountPath": source.directory, "readOnly": True}
            for source in remotes.password_sources(pool)
        ),
        *disk.mounts(pool),
        *([payload.MOUNT] if _brings_payload(pool, engine) else []),
    ]
    return {
        "name": names.ENGINE_CONTAINER,
        "image": _image(pool, engine),
        "command": COMMAND,
        "args": _arguments(pool, engine),
        "env": _environment(pool, engine),
        "ports": [{"name": "http", "containerPort": engine.port, "protocol": "TCP"}],
        "resources": _resources(pool, engine),
        "securityContext": mooncake.rdma_context() if remotes.rdma_resource(pool) else container_context(),
        "startupProbe": health | {"periodSeconds": 2, "failureThreshold": _START_SECONDS // 2},
        "readinessProbe": health | {"periodSeconds": 5, "failureThreshold": 3},
        "livenessProbe": health | {"periodSeconds": 15, "failureThreshold": 6, "timeoutSeconds": 10},
        # The Pod leaves the Service's endpoints first, then takes no more requests.
        "lifecycle": {"preStop": {"sleep": {"seconds": _LEAVE_SECONDS}}},
        "volumeMounts": mounts,
    }


def _model(pool: Pool) -> tuple[str, str, str | None]:
    """What vLLM loads, what clients call it, and the revision to download."""
    model = pool.spec.model
    if model is None:  # the CRD and the spec's own rules see to it
        raise AssertionError("an engine without a model")
    path = pool.settings.engine_defaults.model_paths.get(model.name, model.name)
    return path, model.served_name or model.name, None if path.startswith("/") else model.revision


def _arguments(pool: Pool, engine: Engine) -> list[str]:
    """kvpool's arguments, then the operator's defaults, then the pool's: vLLM takes the last of two."""
    path, served, revision = _model(pool)
    connector = connectors.engine_part(pool, engine)
    arguments = ["--model", path, "--served-model-name", served, "--port", str(engine.port)]
    if revision:
        arguments += ["--revision", revision]
    if engine.gpus > 1:
        arguments += ["--tensor-parallel-size", str(engine.gpus)]
    arguments += ["--shutdown-timeout", str(DRAIN_SECONDS)]
    if connector.transfer is not None:
        arguments += ["--prefix-caching-hash-algo", "sha256_cbor"]
        arguments += ["--kv-transfer-config", json.dumps(connector.transfer, separators=(",", ":"))]
    arguments += connector.arguments
    return [*arguments, *pool.settings.engine_defaults.args, *engine.args]


def _environment(pool: Pool, engine: Engine) -> list[Manifest]:
    environment: list[Manifest] = [
        *connectors.engine_part(pool, engine).environment,
        seed.environment(pool),
        {"name": "HOME", "value": "/tmp"},  # noqa: S108  (caches need a writable place)
        {"name": "VLLM_NO_USAGE_STATS", "value": "1"},
        {"name": "PYTHONDONTWRITEBYTECODE", "value": "1"},
        *disk.environment(pool),
    ]
    if _model(pool)[0].startswith("/"):
        environment.append({"name": "HF_HUB_OFFLINE", "value": "1"})
    if engine.gpus == 0:
        environment.append({"name": sizing.KV_SPACE_VARIABLE, "value": sizing.DEFAULT_KV_SPACE})
    if engine.hf_token_secret_ref is not None:
        token = engine.hf_token_secret_ref.model_dump()
        environment.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": token}})
    own = [variable.model_dump(by_alias=True, exclude_none=True) for variable in engine.env]
    together = merge_list(merge_list(environment, pool.settings.engine_defaults.env, "name"), own, "name")
    return payload.on_path({"env": together}) if _brings_payload(pool, engine) else together


def _resources(pool: Pool, engine: Engine) -> Manifest:
    """Requests are computed, so that the scheduler knows of the tiers. Limits are the user's: large weights are unknown here."""
    memory = sizing.quantity(sizing.needed(pool, engine).total)
    requests: Manifest = {"cpu": "250m" if engine.gpus == 0 else "1", "memory": memory}
    own = engine.resources.model_dump(exclude_none=True) if engine.resources else {}
    limits = own.get("limits", {})
    if engine.gpus:
        limits = {GPU_RESOURCE: engine.gpus, **limits}
    if (rdma := remotes.rdma_resource(pool)) is not None:
        limits = {rdma: 1, **limits}
    # A limit without a request is the request, as in Kubernetes itself; ours must not exceed it.
    computed = {name: value for name, value in requests.items() if name not in limits}
    merged = merge({"requests": computed}, own)
    return merge(merged, {"limits": limits}) if limits else merged
