"""The cluster once, the operator once, a namespace for each test."""

from __future__ import annotations

import base64
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import Chart

from e2e.cluster.local.layout import Layout
from e2e.cluster.settings import read_settings
from testkit.patience import PATIENCE_S
from testkit.ports import free_port

from .kubectl import FOREIGN_CRDS, Kubectl, eventually

REPOSITORY = Path(__file__).parents[3]
POOL = {"backend": {"type": "Redis"}, "tiers": {"cpu": {"size": "1Gi"}}}
CLUSTER = os.environ.get("KVPOOL_TEST_CLUSTER", "test-operator")
"""Two checkouts at once need two clusters."""
SYSTEM = "kvpool-system"
SETTINGS = {
    "probeSeconds": 1,
    "resyncSeconds": 2,
    "images": {"engine": "localhost/kvpool/serving:dev"},
    "probes": {"refusedNetworks": []},  # stores are on loopback here
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.get_closest_marker("timeout") is None:
            # The first test waits for the cluster, which may have to be built: that is not the test's time.
            item.add_marker(pytest.mark.timeout(4 * PATIENCE_S, func_only=True))


def _cluster(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "e2e.cluster", *arguments, "--name", CLUSTER]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which kubectl finds the cluster. A cluster that ran before is left running.

    kubectl remembers for hours which kinds and versions a server has, by the server's address, and an earlier server there may
    have had others.
    """
    ran_before = _cluster("env").returncode == 0
    up = _cluster("up", "--mode", "control")
    assert up.returncode == 0, up.stderr
    shell = 'eval "$1"; env -0'
    lines = _cluster("env").stdout
    dump = subprocess.run(["bash", "-c", shell, "bash", lines], capture_output=True, text=True, check=True)
    found = dict(entry.split("=", 1) for entry in dump.stdout.split("\0") if "=" in entry)
    yield found | {"KUBECACHEDIR": str(tmp_path_factory.mktemp("kubectl"))}
    if not ran_before:
        _cluster("down", "--clean")


class Operator:
    """The operator as a process, with its log."""

    def __init__(self, kubeconfig: Path, work: Path, settings: dict[str, Any], webhook_port: int) -> None:
        self._work = work
        self.kubeconfig = kubeconfig
        self._environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        self._logs: list[Path] = []
        self._connections = work / "connections"
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        self.settings = work / "settings.yaml"
        self.settings.write_text(yaml.safe_dump(settings))
        self.webhook_port = webhook_port

    @property
    def log(self) -> str:
        """Of all runs, in their order: what is later in time is later in it."""
        return "".join(path.read_text() for path in self._logs)

    @property
    def connections(self) -> list[str]:
        """Return what the operator connected to and looked up so far, a line each."""
        return self._connections.read_text().splitlines()

    def said_of(self, namespace: str, since: int) -> str:
        """Lines about a namespace, from a length of the log on. Others are about what earlier tests left."""
        return "\n".join(line for line in self.log[since:].splitlines() if f"{namespace}/" in line)

    def start(self) -> None:
        self._port = port = free_port()
        watched = [str(Path(__file__).with_name("watched.py")), str(self._connections)]
        command = [sys.executable, *watched, "--settings", str(self.settings)]
        self._logs.append(self._work / f"operator-{len(self._logs)}.log")
        with self._logs[-1].open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *command,
                    *(
                        "--health-host",
                        "127.0.0.1",
                        "--health-port",
                        str(port),
                        "--webhook-port",
                        str(self.webhook_port),
                    ),
                ],
                env=self._environment,
                stdout=log,
                stderr=log,
            )

        def ready() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"the operator ended:\n{self.log}"
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
                    ready = bool(answer.status == 200)
                socket.create_connection(("127.0.0.1", self.webhook_port), timeout=2).close()
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                return False
            return ready

        eventually(ready, what="the operator is ready")

    def writes(self) -> dict[str, int]:
        """Requests of this run that asked for a change, by method."""
        requests = [line for line in self.metrics() if line.startswith("kvpool_operator_api_requests_total")]
        counts = {line.split('"')[1]: int(float(line.split()[-1])) for line in requests}
        assert counts.pop("GET") > 0
        return counts

    def on_core(self) -> tuple[float, float]:
        """Seconds that its main thread had a core, and that it waited for one. Source: sched-stats.rst of Linux."""
        assert self._process is not None
        ran, waited, _ = Path(f"/proc/{self._process.pid}/schedstat").read_text().split()
        return int(ran) / 1e9, int(waited) / 1e9

    def metrics(self, timeout: float = PATIENCE_S) -> list[str]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=timeout) as answer:
            lines: list[str] = answer.read().decode().splitlines()
        return lines

    def leads(self) -> bool:
        """Return whether it leads, as it says itself; False where it does not answer."""
        try:
            return "kvpool_operator_leader 1.0" in self.metrics(timeout=2)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    @property
    def identity(self) -> str:
        """Return the name by which this run takes part in the election and calls the API server."""
        found = re.findall(r"election: (\S+): ", self._logs[-1].read_text())
        return str(found[-1]) if found else ""

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. One that was killed has ended for good."""
        assert self._process is not None
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(timeout=PATIENCE_S)
            self._process = None

    def stop(self) -> int:
        """Ask it to end, as Kubernetes does; returns its exit status."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(timeout=PATIENCE_S)
        self._process = None
        return status

    def end(self) -> None:
        if self._process is not None:
            self.stop()


def _manifests(webhook_port: int) -> list[dict[str, Any]]:
    """Render the chart but for the Deployment: there is no node for it to run on."""
    with Chart.load(REPOSITORY / "charts" / "kvpool-operator") as chart:
        values = {"settings": SETTINGS, "webhook": {"url": f"https://127.0.0.1:{webhook_port}"}}
        rendered = chart.render(values, name="kvpool", namespace=SYSTEM)
    texts = [text for path, text in rendered.items() if not path.endswith(("NOTES.txt", "deployment.yaml"))]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def _install(kubectl: Kubectl, webhook_port: int) -> dict[str, Any]:
    """Install the chart and return the settings that it made."""
    manifests = _manifests(webhook_port)
    for namespace in {one["metadata"].get("namespace", SYSTEM) for one in manifests}:
        inside = [one for one in manifests if one["metadata"].get("namespace", SYSTEM) == namespace]
        Kubectl(kubectl.environment, namespace)("apply", "-f", "-", text=yaml.safe_dump_all(inside))
    crd = "crd/kvcachepools.kvpool.dev"
    kubectl("wait", "--for=condition=Established", crd, f"--timeout={PATIENCE_S:.0f}s")
    settings = yaml.safe_load(kubectl.must_get("configmap", "kvpool-operator")["data"]["settings.yaml"])
    # Sooner than a person would want it, so that tests need not wait.
    settings["webhook"]["checkSeconds"] = 0.2
    # The API server is on loopback, too. The chart gives the right to know its addresses all the same.
    settings["probes"]["refuseApiServer"] = False
    made: dict[str, Any] = settings
    return made


def _kubeconfig(kubectl: Kubectl, path: Path) -> Path:
    """A kubeconfig of the operator's service account: it may do what the chart allows and nothing else."""
    admin = yaml.safe_load(kubectl("config", "view", "--raw", "--minify"))
    token = kubectl("create", "token", "kvpool-operator", "--duration=2h").strip()
    admin["users"] = [{"name": admin["users"][0]["name"], "user": {"token": token}}]
    path.write_text(yaml.safe_dump(admin))
    return path


class AuditLog:
    """Reads what the operator's account asked the API server for since this session began."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = path.stat().st_size if path.exists() else 0

    def lines(self) -> list[str]:
        """Return all whole lines.

        A cluster of another provider has no such log, nor has one that an earlier checkout started.
        """
        if not self._path.exists():
            pytest.skip("this cluster's API server writes no audit log")
        with self._path.open() as log:
            log.seek(self._start)
            text, _, _ = log.read().rpartition("\n")
        return text.splitlines()


@pytest.fixture(scope="session")
def audit_log(environment: dict[str, str]) -> AuditLog:
    return AuditLog(Layout(read_settings(CLUSTER).root).audit_log)


@pytest.fixture(scope="session")
def chart_manifests() -> list[dict[str, Any]]:
    """Return what the chart installs in this session, but for the webhook's address."""
    return _manifests(0)


@pytest.fixture(scope="session")
def operator(
    environment: dict[str, str], audit_log: AuditLog, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Operator]:
    system = Kubectl(environment, SYSTEM)
    system.run("create", "namespace", SYSTEM)
    webhook_port = free_port()
    settings = _install(system, webhook_port)
    work = tmp_path_factory.mktemp("operator")
    process = Operator(_kubeconfig(system, work / "kubeconfig"), work, settings, webhook_port)
    process.start()
    yield process
    process.end()


_numbers = itertools.count()


@pytest.fixture
def kubectl(environment: dict[str, str], operator: Operator) -> Iterator[Kubectl]:
    """kubectl in a namespace of its own, which enforces Pod Security "restricted"."""
    name = f"t{next(_numbers)}-{os.getpid()}"
    client = Kubectl(environment, name)
    client("create", "namespace", name)
    client("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
    logged = len(operator.log)
    yield client
    client("delete", "kvcachepools", "--all", "--wait=false")
    client("delete", "namespace", name, "--wait=false")
    said = operator.log[logged:]
    assert "Traceback" not in said, said[-5000:]


@pytest.fixture
def alone(kubectl: Kubectl) -> None:
    """Nothing of an earlier test is on its way out: what the operator writes from now on, it writes about this test's pools."""

    def leaving() -> list[str]:
        found = (one["metadata"] for one in kubectl.list("namespaces"))
        return [one["name"] for one in found if "deletionTimestamp" in one]

    eventually(lambda: not leaving(), what="the namespaces of earlier tests are gone")


@pytest.fixture(scope="session")
def foreign_kinds(environment: dict[str, str]) -> Iterator[None]:
    """The cluster knows InferenceServices, LLMInferenceServices, RayServices and RayClusters.

    Once, whatever the order of modules: a kind that is removed goes later than the command that removes it, and would take along
    what the next module has just made.
    """
    client = Kubectl(environment, "default")
    client("apply", "--server-side", "-f", str(FOREIGN_CRDS))
    client("wait", "--for=condition=Established", "-f", str(FOREIGN_CRDS), f"--timeout={PATIENCE_S:.0f}s")
    yield
    client("delete", "-f", str(FOREIGN_CRDS))


@pytest.fixture
def pool(kubectl: Kubectl) -> Kubectl:
    kubectl.apply_pool("demo", POOL)
    kubectl.await_condition("demo", "ConfigRendered", reason="Rendered")
    return kubectl


def decoded(secret: dict[str, Any], key: str) -> str:
    return base64.b64decode(secret["data"][key]).decode()
