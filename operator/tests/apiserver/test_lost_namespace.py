"""An operator of two namespaces whose Role in one of them is gone: it serves the other as before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from helm_python import Chart

from testkit.ports import free_port

from .conftest import POOL, REPOSITORY, SETTINGS, SYSTEM, Operator
from .kubectl import Kubectl, eventually

NAME = "narrow"
"""Of the release: of its account, its roles, its Lease and its settings."""


class Narrow:
    """An operator with a Role in each of two namespaces."""

    def __init__(self, operator: Operator, environment: dict[str, str], work: Path) -> None:
        self.system = Kubectl(environment, SYSTEM)
        self.lost = Kubectl(environment, f"lost-{os.getpid()}")
        self.kept = Kubectl(environment, f"kept-{os.getpid()}")
        for one in (self.lost, self.kept):
            one("create", "namespace", one.namespace)
        port = free_port()
        with Chart.load(REPOSITORY / "charts" / "kvpool-operator") as chart:
            values = {
                "fullnameOverride": NAME,
                "crds": {"enabled": False},
                "watchNamespaces": [self.lost.namespace, self.kept.namespace],
                "settings": SETTINGS,
                "webhook": {"url": f"https://127.0.0.1:{port}"},
            }
            rendered = chart.render(values, name=NAME, namespace=SYSTEM)
        left_out = ("NOTES.txt", "deployment.yaml")
        self.manifests = yaml.safe_dump_all(
            one
            for path, text in rendered.items()
            if not path.endswith(left_out)
            for one in yaml.safe_load_all(text)
            if one
        )
        # Without a namespace of kubectl's own: each object names its own.
        Kubectl(environment, "")("apply", "-f", "-", text=self.manifests)
        settings = yaml.safe_load(self.system.must_get("configmap", NAME)["data"]["settings.yaml"])
        settings["webhook"]["checkSeconds"] = 0.2
        settings["probes"]["refuseApiServer"] = False
        kubeconfig = yaml.safe_load(operator.kubeconfig.read_text())
        token = self.system("create", "token", NAME, "--duration=2h").strip()
        kubeconfig["users"][0]["user"] = {"token": token}
        path = work / "kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig))
        self.operator = Operator(path, work, settings, port)

    def end(self) -> None:
        self.operator.end()
        for one in (self.lost, self.kept):
            one("delete", "kvcachepools", "--all", "--wait=false")
            one("delete", "namespace", one.namespace, "--wait=false")
        Kubectl(self.system.environment, "").run("delete", "--wait=false", "-f", "-", text=self.manifests)


@pytest.fixture
def narrow(operator: Operator, environment: dict[str, str], tmp_path: Path) -> Iterator[Narrow]:
    """Such an operator in the place of the one that other tests have."""
    operator.stop()
    made = Narrow(operator, environment, tmp_path)
    try:
        yield made
    finally:
        made.end()
        operator.start()


def has_status(kubectl: Kubectl, pool: str) -> None:
    eventually(lambda: kubectl.condition(pool, "Ready"), what=f"a status of {pool}")


def test_a_lost_namespace_takes_no_other_down(narrow: Narrow) -> None:
    binding = narrow.lost.must_get("rolebinding", NAME)
    binding["metadata"] = {key: binding["metadata"][key] for key in ("name", "namespace")}
    narrow.lost("delete", "rolebinding", NAME)
    narrow.operator.start()
    for one in (narrow.lost, narrow.kept):
        one.apply_pool("demo", POOL)
    has_status(narrow.kept, "demo")
    assert f"namespace {narrow.lost.namespace} is left out" in narrow.operator.log
    assert narrow.lost.condition("demo", "Ready") == {}
    narrow.lost.apply(binding)
    has_status(narrow.lost, "demo")
    assert "Traceback" not in narrow.operator.log
