"""The control plane: etcd, kube-apiserver, kube-controller-manager, kube-scheduler.  No root needed.

In control mode everything listens on 127.0.0.1; in node mode the API server listens on the Pod bridge's address,
where Pods and this machine reach it and no other machine does.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.cluster.local.api import Api
from e2e.cluster.local.layout import NODE_IP, SERVICE_CIDR, Layout, Ports, put
from e2e.cluster.local.processes import Processes
from e2e.cluster.progress import Progress, wait_for
from e2e.cluster.provider import Mode

ETCD, APISERVER, CONTROLLERS, SCHEDULER = "etcd", "apiserver", "controller-manager", "scheduler"
USERS = ("admin", "controller-manager", "scheduler", "proxy", "kubelet")
AUDIT_POLICY = """\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    users: ["system:serviceaccount:kvpool-system:kvpool-operator"]
  - level: None
"""
"""The log has what kvpool's operator asked for, without bodies: a test compares its chart with it."""


@dataclass(frozen=True)
class Programs:
    """Where the control plane's programs are; the last two may be absent."""

    etcd: Path
    apiserver: Path
    kubectl: Path
    controller_manager: Path | None
    scheduler: Path | None


@dataclass(frozen=True)
class Control:
    """The control plane of one cluster."""

    layout: Layout
    ports: Ports
    mode: Mode
    programs: Programs
    processes: Processes
    progress: Progress

    @property
    def host(self) -> str:
        """The address of the API server."""
        return NODE_IP if self.mode == "node" else "127.0.0.1"

    @property
    def names(self) -> list[str]:
        """The servers that make up this control plane."""
        optional = ((CONTROLLERS, self.programs.controller_manager), (SCHEDULER, self.programs.scheduler))
        return [ETCD, APISERVER, *(name for name, program in optional if program)]

    @property
    def _audit_policy(self) -> Path:
        return self.layout.conf / "audit.yaml"

    def api(self) -> Api:
        """A reader of this cluster's API."""
        return Api(self.host, self.ports.api, self.layout.pki)

    def write_kubeconfigs(self) -> None:
        """One kubeconfig per user."""
        server = f"https://{self.host}:{self.ports.api}"
        for user in USERS:
            put(self.layout.conf / f"{user}.kubeconfig", kubeconfig(server, self.layout.pki, user))

    def start(self) -> None:
        """Start what does not run and wait until the API server is ready."""
        put(self._audit_policy, AUDIT_POLICY)
        self.processes.start(ETCD, self._etcd())
        self.processes.start(APISERVER, self._apiserver())
        wait_for(90.0, "kube-apiserver", self.api().ready, lambda: self.processes.dead([ETCD, APISERVER]))
        self.progress.say("kube-apiserver ready")
        if self.programs.controller_manager:
            self.processes.start(CONTROLLERS, self._controllers(self.programs.controller_manager))
        if self.programs.scheduler:
            self.processes.start(SCHEDULER, self._scheduler(self.programs.scheduler))

    def wait_for_service_account(self) -> None:
        """Wait for the ServiceAccount `default`; without a controller-manager, make the one of the first namespace.

        Other namespaces then have none, so `_apiserver` also turns the admission check off that would ask for it.
        """
        api, path = self.api(), "/api/v1/namespaces/default/serviceaccounts"
        manifest: dict[str, Any] = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}}

        def there() -> bool:
            return api.exists(f"{path}/default") or (
                not self.programs.controller_manager and api.create(path, manifest)
            )

        wait_for(60.0, "the ServiceAccount default", there, lambda: self.processes.dead(self.names))

    def _etcd(self) -> list[str | Path]:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.ports.etcd, self.ports.etcd_peer))
        listen = ["--listen-client-urls", client, "--advertise-client-urls", client]
        peers = [
            "--listen-peer-urls",
            peer,
            "--initial-advertise-peer-urls",
            peer,
            "--initial-cluster",
            f"local={peer}",
        ]
        options = ["--name=local", f"--data-dir={self.layout.run}/etcd", "--log-level=warn"]
        # Losing the last writes in a power failure is fine here; waiting for the disk on every write is not.
        options.append("--unsafe-no-fsync")
        return [self.programs.etcd, *options, *listen, *peers]

    def _apiserver(self) -> list[str | Path]:
        pki = self.layout.pki
        if self.mode == "node":
            where = [f"--bind-address={NODE_IP}", f"--advertise-address={NODE_IP}"]
        else:
            where = ["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--endpoint-reconciler-type=none"]
        if not self.programs.controller_manager:  # nobody would make the ServiceAccount that Pods must name
            where.append("--disable-admission-plugins=ServiceAccount")
        return [
            self.programs.apiserver,
            f"--etcd-servers=http://127.0.0.1:{self.ports.etcd}",
            f"--secure-port={self.ports.api}",
            *where,
            f"--service-cluster-ip-range={SERVICE_CIDR}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged",
            "--profiling=false",
            f"--client-ca-file={pki}/ca.crt",
            f"--tls-cert-file={pki}/apiserver.crt",
            f"--tls-private-key-file={pki}/apiserver.key",
            f"--kubelet-client-certificate={pki}/kubelet-client.crt",
            f"--kubelet-client-key={pki}/kubelet-client.key",
            f"--kubelet-certificate-authority={pki}/ca.crt",
            "--kubelet-preferred-address-types=InternalIP",
            "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
            f"--service-account-key-file={pki}/sa.pub",
            f"--service-account-signing-key-file={pki}/sa.key",
            f"--requestheader-client-ca-file={pki}/front-proxy-ca.crt",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={pki}/front-proxy-client.crt",
            f"--proxy-client-key-file={pki}/front-proxy-client.key",
            f"--audit-policy-file={self._audit_policy}",
            f"--audit-log-path={self.layout.audit_log}",
            "--audit-log-maxsize=100",
            "--audit-log-maxbackup=1",
        ]

    def _controllers(self, program: Path) -> list[str | Path]:
        pki = self.layout.pki
        return [
            program,
            *self._as_user(CONTROLLERS),
            f"--secure-port={self.ports.controller_manager}",
            "--pvclaimbinder-sync-period=1s",  # else a claim made before its volume waits 15 s
            "--horizontal-pod-autoscaler-sync-period=1s",  # else a Deployment gets its autoscaler's minimum after 15 s
            "--use-service-account-credentials",
            # One token request per controller at its start: with the default limit they take 5 s.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--root-ca-file={pki}/ca.crt",
            f"--cluster-signing-cert-file={pki}/ca.crt",
            f"--cluster-signing-key-file={pki}/ca.key",
        ]

    def _scheduler(self, program: Path) -> list[str | Path]:
        return [program, *self._as_user(SCHEDULER), f"--secure-port={self.ports.scheduler}"]

    def _as_user(self, user: str) -> list[str]:
        config = self.layout.conf / f"{user}.kubeconfig"
        options = [
            f"--{kind}={config}" for kind in ("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig")
        ]
        return [*options, "--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false"]


def kubeconfig(server: str, pki: Path, user: str) -> str:
    """A kubeconfig that refers to the key files."""
    return f"""\
apiVersion: v1
kind: Config
clusters: [{{name: local, cluster: {{server: "{server}", certificate-authority: "{pki}/ca.crt"}}}}]
users: [{{name: "{user}", user: {{client-certificate: "{pki}/{user}.crt", client-key: "{pki}/{user}.key"}}}}]
contexts: [{{name: local, context: {{cluster: local, user: "{user}"}}}}]
current-context: local
"""
