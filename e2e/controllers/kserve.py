"""KServe's controller in standard mode: InferenceServices become Deployments. No Knative, no Istio, no ingress.

Its webhooks run too: defaults and checks of InferenceServices and runtimes, and its own changes to Pods.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster.local.published import Published

Manifest = dict[str, Any]
NAMESPACE = "kserve"
"""Where the controller looks for its configuration."""
PROGRAM = Published(
    name="kserve-manager",
    module="github.com/kserve/kserve",
    version="v0.17.0",
    checksum="h1:IaynaBFzVQz1Xyrw5n3ncqzd5Y7L1RkO+YWvVwwtMQE=",
    package="./cmd/manager",
    files=("config/crd/full", "config/webhook/manifests.yaml", "config/runtimes/kserve-huggingfaceserver.yaml"),
)
LLM_PROGRAM = Published(
    name="kserve-llmisvc",
    module=PROGRAM.module,
    version=PROGRAM.version,
    checksum=PROGRAM.checksum,
    package="./cmd/llmisvc",
    files=("config/crd/full/llmisvc", "config/llmisvcconfig"),
)
"""LLMInferenceServices have a controller of their own."""
RUNTIME_IMAGE = "docker.io/kserve/huggingfaceserver"


def crds(folder: Path) -> list[Path]:
    """Files with its CRDs, but for those of programs that do not run here (models on nodes, LLMInferenceService)."""
    place = folder / "config/crd/full"
    found = [*place.glob("*.yaml"), *(place / "clusterstoragecontainer").glob("*.yaml")]
    return sorted(file for file in found if file.name != "kustomization.yaml")


def configuration() -> Manifest:
    """The ConfigMap `inferenceservice-config`, with what the module's own says where it matters here."""
    sections: dict[str, Any] = {
        "deploy": {"defaultDeploymentMode": "Standard"},
        "ingress": {
            "enableGatewayApi": False,
            "ingressGateway": "knative-serving/knative-ingress-gateway",
            "localGateway": "knative-serving/knative-local-gateway",
            "ingressDomain": "example.com",
            "domainTemplate": "{{ .Name }}-{{ .Namespace }}.{{ .IngressDomain }}",
            "urlScheme": "http",
            "disableIstioVirtualHost": True,
            "disableIngressCreation": True,
        },
        "storageInitializer": {
            "image": f"kserve/storage-initializer:{PROGRAM.version}",
            **dict.fromkeys(("memoryRequest", "memoryLimit"), "100Mi"),
            **dict.fromkeys(("cpuRequest", "cpuLimit"), "100m"),
        },
        "credentials": {"storageSpecSecretName": "storage-config"},
        **{
            name: {
                "image": f"kserve/{name}:{PROGRAM.version}",
                **dict.fromkeys(("memoryRequest", "memoryLimit"), "100Mi"),
                **dict.fromkeys(("cpuRequest", "cpuLimit"), "100m"),
            }
            for name in ("logger", "batcher", "agent", "router")
        },
        "metricsAggregator": {"enableMetricAggregation": "false", "enablePrometheusScraping": "false"},
        "localModel": {"enabled": False},
        "security": {"autoMountServiceAccountToken": True},
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "inferenceservice-config", "namespace": NAMESPACE},
        "data": {name: json.dumps(section) for name, section in sections.items()},
    }


def runtime(folder: Path) -> Manifest:
    """The ClusterServingRuntime for Hugging Face models, with an image as the module's kustomization puts one in."""
    body: Manifest = yaml.safe_load((folder / "config/runtimes/kserve-huggingfaceserver.yaml").read_text())
    body["spec"]["containers"][0]["image"] = f"{RUNTIME_IMAGE}:{PROGRAM.version}"
    return body


def llm_manifests(folder: Path) -> tuple[list[Path], list[Manifest]]:
    """Files with the CRDs of LLMInferenceServices, and KServe's own templates for them."""
    crds = sorted((folder / "config/crd/full/llmisvc").glob("serving.kserve.io_*.yaml"))
    templates = sorted((folder / "config/llmisvcconfig").glob("config-llm-*template.yaml"))
    bodies: list[Manifest] = [yaml.safe_load(file.read_text()) for file in templates]
    for body in bodies:
        body["metadata"]["namespace"] = NAMESPACE
    return crds, bodies


def leader_worker_sets() -> Manifest:
    """A CRD that takes any content: the controller asks for LeaderWorkerSets even where no service has several nodes."""
    plural, kind = "leaderworkersets", "LeaderWorkerSet"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.leaderworkerset.x-k8s.io"},
        "spec": {
            "group": "leaderworkerset.x-k8s.io",
            "scope": "Namespaced",
            "names": {"kind": kind, "listKind": f"{kind}List", "plural": plural, "singular": kind.lower()},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        },
    }


def webhooks(folder: Path, url: str, authority: bytes) -> list[Manifest]:
    """Its webhook configurations, called by url in place of a Service.

    Args:
        authority: CA certificate (PEM) of the server's certificate.
    """
    bodies = list(yaml.safe_load_all((folder / "config/webhook/manifests.yaml").read_text()))
    for body in bodies:
        for webhook in body["webhooks"]:
            path = webhook["clientConfig"]["service"]["path"]
            webhook["clientConfig"] = {"url": f"{url}{path}", "caBundle": base64.b64encode(authority).decode()}
    return bodies


def command(folder: Path, health_port: int, webhook_port: int, program: Published = PROGRAM) -> list[str]:
    """No metrics, no leader election. Its webhook server has no flag for an address: it listens on all of them, by TLS."""
    return [
        str(folder / program.name),
        "--metrics-addr=0",
        f"--health-probe-addr=127.0.0.1:{health_port}",
        f"--webhook-port={webhook_port}",
    ]


def write_certificate(temporary: Path, certificate: bytes, key: bytes) -> None:
    """Put the server's certificate where controller-runtime looks for it, below the process's `TMPDIR`."""
    place = temporary / "k8s-webhook-server/serving-certs"
    place.mkdir(parents=True)
    (place / "tls.crt").write_bytes(certificate)
    (place / "tls.key").touch(mode=0o600)
    (place / "tls.key").write_bytes(key)
