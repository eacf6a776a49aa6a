"""The node: containerd, kubelet, kube-proxy and CoreDNS beside a control plane.  Needs root; one per machine.

Images get into containerd by `import_image`; nothing is ever pulled.
"""

from __future__ import annotations

import http.client
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.command import piped, run, succeeds
from e2e.cluster.local import machine, network, node_config
from e2e.cluster.local.control import Control
from e2e.cluster.local.layout import DNS_IP, NODE, NODE_IP, Layout, put
from e2e.cluster.local.oci import Image, write_archive
from e2e.cluster.local.processes import BOOT_ID, Processes
from e2e.cluster.progress import ClusterError, Progress, wait_for

CONTAINERD, KUBELET, PROXY = "containerd", "kubelet", "proxy"
NAMES = (CONTAINERD, KUBELET, PROXY)
_API_NAME = "kubernetes.default.svc.cluster.local"
_DNS = Path(__file__).with_name("dns.yaml")


def running(processes: Processes) -> list[str]:
    """Which of the node's servers run, as `machine.check_node` wants to know of them."""
    return [name for name in NAMES if processes.alive(name)]


@dataclass(frozen=True)
class Containerd:
    """The cluster's containerd."""

    layout: Layout
    processes: Processes

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which `ctr` finds it."""
        return {"CONTAINERD_ADDRESS": str(self.layout.containerd_socket), "CONTAINERD_NAMESPACE": "k8s.io"}

    def start(self) -> None:
        """Start it unless it runs; its configuration is written first."""
        layout = self.layout
        folder = machine.cni_folder()
        if not folder:
            raise ClusterError("the CNI plugins are not installed")
        for place in (layout.run / "containerd", layout.run / "pod-logs"):
            place.mkdir(parents=True, exist_ok=True)
        put(layout.conf / "cni" / "10-local.conflist", node_config.cni(layout))
        put(layout.conf / "containerd.toml", node_config.containerd(layout, folder))
        if not self.processes.alive(CONTAINERD):
            self._forget_former_boot()
        self.processes.start(CONTAINERD, ["containerd", "--config", layout.conf / "containerd.toml"])

    def _forget_former_boot(self) -> None:
        """After a reboot, what containerd noted of running containers is wrong (its default place is a tmpfs)."""
        note, boot = self.layout.run / "containerd.boot", BOOT_ID.read_text()
        if note.exists() and note.read_text() != boot:
            shutil.rmtree(self.layout.run / "containerd" / "state", ignore_errors=True)
        put(note, boot)

    def wait(self) -> None:
        """Wait until it answers."""

        def answers() -> bool:
            return succeeds(["ctr", "version"], env=self.environment)

        wait_for(60.0, "containerd", answers, lambda: self.processes.dead([CONTAINERD]))

    def digests(self) -> dict[str, str]:
        """The digest of every image that is there, by its name."""
        lines = run(["ctr", "images", "list"], env=self.environment).splitlines()[1:]
        return {words[0]: words[2] for line in lines if len(words := line.split()) > 2}

    def import_image(self, image: Image, scratch: Path) -> bool:
        """Put an image in; False when the very same one is there.  Layers that are there are not unpacked again."""
        if self.digests().get(image.reference) == image.digest:
            return False
        with tempfile.TemporaryFile(dir=scratch) as archive:
            write_archive(image, archive)
            archive.seek(0)
            piped(["ctr", "images", "import", "-"], archive, env=self.environment)
        return True


@dataclass(frozen=True)
class Node:
    """The node of one cluster."""

    layout: Layout
    programs: Path
    control: Control
    containerd: Containerd
    processes: Processes
    progress: Progress

    @contextmanager
    def prepared(self, images: Sequence[Image]) -> Iterator[None]:
        """Network and containerd first; `images` are imported while the body starts the control plane."""
        network.make()
        self.containerd.start()
        with ThreadPoolExecutor(1) as pool:
            importing: Future[None] = pool.submit(self._import, images)
            yield
            importing.result()

    def _import(self, images: Sequence[Image]) -> None:
        self.containerd.wait()
        self.progress.say("containerd ready")
        for image in images:
            self.containerd.import_image(image, self.layout.run)

    def start(self) -> None:
        """Start kubelet and kube-proxy and apply the cluster's DNS; nothing is waited for."""
        layout = self.layout
        network.write_resolv_conf(layout.conf / "resolv.conf")
        put(layout.conf / "kubelet.yaml", node_config.kubelet(layout))
        put(layout.conf / "proxy.yaml", node_config.proxy(layout))
        options = [f"--kubeconfig={layout.conf}/kubelet.kubeconfig", f"--root-dir={layout.run}/kubelet"]
        options += [f"--cert-dir={layout.run}/kubelet-pki", f"--hostname-override={NODE}", f"--node-ip={NODE_IP}"]
        self.processes.start(KUBELET, [self.programs / "kubelet", f"--config={layout.conf}/kubelet.yaml", *options])
        self.processes.start(PROXY, [self.programs / "kube-proxy", f"--config={layout.conf}/proxy.yaml"])
        kubectl = [str(self.control.programs.kubectl), f"--kubeconfig={layout.kubeconfig}"]
        run([*kubectl, "apply", "-f", "-"], stdin=_DNS.read_text().replace("DNS_IP", DNS_IP))

    def wait(self) -> None:
        """Wait for the node and for the cluster's DNS."""
        api, dead = self.control.api(), lambda: self.processes.dead([*self.control.names, *NAMES])
        # What the API server says may be older than this start, so the kubelet and the DNS are asked, too.
        wait_for(90.0, "the kubelet", _kubelet_answers, dead)
        wait_for(90.0, "the node", lambda: api.condition(f"/api/v1/nodes/{NODE}", "Ready"), dead)
        self.progress.say("node ready")
        wait_for(90.0, "the cluster's DNS", lambda: network.resolves(_API_NAME, DNS_IP), dead)
        self.progress.say("DNS ready")


def _kubelet_answers() -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", 10248, timeout=2.0)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
