"""KubeRay's operator: RayServices become RayClusters, RayClusters become Pods."""

from __future__ import annotations

from pathlib import Path

from e2e.cluster.local.published import Published

PROGRAM = Published(
    name="kuberay-operator",
    module="github.com/ray-project/kuberay/ray-operator",
    version="v1.6.0",
    checksum="h1:1hs7Di2U/vm09ot7MIU8jUqEo7gHDc4gkbv1eFvqCsQ=",
    package=".",
    files=("config/crd/bases", "config/samples/ray-service.llm-serve.yaml"),
)


def crds(folder: Path) -> list[Path]:
    """Files with its CRDs."""
    return sorted((folder / "config/crd/bases").glob("*.yaml"))


def sample(folder: Path) -> Path:
    """KubeRay's own example of a RayService that serves a language model."""
    return folder / "config/samples/ray-service.llm-serve.yaml"


def command(folder: Path, health_port: int) -> list[str]:
    """Loopback only; no metrics, no leader election."""
    return [
        str(folder / PROGRAM.name),
        "--metrics-addr=0",
        f"--health-probe-bind-address=127.0.0.1:{health_port}",
        "--enable-leader-election=false",
    ]


def environment(proxy: str) -> dict[str, str]:
    """Its variables.

    Args:
        proxy: url of an HTTP proxy that answers for Ray's dashboards: without a node, a head's Service leads nowhere.
            Go's HTTP client asks it for everything but loopback, where the API server is.
    """
    return {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}
