"""The commands that the kind provider issues, against stand-ins for kind, docker and kubectl that note them."""

from pathlib import Path

import pytest

from e2e.cluster.kind import KindProvider
from e2e.cluster.progress import ClusterError, Progress
from e2e.cluster.provider import ImageSources
from e2e.cluster.settings import REPOSITORY, Settings

KIND = """\
echo "kind $*" >>"$NOTES"
case "$1 $2" in
  "get clusters") cat "$NOTES.clusters" 2>/dev/null ;;
  "create cluster") echo "$4" >"$NOTES.clusters" ;;
  "delete cluster") rm "$NOTES.clusters" ;;
esac
exit 0"""
NOTE = 'echo "$(basename "$0") $*" >>"$NOTES"'


class Stage:
    """A kind provider whose programs are stand-ins."""

    def __init__(self, folder: Path) -> None:
        self.notes = folder / "notes"
        self.provider = KindProvider(Settings("t", folder / "cache", folder / "state"), Progress())
        self.kubeconfig = folder / "state" / "t" / "kind.kubeconfig"
        self.sources = ImageSources(folder, folder, folder)

    def issued(self) -> list[str]:
        """The commands since the last call, without questions."""
        lines = self.notes.read_text().splitlines() if self.notes.exists() else []
        self.notes.write_text("")
        return [line for line in lines if line not in ("docker info", "kind get clusters")]


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"kind": KIND, "docker": NOTE, "kubectl": NOTE}.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    return Stage(tmp_path)


def test_up_creates_the_cluster_and_waits_for_its_node(stage: Stage) -> None:
    access = stage.provider.up("node")
    assert access.kubeconfig == stage.kubeconfig
    assert stage.issued() == [
        f"kind create cluster --name kvpool-t --kubeconfig {stage.kubeconfig} --wait 180s",
        f"kubectl --kubeconfig={stage.kubeconfig} wait --for=condition=Ready nodes --all --timeout=180s",
    ]


def test_up_again_only_fetches_the_kubeconfig(stage: Stage) -> None:
    stage.provider.up("node")
    stage.issued()
    stage.provider.up("node")
    assert stage.issued()[0] == f"kind export kubeconfig --name kvpool-t --kubeconfig {stage.kubeconfig}"


def test_images_are_built_and_loaded_and_the_store_is_pulled(stage: Stage) -> None:
    loaded = stage.provider.load_images(["store", "operator", "serving", "payload"], stage.sources)
    operator, serving, payload = (f"localhost/kvpool/{name}:dev" for name in ("operator", "serving", "payload"))
    assert loaded == {"operator": operator, "serving": serving, "payload": payload}
    images = REPOSITORY / "images"
    assert stage.issued() == [
        f"docker build --file {images}/Dockerfile.operator --tag {operator} {REPOSITORY}",
        f"kind load docker-image {operator} --name kvpool-t",
        f"docker build --file {images}/Dockerfile.serving --tag {serving}"
        f" --build-arg BASE=vllm/vllm-openai-cpu:v0.32.0 {REPOSITORY}",
        f"kind load docker-image {serving} --name kvpool-t",
        f"docker build --file {images}/Dockerfile.payload --tag {payload} {REPOSITORY}",
        f"kind load docker-image {payload} --name kvpool-t",
    ]


def test_down_deletes_only_a_cluster_that_is_there(stage: Stage) -> None:
    stage.provider.down()
    assert stage.issued() == []
    stage.provider.up("node")
    stage.issued()
    stage.provider.down()
    assert stage.issued() == [f"kind delete cluster --name kvpool-t --kubeconfig {stage.kubeconfig}"]


def test_a_docker_that_does_not_answer_is_named(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "bin" / "docker").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(ClusterError, match="running Docker daemon"):
        stage.provider.up("node")
    assert stage.issued() == []
