"""Pods of LLMInferenceServices, as KServe 0.17.0 makes them.

From ``config-llm-template.yaml`` and ``config-llm-worker-data-parallel.yaml`` in ``config/llmisvcconfig`` of its Go module, with
variables filled in, and labels as ``pkg/controller/v1alpha2/llmisvc`` sets them (``workload_single_node.go``,
``workload_multi_node.go``). Of the script's part that looks for RDMA devices only the frame is here.
"""

from __future__ import annotations

from typing import Any

_HEAD = """
if [ "$KSERVE_INFER_ROCE" = "true" ]; then
  echo "Trying to infer RoCE configs ... "
  # Loop through all mlx5 devices found in sysfs
  for hca_dir in /sys/class/infiniband/mlx5_*; do
      hca_name=$(basename "$hca_dir")
  done
fi

"""
LEADER_SCRIPT = (
    _HEAD
    + """START_RANK=0
eval "vllm serve \\
  /mnt/models \\
  --served-model-name "org/m" \\
  --port 8000 \\
  --api-server-count ${VLLM_API_SERVER_COUNT:-8} \\--enable-expert-parallel \\--tensor-parallel-size 1 \\
  --data-parallel-size 16 \\
  --data-parallel-size-local 8 \\
  --data-parallel-address $(LWS_LEADER_ADDRESS) \\
  --data-parallel-rpc-port 5555 \\
  --data-parallel-start-rank $START_RANK \\
  ${VLLM_ADDITIONAL_ARGS} \\
  $@ \\
  --trust-remote-code"
  # BackendTLSPolicy is not implemented yet so disable SSL for now
  # --enable-ssl-refresh \\
  # /var/run/kserve/tls/tls.key"
"""
)
WORKER_SCRIPT = LEADER_SCRIPT.replace("START_RANK=0", "START_RANK=$(( ${LWS_WORKER_INDEX:-0} * 8 ))").replace(
    '--trust-remote-code"', '--trust-remote-code \\\n  --headless"'
)


def _pod(component: str, container: dict[str, Any]) -> dict[str, Any]:
    labels = {
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/name": "llama",
        "app.kubernetes.io/part-of": "llminferenceservice",
    }
    main = {
        "name": "main",
        "image": "ghcr.io/llm-d/llm-d-cuda:v0.4.0",
        "ports": [{"containerPort": 8000, "protocol": "TCP"}],
        "env": [
            {"name": "HOME", "value": "/home"},
            {"name": "VLLM_LOGGING_LEVEL", "value": "INFO"},
            {"name": "HF_HUB_CACHE", "value": "/models"},
        ],
        "volumeMounts": [
            {"name": "home", "mountPath": "/home"},
            {"name": "dshm", "mountPath": "/dev/shm"},  # noqa: S108
            {"name": "model-cache", "mountPath": "/models"},
            {"name": "tls-certs", "mountPath": "/var/run/kserve/tls", "readOnly": True},
        ],
        **container,
    }
    volumes = [
        {"name": "home", "emptyDir": {}},
        {"name": "dshm", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
        {"name": "model-cache", "emptyDir": {}},
        {"name": "tls-certs", "secret": {"secretName": "llama-kserve-self-signed-certs"}},
    ]
    sidecar = {
        "name": "llm-d-routing-sidecar",
        "image": "ghcr.io/llm-d/llm-d-routing-sidecar:v0.4.0",
        "restartPolicy": "Always",
        "args": ["--port=8000", "--vllm-port=8001", "--connector=nixlv2", "--secure-proxy=false"],
    }
    metadata = {"name": "p", "namespace": "team", "labels": labels}
    spec = {"initContainers": [sidecar], "containers": [main], "volumes": volumes}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


COMMAND = ["vllm", "serve", "/mnt/models", "--served-model-name", "org/m", "--port", "8000"]
SINGLE = _pod("llminferenceservice-workload", {"command": COMMAND})
PREFILL = _pod("llminferenceservice-workload-prefill", {"command": COMMAND})


def _shell(script: str, *arguments: str) -> dict[str, Any]:
    return {"command": ["/bin/bash", "-c", script, "--"], "args": list(arguments)}


LEADER = _pod("llminferenceservice-workload-leader", _shell(LEADER_SCRIPT, "--max-model-len", "4096"))
WORKER = _pod("llminferenceservice-workload-worker", _shell(WORKER_SCRIPT, "--max-model-len", "4096"))
SCHEDULER = _pod("llminferenceservice-router-scheduler", {"image": "ghcr.io/llm-d/llm-d-inference-scheduler:v0.4.0"})
