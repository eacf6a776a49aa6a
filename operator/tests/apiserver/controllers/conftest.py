"""KServe's and KubeRay's controllers once, beside the cluster and the operator."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.local import published
from e2e.cluster.progress import Progress
from e2e.cluster.settings import read_settings
from e2e.controllers import kserve as kserve_parts
from e2e.controllers import kuberay as kuberay_parts
from kvpool_operator.webhook import certificates
from testkit.ports import free_port

from ..conftest import Operator
from ..kubectl import Kubectl, eventually
from .dashboard import Dashboards
from .process import Controller


def _build(program: published.Published) -> Path:
    return published.folder(program, read_settings().cache, Progress())


def _install(kubectl: Kubectl, crds: list[Path]) -> None:
    """CRDs, by server-side apply: they are too long for the annotation of the other kind."""
    names = [kubectl("apply", "--server-side", "--force-conflicts", "-o", "name", "-f", str(file)) for file in crds]
    wait = ["wait", "--for=condition=Established", "--timeout=10s", *(name.strip() for name in names)]
    # kubectl takes a CRD without any condition for an error, not for one to wait for.
    eventually(lambda: kubectl.run(*wait).returncode == 0, seconds=120, what="CRDs")


def _admins_kubeconfig(kubectl: Kubectl, work: Path) -> Path:
    path = work / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    return path


@pytest.fixture
def kubectl(kubectl: Kubectl) -> Kubectl:
    """Neither KServe's nor KubeRay's Pods conform to Pod Security "restricted" as they come."""
    kubectl("label", "namespace", kubectl.namespace, "pod-security.kubernetes.io/enforce=privileged", "--overwrite")
    return kubectl


@pytest.fixture(scope="session")
def kserve(
    environment: dict[str, str], operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controller]:
    """KServe's controller with its webhooks, in standard mode, and the runtime for Hugging Face models."""
    folder, work = _build(kserve_parts.PROGRAM), tmp_path_factory.mktemp("kserve")
    system = Kubectl(environment, kserve_parts.NAMESPACE)
    system.run("create", "namespace", kserve_parts.NAMESPACE)
    _install(system, kserve_parts.crds(folder))
    system.apply(kserve_parts.configuration())
    authority, certificate, key = _certificate()
    kserve_parts.write_certificate(work / "tmp", certificate, key)
    health, webhook = free_port(), free_port()
    process = Controller(
        work,
        kserve_parts.command(folder, health, webhook),
        health,
        {"KUBECONFIG": str(_admins_kubeconfig(system, work)), "TMPDIR": str(work / "tmp")},
    )
    process.start()
    webhooks = kserve_parts.webhooks(folder, f"https://127.0.0.1:{webhook}", authority)
    for body in webhooks:
        system.apply(body)

    def runtime_is_there() -> bool:
        """Its webhook must answer first, whose configuration takes the API server a moment to see."""
        return system.run("apply", "-f", "-", text=json.dumps(kserve_parts.runtime(folder))).returncode == 0

    eventually(runtime_is_there, what="a ClusterServingRuntime")
    yield process
    # Without their server the configurations would refuse every InferenceService of a cluster that goes on.
    for body in webhooks:
        system("delete", body["kind"].lower(), body["metadata"]["name"])
    process.end()


@pytest.fixture(scope="session")
def kserve_llm(
    environment: dict[str, str], operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controller]:
    """KServe's controller of LLMInferenceServices with its templates. Nobody reconciles LeaderWorkerSets; no Gateway API."""
    folder, work = _build(kserve_parts.LLM_PROGRAM), tmp_path_factory.mktemp("kserve-llm")
    system = Kubectl(environment, kserve_parts.NAMESPACE)
    system.run("create", "namespace", kserve_parts.NAMESPACE)
    crds, templates = kserve_parts.llm_manifests(folder)
    sets = work / "leaderworkersets.json"
    sets.write_text(json.dumps(kserve_parts.leader_worker_sets()))
    _install(system, [*crds, sets])
    for body in (kserve_parts.configuration(), *templates):
        system.apply(body)
    _, certificate, key = _certificate()
    kserve_parts.write_certificate(work / "tmp", certificate, key)
    health = free_port()
    process = Controller(
        work,
        kserve_parts.command(folder, health, free_port(), kserve_parts.LLM_PROGRAM),
        health,
        {"KUBECONFIG": str(_admins_kubeconfig(system, work)), "TMPDIR": str(work / "tmp")},
    )
    process.start()
    yield process
    process.end()


def _certificate() -> tuple[bytes, bytes, bytes]:
    """CA, certificate and key for loopback."""
    day = datetime.timedelta(days=1)
    terms = certificates.Terms(names=("127.0.0.1",), ca=day, certificate=day, overlap=datetime.timedelta())
    bundle = certificates.advance(None, terms, datetime.datetime.now(datetime.UTC))
    return bundle.announced, bundle.certificate, bundle.key


@pytest.fixture(scope="session")
def dashboards() -> Iterator[Dashboards]:
    with Dashboards() as running:
        yield running


@pytest.fixture(scope="session")
def kuberay(
    environment: dict[str, str], operator: Operator, dashboards: Dashboards, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Controller]:
    """KubeRay's operator."""
    folder, work = _build(kuberay_parts.PROGRAM), tmp_path_factory.mktemp("kuberay")
    system = Kubectl(environment, "default")
    _install(system, kuberay_parts.crds(folder))
    health = free_port()
    process = Controller(
        work,
        kuberay_parts.command(folder, health),
        health,
        {"KUBECONFIG": str(_admins_kubeconfig(system, work)), **kuberay_parts.environment(dashboards.url)},
    )
    process.start()
    yield process
    process.end()


def pool(**spec: Any) -> dict[str, Any]:
    """A pool's spec: a managed store, and no engines of its own."""
    base: dict[str, Any] = {
        "model": {"name": "meta-llama/Llama-3.2-1B-Instruct"},
        "backend": {"type": "Redis", "memory": "2Gi"},
        "tiers": {"cpu": {"size": "1Gi"}},
    }
    return base | spec
