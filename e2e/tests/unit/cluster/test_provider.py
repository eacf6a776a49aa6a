"""Which provider is taken, and what is said about it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.cluster.progress import ClusterError
from e2e.cluster.provider import Access, decide
from e2e.cluster.settings import read_settings

MakeProgram = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path) -> MakeProgram:
    """Makes a shell script in tmp_path/bin."""

    def make(name: str, text: str) -> None:
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    return make


def test_the_variable_decides(tmp_path: Path) -> None:
    for name in ("local", "kind", "current"):
        assert decide({"KVPOOL_CLUSTER": name, "PATH": str(tmp_path)}) == (name, "KVPOOL_CLUSTER says so")


def test_an_unknown_provider_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="'minikube': it must be local, kind or current"):
        decide({"KVPOOL_CLUSTER": "minikube", "PATH": str(tmp_path)})


def test_kind_is_taken_where_docker_runs(tmp_path: Path, program: MakeProgram) -> None:
    program("kind", "exit 0")
    program("docker", '[ "$1" = info ]')
    assert decide({"PATH": str(tmp_path / "bin")})[0] == "kind"


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({}, "kind is not installed"),
        ({"docker": "exit 0"}, "kind is not installed"),
        ({"kind": "exit 0"}, "docker is not"),
        ({"kind": "exit 0", "docker": "exit 1"}, "no Docker daemon answers"),
    ],
)
def test_local_is_taken_otherwise_and_says_why(
    tmp_path: Path, program: MakeProgram, programs: dict[str, str], reason: str
) -> None:
    for name, text in programs.items():
        program(name, text)
    chosen, why = decide({"PATH": str(tmp_path / "bin")})
    assert chosen == "local"
    assert reason in why


def test_environment_puts_kubectl_first_and_once(tmp_path: Path) -> None:
    access = Access(tmp_path / "kubeconfig", tmp_path / "bin" / "kubectl")
    once = access.environment({"PATH": "/usr/bin"})
    assert once == {"KUBECONFIG": str(tmp_path / "kubeconfig"), "PATH": f"{tmp_path}/bin{os.pathsep}/usr/bin"}
    assert access.environment(once) == once


def test_where_a_proxy_is_set_the_cluster_is_not_asked_through_it(tmp_path: Path) -> None:
    access = Access(tmp_path / "kubeconfig", tmp_path / "kubectl", host="10.244.0.1")
    proxied = access.environment({"HTTPS_PROXY": "http://proxy:1", "NO_PROXY": "example.org"})
    assert proxied["no_proxy"] == proxied["NO_PROXY"] == "example.org,10.244.0.1"
    assert "NO_PROXY" not in access.environment({})


def test_folders_follow_the_environment() -> None:
    settings = read_settings("one", {"KVPOOL_CACHE": "/srv/c"})
    assert settings.cache == Path("/srv/c")
    assert settings.root == Path("/srv/c/state/one")
    assert read_settings("one", {"KVPOOL_STATE": "/srv/s"}).root == Path("/srv/s/one")


def test_a_state_folder_too_long_for_sockets_is_refused() -> None:
    with pytest.raises(ClusterError, match="set KVPOOL_STATE to a shorter path"):
        read_settings("one", {"KVPOOL_STATE": "/" + "x" * 80})


@pytest.mark.parametrize("name", ["", "-a", "A", "a/b", "..", "x" * 33])
def test_a_name_that_cannot_be_a_folder_is_refused(name: str) -> None:
    with pytest.raises(ClusterError, match="cluster name"):
        read_settings(name, {})
