"""Pods that are left as they are: the reason names the fix."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from kvpool_operator.injection.patch import diff
from kvpool_operator.injection.pod import inject

from .injected import changed, reason
from .patches import applied
from .pods import SIDECAR, TRANSFER, container, facts, pod, serve

SCRIPT = ["sh", "-c", "vllm serve m $VLLM_ADDITIONAL_ARGS"]
UNREADABLE = serve("--kv-transfer-config", "{not json")
REASONS: dict[str, tuple[dict[str, Any], str]] = {
    "NoVLLM": (pod(container(command=["nginx"])), "kvpool.dev/container"),
    "NoVLLM, image": (pod(container(image="nginx:1", args=["x"])), "vllm serve"),
    "NoVLLM, name": (pod(serve(), annotations={"kvpool.dev/container": "x"}), "containers are main"),
    "SeveralVLLM": (pod(serve(), {**serve(), "name": "second"}), "main, second"),
    "ShellCommand": (pod(container(command=["sh", "-c", "vllm serve m --port 1"])), "VLLM_ADDITIONAL_ARGS"),
    "ShellCommand, reference": (
        pod(
            container(
                command=SCRIPT,
                env=[{"name": "VLLM_ADDITIONAL_ARGS", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}],
            )
        ),
        "set its value",
    ),
    "ShellCommand, ConfigMap": (
        pod(container(command=SCRIPT, envFrom=[{"configMapRef": {"name": "flags"}}])),
        "may come from ConfigMap flags in envFrom",
    ),
    "ShellCommand, Secret": (
        pod(
            container(
                command=SCRIPT,
                envFrom=[
                    {"prefix": "OTHER_", "configMapRef": {"name": "flags"}},
                    {"prefix": "VLLM_", "secretRef": {"name": "hidden"}},
                ],
            )
        ),
        "may come from Secret hidden in envFrom",
    ),
    "NoArguments": (
        pod(container(image="vllm/vllm-openai:v1")),
        "args of ours would replace",
    ),
    "NotVLLMBackend": (
        pod(container(name="kserve-container", image="kserve/huggingfaceserver:v1", args=["--backend=huggingface"])),
        "--backend",
    ),
    "UnreadableConnector": (pod(UNREADABLE), "JSON object"),
    "HashAlgorithm": (pod(serve("--prefix_caching_hash_algo", "sha256")), "sha256_cbor"),
    "PrefixCachingOff": (pod(serve("--no-enable-prefix-caching")), "--no-enable-prefix-caching"),
    "ExpandableSegments": (
        pod(
            serve(env=[{"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:True,max_split_size_mb:128"}])
        ),
        "add --enable-cumem-allocator",
    ),
    "OwnConfiguration": (pod(serve(env=[{"name": "KVPOOL_CONFIG_FILE", "value": "/x"}])), "KVPOOL_CONFIG_FILE"),
    "NameTaken": (pod(serve(volumeMounts=[{"name": "x", "mountPath": "/etc/kvpool/"}])), "/etc/kvpool"),
    "ConnectorPresent": (pod(serve("--kv-offloading-size", "4")), "--kv-offloading-size"),
    "ConnectorPresent, in a script": (
        pod(container(command=["sh", "-c", f"vllm serve m {TRANSFER[0]} '{TRANSFER[1]}' $VLLM_ADDITIONAL_ARGS"])),
        "can't be changed from outside",
    ),
}


@pytest.mark.parametrize("case", REASONS)
def test_a_reason_names_the_fix(case: str) -> None:
    body, fix = REASONS[case]
    text = reason(body)
    assert text.startswith(case.partition(",")[0] + ": ")
    assert fix in text


@pytest.mark.parametrize(
    "container",
    [
        serve(
            "--enable-cumem-allocator", env=[{"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:True"}]
        ),
        serve(env=[{"name": "PYTORCH_CUDA_ALLOC_CONF", "value": "expandable_segments:False"}]),
        serve(env=[{"name": "PYTORCH_ALLOC_CONF", "value": "expandable_segments:True"}]),
        serve(env=[{"name": "PYTORCH_CUDA_ALLOC_CONF", "valueFrom": {"configMapKeyRef": {"name": "a", "key": "b"}}}]),
    ],
    ids=["cumem", "off", "new name", "elsewhere"],
)
def test_allocator_settings_that_are_injected(container: dict[str, Any]) -> None:
    """vLLM takes the first three; the last one cannot be seen here."""
    assert "kvpool.dev/skip-reason" not in changed(pod(container))["metadata"]["annotations"]


def test_a_volume_of_ours_that_is_somebody_elses() -> None:
    body = pod(serve())
    body["spec"]["volumes"] = [{"name": "kvpool-config", "emptyDir": {}}]
    assert reason(body).startswith("NameTaken: the Pod has a volume kvpool-config of its own")


def test_a_reason_goes_when_the_pod_is_injected_after_all() -> None:
    annotations = {"kvpool.dev/pool": "demo", "kvpool.dev/skip-reason": "PoolMissing: x"}
    assert "kvpool.dev/skip-reason" not in changed(pod(serve(), annotations=annotations))["metadata"]["annotations"]


def test_the_label_is_one_whatever_the_pool_is_called() -> None:
    for name in ("-a", "a/b", "x" * 64, "A b", ""):
        labels = changed(pod(serve()), key=("team", name))["metadata"]["labels"]
        assert re.fullmatch("[0-9a-f]{40}", labels["kvpool.dev/consumer"])


def test_a_pod_that_is_left_as_it_is_enters_no_network_policy() -> None:
    """Its label is there, so that the watch sees it. It is no pool's, since names have no capital."""
    label = skipped_label(pod(container(command=["nginx"])))
    assert label == "No-Pool"
    assert label != label.lower()
    carried = pod(container(command=["nginx"]), labels={"kvpool.dev/consumer": "team.demo"})
    assert skipped_label(carried) == "No-Pool"


def skipped_label(body: dict[str, Any]) -> str:
    found = inject(body, facts()).body["metadata"]
    assert "kvpool.dev/skip-reason" in found["annotations"]
    return str(found["labels"]["kvpool.dev/consumer"])


def test_a_pod_of_900_kb() -> None:
    body = pod(serve(env=[{"name": f"V{number}", "value": "x" * 1000} for number in range(900)]), SIDECAR)
    assert len(json.dumps(body)) > 900_000
    tries = []
    for _ in range(5):  # on a core, and the best: how busy the machine is doesn't count
        began = time.thread_time()
        after = changed(body)
        patch = diff(body, after)
        tries.append(time.thread_time() - began)
    assert len(json.dumps(patch)) < 5000
    assert applied(body, patch) == after
    assert min(tries) < 0.05, tries
