"""The local node for real: what Pods need of it, that it recovers, and that nothing of it stays behind.

Needs root and a machine without another Kubernetes node.  The node here has a name of its own and is ended.
"""

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.cluster.local import machine, network, teardown
from e2e.cluster.local.layout import NODE_PORTS, port_is_free
from e2e.cluster.local.processes import Identity, is_alive, read_record
from e2e.cluster.local.provider import LocalProvider
from e2e.cluster.progress import Progress, wait_for
from e2e.cluster.provider import Access, ImageSources, image_reference
from e2e.cluster.settings import REPOSITORY, Settings, read_settings
from e2e.cluster.volumes import HostFolder, Manifest, host_folder_manifests, pod_volumes, render
from testkit.patience import PATIENCE_S

pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
]

NAMESPACE = "cluster-test"
SOURCES = ImageSources(REPOSITORY / "operator", REPOSITORY / "connector", REPOSITORY / "requirements/operator.txt")


class Node:
    """A node of this file's own."""

    def __init__(self) -> None:
        self.settings: Settings = read_settings("cluster-test")
        self.provider = LocalProvider(self.settings, Progress())
        self.access: Access | None = None

    def up(self) -> None:
        """Start what does not run."""
        self.access = self.provider.up("node")

    def furnish(self) -> None:
        """Start it with what the tests need, unless it is there: one of them ends it, and any may come after that one."""
        if self.settings.root.exists():
            return
        self.up()
        self.provider.load_images(["store"], SOURCES)
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}})

    def kubectl(self, *words: str, stdin: str | None = None) -> str:
        """kubectl's output; a failure is shown."""
        assert self.access
        argv = [str(self.access.kubectl), f"--kubeconfig={self.access.kubeconfig}", *words]
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def apply(self, *manifests: Manifest) -> None:
        """Apply objects."""
        self.kubectl("apply", "-f", "-", stdin=render(manifests))

    def wait(self, condition: str, what: str) -> None:
        """Wait for a condition."""
        self.kubectl("-n", NAMESPACE, "wait", f"--for={condition}", what, f"--timeout={2 * PATIENCE_S:.0f}s")

    def pid(self, name: str) -> int:
        """The pid of a server."""
        return self._identity(name).pid

    def kill(self, *names: str) -> None:
        """SIGKILL to servers, and wait for their end: a process of many threads is there for a while after the call."""
        killed = [self._identity(name) for name in names]
        for identity in killed:
            os.kill(identity.pid, signal.SIGKILL)
        wait_for(PATIENCE_S, f"the end of {', '.join(names)}", lambda: not any(map(is_alive, killed)))

    def _identity(self, name: str) -> Identity:
        identity = read_record(self.settings.root / "run" / f"{name}.pid")
        assert identity
        return identity


@pytest.fixture(scope="module")
def own_node() -> Iterator[Node]:
    """Not started yet."""
    machine.extend_environment()
    node = Node()
    node.provider.down(clean=True)  # what an interrupted run of this test left
    taken = [port for ports in NODE_PORTS.values() for port in ports if not port_is_free(port)]
    if taken:
        pytest.skip(f"another Kubernetes node runs on this machine (port {taken[0]})")
    try:
        yield node
    finally:
        node.provider.down(clean=True)


@pytest.fixture
def node(own_node: Node) -> Node:
    """It runs."""
    own_node.furnish()
    return own_node


def container(image: str, command: list[str], **more: Any) -> dict[str, Any]:
    """A container that Pod Security `restricted` lets in."""
    security = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return {"name": "main", "image": image, "command": command, "securityContext": security, **more}


def pod_spec(main: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A Pod of any user but root."""
    user = {"runAsNonRoot": True, "runAsUser": 12345, "fsGroup": 12345, "seccompProfile": {"type": "RuntimeDefault"}}
    return {"terminationGracePeriodSeconds": 1, "securityContext": user, "containers": [main], **more}


def pod(name: str, spec: dict[str, Any]) -> Manifest:
    """A Pod."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec}


def ping(address: str) -> bool:
    """True when a Redis answers there."""
    try:
        with socket.create_connection((address, 6379), timeout=2) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16) == b"+PONG\r\n"
    except OSError:
        return False


@pytest.fixture
def redis(node: Node) -> str:
    """A Redis behind a Service, made unless it is there; its ClusterIP."""
    labels = {"app": "redis"}
    probe = {"exec": {"command": ["redis-cli", "ping"]}, "periodSeconds": 1}
    main = container(image_reference("store"), ["redis-server", "--save", ""], readinessProbe=probe)
    main["args"] = ["--protected-mode", "no"]
    metadata = {"name": "redis", "namespace": NAMESPACE}
    template = {"metadata": {"labels": labels}, "spec": pod_spec(main)}
    node.apply(
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}
        | {"spec": {"selector": {"matchLabels": labels}, "template": template}},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata}
        | {"spec": {"selector": labels, "ports": [{"port": 6379}]}},
    )
    node.wait("condition=Available", "deployment/redis")
    return node.kubectl("-n", NAMESPACE, "get", "service", "redis", "-o", "jsonpath={.spec.clusterIP}")


def test_this_machine_reaches_a_service_by_its_cluster_ip(node: Node, redis: str) -> None:
    wait_for(PATIENCE_S, "the Service's rules", lambda: ping(redis))


@pytest.mark.parametrize("host", ["redis", f"redis.{NAMESPACE}.svc.cluster.local"])
def test_a_pod_reaches_a_service_by_its_name(node: Node, redis: str, host: str) -> None:
    assert redis
    answer = node.kubectl("-n", NAMESPACE, "exec", "deployment/redis", "--", "redis-cli", "-h", host, "ping")
    assert answer == "PONG\n"


def test_a_pod_that_breaks_the_restricted_profile_is_refused(node: Node) -> None:
    spec = pod_spec(container(image_reference("store"), ["true"]))
    spec["volumes"] = [{"name": "host", "hostPath": {"path": "/"}}]
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        node.apply(pod("bad", spec))


def test_a_folder_of_this_machine_is_mounted_and_cannot_be_changed(node: Node, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("from the host\n")
    (tmp_path / "note").chmod(0o644)
    before = (tmp_path / "note").stat()
    for above in (tmp_path, *tmp_path.parents[:2]):
        above.chmod(0o755)
    folder = HostFolder("notes", tmp_path, "/notes")
    volumes, mounts = pod_volumes([folder])
    script = "cat /notes/note; touch /notes/new 2>/dev/null || echo refused"
    main = container(image_reference("store"), ["sh", "-c", script], volumeMounts=mounts)
    node.apply(*host_folder_manifests(folder, node="local", namespace=NAMESPACE))
    node.wait("jsonpath={.status.phase}=Bound", "persistentvolumeclaim/notes")
    node.apply(pod("reader", pod_spec(main, volumes=volumes, restartPolicy="Never")))
    node.wait("jsonpath={.status.phase}=Succeeded", "pod/reader")
    assert node.kubectl("-n", NAMESPACE, "logs", "reader") == "from the host\nrefused\n"
    after = (tmp_path / "note").stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    node.kubectl("-n", NAMESPACE, "delete", "pod/reader", "pvc/notes", f"pv/{NAMESPACE}-notes")


def test_servers_listen_on_loopback_and_the_bridge_only(node: Node) -> None:
    names = {"kubelet", "kube-apiserver", "kube-proxy", "kube-scheduler", "kube-controller", "etcd", "containerd"}
    lines = subprocess.run(["ss", "-Hltnp"], capture_output=True, text=True, check=True).stdout.splitlines()
    addresses = {line.split()[3].rsplit(":", 1)[0] for line in lines if any(f'"{name}' in line for name in names)}
    assert addresses == {"127.0.0.1", "10.244.0.1"}


def test_up_brings_back_what_was_killed_and_pods_go_on(node: Node, redis: str) -> None:
    started = node.kubectl("-n", NAMESPACE, "get", "pods", "-l", "app=redis", "-o", _STARTED)
    kept = {name: node.pid(name) for name in ("etcd", "apiserver")}
    killed = {name: node.pid(name) for name in ("containerd", "kubelet", "proxy")}
    node.kill(*killed)
    node.up()
    assert {name: node.pid(name) for name in kept} == kept
    assert all(node.pid(name) != pid for name, pid in killed.items())
    node.apply(pod("after", pod_spec(container(image_reference("store"), ["sleep", "300"]))))
    node.wait("condition=Ready", "pod/after")
    answer = node.kubectl("-n", NAMESPACE, "exec", "after", "--", "redis-cli", "-h", "redis", "ping")
    assert answer == "PONG\n"
    assert node.kubectl("-n", NAMESPACE, "get", "pods", "-l", "app=redis", "-o", _STARTED) == started


def test_a_control_plane_beside_it_comes_and_goes_without_touching_it(node: Node, redis: str) -> None:
    beside = LocalProvider(read_settings("cluster-test-control"), Progress())
    try:
        access = beside.up("control")
        words = [str(access.kubectl), f"--kubeconfig={access.kubeconfig}", "get", "nodes,serviceaccounts", "-o", "json"]
        items = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)["items"]
        assert [(item["kind"], item["metadata"]["name"]) for item in items] == [("ServiceAccount", "default")]
    finally:
        beside.down(clean=True)
    wait_for(PATIENCE_S, "the node's Service", lambda: ping(redis))


def test_down_after_a_crash_leaves_nothing(node: Node, redis: str) -> None:
    """It ends the node, while neither kubelet nor containerd can help."""
    assert redis
    socket_path = node.settings.root / "run/containerd/containerd.sock"
    assert teardown.shims(socket_path)
    assert teardown.mounts_below(node.settings.root)
    node.kill("kubelet", "containerd")
    node.provider.down(clean=True)
    wait_for(PATIENCE_S, "the end of all shims", lambda: not teardown.shims(socket_path))
    assert not teardown.mounts_below(node.settings.root)
    assert not network.exists()
    assert not teardown.pod_cgroups("kubepods")
    assert not node.settings.root.exists()
    wait_for(PATIENCE_S, "the end of all processes", lambda: not processes_of(node.settings.root))
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout
    assert "KUBE-" not in rules
    assert "kvpool" not in rules
    assert ":CNI-" not in rules.replace(":CNI-HOSTPORT", "")


def processes_of(root: Path) -> list[str]:
    """Command lines that name a folder of this cluster."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{root}/" in line:
            found.append(line)
    return found


_STARTED = "jsonpath={.items[*].status.containerStatuses[*].state.running.startedAt}"
