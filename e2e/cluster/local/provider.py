"""The local provider: brings the parts together.

`up` may be called at any time: it starts what does not run, whatever an earlier run left.  Two commands for the
same cluster take turns.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from e2e.cluster.local import build, cache, images, machine, pki
from e2e.cluster.local.control import APISERVER, CONTROLLERS, ETCD, SCHEDULER, Control, Programs
from e2e.cluster.local.layout import NODE, NODE_IP, Layout, Ports, Started, free_ports
from e2e.cluster.local.node import NAMES, Containerd, Node, running
from e2e.cluster.local.processes import Processes
from e2e.cluster.local.teardown import Teardown
from e2e.cluster.progress import ClusterError, Progress
from e2e.cluster.provider import Access, ImageSources, Mode, Row
from e2e.cluster.settings import Settings


class LocalProvider:
    """A control plane, or a whole node, on this machine."""

    name = "local"

    def __init__(self, settings: Settings, progress: Progress, *, port: int | None = None) -> None:
        self._settings = settings
        self._progress = progress
        self._port = port
        self._layout = Layout(settings.root)
        self._processes = Processes(self._layout.run, self._layout.log)

    def up(self, mode: Mode) -> Access:
        """Start the cluster; returns when the API (and the node with its DNS) can be used."""
        machine.check_kind()
        machine.extend_environment()
        if mode == "node":
            machine.check_node(running(self._processes))
            machine.install_missing(self._progress)
        programs, folder = self._programs(mode)
        with self._turn():
            ports = self._begin(mode, programs.kubectl.parent)
            made = pki.ensure(self._layout.pki)
            self._progress.say("keys made" if made else "keys are there")
            control = Control(self._layout, ports, mode, programs, self._processes, self._progress)
            control.write_kubeconfigs()
            if mode == "node" and folder:
                self._start_node(control, folder)
            else:
                control.start()
            control.wait_for_service_account()
            self._processes.check([*control.names, *(NAMES if mode == "node" else ())])
        self._progress.say(f"up: {self._settings.name}, {mode}, https://{control.host}:{ports.api}")
        return self.access()

    def down(self, *, clean: bool = False) -> None:
        """End what `up` started; with `clean`, delete its state."""
        started = self._layout.started()
        if not started:
            self._progress.say(f"nothing to end: there is no cluster named {self._settings.name}")
            return
        machine.extend_environment()
        with self._turn():
            teardown = Teardown(self._layout, Path(started.programs), self._processes, self._progress)
            teardown.end()
            if clean:
                teardown.delete()
        self._progress.say(f"down: {self._settings.name}{', its state deleted' if clean else ''}")

    def status(self) -> list[Row]:
        """One row per server, with where its log is."""
        started = self._layout.started()
        if not started:
            return [Row(self._settings.name, "not started", str(self._layout.root))]
        rows = [Row(self._settings.name, started.mode, str(self._layout.root))]
        names = [ETCD, APISERVER, CONTROLLERS, SCHEDULER, *(NAMES if started.mode == "node" else ())]
        for name in names:
            identity = self._processes.identity(name)
            log = self._processes.log(name)
            ended = "ended" if log.exists() else "not started"
            rows.append(Row(name, f"pid {identity.pid}" if identity else ended, str(log)))
        return rows

    def access(self) -> Access:
        """How to reach the cluster."""
        started = self._layout.started()
        if not started:
            raise ClusterError(f"there is no cluster named {self._settings.name}: run `up` first")
        node = NODE if started.mode == "node" else None
        host = NODE_IP if started.mode == "node" else "127.0.0.1"
        return Access(self._layout.kubeconfig, Path(started.programs) / "kubectl", node, host)

    def build(self) -> None:
        """Build the programs and the base layers of all images."""
        machine.check_kind()
        machine.extend_environment()
        machine.etcd(self._settings.cache, self._progress)
        workshop = self._workshop(build.binaries(self._settings.cache, self._progress))
        for name in ("pause", "coredns"):
            workshop.program(name)
        for kind, packages in images.BASES.items():
            workshop.debian(kind, packages)
        workshop.valkey()
        self._progress.say(f"built: all is in {self._settings.cache}")

    def load_images(self, names: Sequence[str], sources: ImageSources) -> dict[str, str]:
        """Build images and import them into the node."""
        started = self._layout.started()
        if not started or started.mode != "node" or not self._processes.alive("containerd"):
            raise ClusterError(f"images need a node: run `up --mode node` for {self._settings.name} first")
        machine.extend_environment()
        workshop = self._workshop(Path(started.programs))
        containerd = Containerd(self._layout, self._processes)
        loaded: dict[str, str] = {}
        with tempfile.TemporaryDirectory(prefix="images-", dir=self._layout.run) as scratch:
            for name in names:
                image = images.build(workshop, name, sources, Path(scratch))
                new = containerd.import_image(image, Path(scratch))
                self._progress.say(f"image {image.reference} {'imported' if new else 'is there'} ({image.digest[:19]})")
                loaded[name] = image.reference
        return loaded

    def _programs(self, mode: Mode) -> tuple[Programs, Path | None]:
        """The control plane's programs and the folder with the node's."""
        assets = self._settings.assets
        if assets and mode == "control":
            return self._assets(assets), None
        if assets:
            self._progress.say("KUBEBUILDER_ASSETS is not used: it has no kubelet")
        folder = build.binaries(self._settings.cache, self._progress)
        etcd = machine.etcd(self._settings.cache, self._progress)
        control = [folder / name for name in ("kube-apiserver", "kubectl", "kube-controller-manager", "kube-scheduler")]
        return Programs(etcd, *control), folder

    def _assets(self, folder: Path) -> Programs:
        """The programs in KUBEBUILDER_ASSETS."""
        needed = [folder / name for name in ("etcd", "kube-apiserver", "kubectl")]
        missing = [path.name for path in needed if not path.exists()]
        if missing:
            raise ClusterError(f"KUBEBUILDER_ASSETS is {folder}, which lacks {', '.join(missing)}")
        self._progress.say(f"programs from KUBEBUILDER_ASSETS: {folder}")
        controllers, scheduler = folder / "kube-controller-manager", folder / "kube-scheduler"
        etcd, apiserver, kubectl = needed
        return Programs(
            etcd,
            apiserver,
            kubectl,
            controllers if controllers.exists() else None,
            scheduler if scheduler.exists() else None,
        )

    def _begin(self, mode: Mode, programs: Path) -> Ports:
        """Note how the cluster is started.  What runs keeps its ports and its mode."""
        before = self._layout.started()
        runs = self._processes.alive(APISERVER) or self._processes.alive(ETCD)
        if before and runs:
            if before.mode != mode or self._port not in (None, before.port):
                raise ClusterError(
                    f"{self._settings.name} runs in mode {before.mode} on port {before.port}:"
                    " run `down` first, or take another --name"
                )
            return Ports(before.port)
        self._layout.make()
        with cache.locked(self._settings.state / ".ports.lock", self._progress, "the choice of ports"):
            ports = free_ports(self._settings.state, self._settings.name, self._port)
            self._layout.write_started(Started(mode, ports.first, str(programs)))
        return ports

    def _start_node(self, control: Control, folder: Path) -> None:
        containerd = Containerd(self._layout, self._processes)
        node = Node(self._layout, folder, control, containerd, self._processes, self._progress)
        workshop = self._workshop(folder)
        with node.prepared([workshop.program("pause"), workshop.program("coredns")]):
            control.start()
            node.start()
        node.wait()

    def _workshop(self, programs: Path) -> images.Workshop:
        return images.Workshop(self._settings.cache, programs, self._progress)

    def _turn(self) -> AbstractContextManager[None]:
        lock = self._settings.state / f".{self._settings.name}.lock"
        return cache.locked(lock, self._progress, f"a command for the cluster {self._settings.name}")
