"""Kubernetes, CoreDNS and the pause program, built once from Go modules and kept in the cache.

The modules are `../kube`, `../coredns` and `../pause`; their go.sum files pin every dependency.  Kubernetes is
one binary that acts as the component it is called as: one link step, and its pages are shared by five processes.
From nothing this takes 8 to 15 minutes on two cores; the Go build cache makes a second build a link step.
"""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from e2e.cluster.command import run
from e2e.cluster.local import cache, golang
from e2e.cluster.progress import ClusterError, Progress

MODULES = Path(__file__).resolve().parents[1]
PROGRAMS = ("pause", "coredns", "kube")
COMPONENTS = (
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "kubectl",
)
# Debug data is dropped by -s -w; -dwarf=false does not even make it, which keeps the build cache small.
FLAGS = ("-trimpath", "-tags", "grpcnotrace", "-gcflags", "all=-dwarf=false")


def kubernetes_version() -> str:
    """The version that kube/go.mod pins, as in 1.35.4."""
    found = re.search(r"k8s\.io/kubernetes v(\S+)", (MODULES / "kube" / "go.mod").read_text())
    if not found:
        raise ClusterError(f"{MODULES / 'kube' / 'go.mod'} does not require k8s.io/kubernetes")
    return found[1]


def linker_flags(version: str) -> str:
    """`-ldflags`: a stripped binary whose /version answers the Kubernetes version."""
    major, minor = version.split(".")[:2]
    words = ["-s", "-w"]
    for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version"):
        values = {
            "gitVersion": f"v{version}",
            "gitMajor": major,
            "gitMinor": minor,
            "gitTreeState": "clean",
            "gitCommit": "0" * 40,
            "buildDate": "2026-01-01T00:00:00Z",  # fixed, so that the same inputs give the same binary
        }
        words += [f"-X {package}.{key}={value}" for key, value in values.items()]
    return " ".join(words)


def inputs() -> list[str | bytes | Path]:
    """All that decides what the binaries are, but for the Go version (a cached build is used without Go)."""
    files = [MODULES / program / name for program in PROGRAMS for name in ("go.mod", "go.sum", "main.go")]
    return [platform.machine(), *FLAGS, linker_flags(kubernetes_version()), *(f for f in files if f.exists())]


def binaries(cache_folder: Path, progress: Progress) -> Path:
    """The folder with all programs; builds them when the cache has none for these inputs."""

    def make(place: Path) -> None:
        go = golang.find_or_install(cache_folder, progress)
        for program in PROGRAMS:
            with progress.during(f"building {program} from Go modules"):
                _build(go, MODULES / program, place / program)
        for component in COMPONENTS:
            (place / component).symlink_to("kube")

    return cache.folder(cache_folder, "bin", inputs(), make, progress)


def _build(go: Path, module: Path, output: Path) -> None:
    build(go, module, output, linker_flags(kubernetes_version()))


def build(go: Path, module: Path, output: Path, linker: str, package: str = ".") -> None:
    """A static program from a package of the module in this folder, exactly as its go.mod and go.sum say.

    Args:
        linker: for `-ldflags`.
        package: the path of the main package below the module.
    """
    flags = [*FLAGS, "-ldflags", linker, "-o", str(output)]
    run(["nice", "-n", "5", go, "build", *flags, package], cwd=module, env=environment(go))


def environment(go: Path) -> dict[str, str]:
    """Variables under which a user's own settings of Go change nothing."""
    return {
        "CGO_ENABLED": "0",
        "GOFLAGS": "",  # a user's -mod=mod would change go.sum
        "GOTOOLCHAIN": "local",  # never fetch another Go
        "GOWORK": "off",
        "PATH": f"{go.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    }
