"""Pods of the kinds that run vLLM, as their makers write them."""

from __future__ import annotations

from typing import Any

from kvpool_operator.api import ConflictPolicy, Delivery
from kvpool_operator.injection.facts import Facts


def facts(**changes: Any) -> Facts:
    values: dict[str, Any] = {
        "key": ("team", "demo"),
        "config_map": "demo-connector",
        "config_hash": "abc",
        "seed_secret": "demo-hash-seed",
        "password": ("demo-store-auth", "password"),
        "cpu_tier": 4 << 30,
        "conflict_policy": ConflictPolicy.SKIP,
        "delivery": Delivery.AUTO,
        "payload_image": "payload:1",
        "engine_image": "kvpool/serving:0.1.0",
    }
    return Facts(**{**values, **changes})


def pod(*containers: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    head = {"name": "p", "namespace": "team", "annotations": {"kvpool.dev/pool": "demo"}, **metadata}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": head, "spec": {"containers": list(containers)}}


def container(**fields: Any) -> dict[str, Any]:
    return {"name": "main", "image": "registry.example/app:1", **fields}


def serve(*further: str, **fields: Any) -> dict[str, Any]:
    return container(command=["vllm", "serve", "m"], args=["--port", "8000", *further], **fields)


SIDECAR = {"name": "proxy", "image": "envoyproxy/envoy:v1"}

KINDS: dict[str, dict[str, Any]] = {
    "vllm serve": pod(serve()),
    "vllm serve in args": pod(container(command=["vllm"], args=["serve", "m"])),
    "command alone": pod(container(command=["vllm", "serve", "m"])),
    "behind tini": pod(container(command=["/usr/bin/tini", "--", "/usr/local/bin/vllm", "serve"], args=["m"])),
    "module": pod(
        container(command=["python3", "-m", "vllm.entrypoints.openai.api_server"], args=["--model", "m"]),
    ),
    "image's entry point": pod(container(image="vllm/vllm-openai:v0.32.0", args=["--model", "m"])),
    "with a side-car first": pod(SIDECAR, serve()),
    "KServe's Hugging Face runtime": pod(
        container(
            name="kserve-container",
            image="kserve/huggingfaceserver:v0.17.0-gpu",
            args=["--model_name=m", "--model_id=org/m"],
            env=[{"name": "HF_HOME", "value": "/data"}],
            volumeMounts=[{"name": "devshm", "mountPath": "/dev/shm"}],  # noqa: S108
        ),
        {"name": "agent", "image": "kserve/agent:v0.17.0"},
    ),
    "KServe's Hugging Face runtime with its command": pod(
        container(name="kserve-container", command=["python", "-m", "huggingfaceserver"], args=["--model_id=org/m"]),
    ),
    "KServe's vLLM runtime": pod(
        container(
            name="kserve-container",
            image="vllm/vllm-openai:v0.32.0",
            command=["python3", "-m", "vllm.entrypoints.openai.api_server"],
            args=["--model", "/mnt/models", "--port", "8080"],
        ),
    ),
    "an image of one's own": pod(container(image="registry.example/team/chat:1")),
    "a shell that installs first": pod(
        container(command=["bash", "-c"], args=["pip install x && exec vllm serve m --config /etc/vllm.yaml"]),
        SIDECAR,
    ),
    "by its GPU, with a side-car": pod(
        {"name": "log", "image": "fluent-bit:4"},
        container(command=["/start"], resources={"limits": {"nvidia.com/gpu": "1"}}),
    ),
    "by its GPU, where a side-car speaks of vLLM": pod(
        {**SIDECAR, "args": ["--upstream=vllm:8000"]},
        serve(resources={"limits": {"amd.com/gpu": "1"}}),
    ),
    "named by annotation": pod(
        SIDECAR,
        container(name="own", command=["/start"], args=["m"]),
        annotations={"kvpool.dev/pool": "demo", "kvpool.dev/container": "own"},
    ),
    "shell": pod(
        container(
            command=["/bin/bash", "-c"],
            args=['eval "exec vllm serve /mnt/models ${VLLM_ADDITIONAL_ARGS} $@"', "--", "--x"],
        ),
    ),
    "Ray head": pod(
        container(name="ray-head", command=["/bin/bash", "-c", "--"], args=["ulimit -n 65536; ray start --head"]),
        labels={"ray.io/cluster": "c", "ray.io/node-type": "head"},
    ),
    "Ray worker": pod(
        container(
            name="machine-learning",
            args=["ray start"],
            resources={"limits": {"memory": "8Gi", "nvidia.com/gpu": "1"}},
        ),
        SIDECAR,
        labels={"ray.io/cluster": "c", "ray.io/node-type": "worker"},
    ),
}
