"""The examples of connectors and of prefill and decode, applied: the API server accepts them and every child of theirs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from .kubectl import Kubectl, eventually

EXAMPLES = Path(__file__).parents[3] / "examples"
POOLS = sorted([*(EXAMPLES / "connectors").glob("*.yaml"), *(EXAMPLES / "prefill-decode").glob("[!r]*.yaml")])


def _connector(kubectl: Kubectl, pool: str, engine: str = "engine") -> str:
    """The connector of an engine as the API server has it. The environment alone switches kvpool's on."""
    (container,) = kubectl.must_get("deployment", f"{pool}-{engine}")["spec"]["template"]["spec"]["containers"]
    arguments = container["args"]
    if "--kv-transfer-config" in arguments:
        return str(json.loads(arguments[arguments.index("--kv-transfer-config") + 1])["kv_connector"])
    return "KVPoolConnector" if "KVPOOL_CONFIG_FILE" in {one["name"] for one in container["env"]} else ""


@pytest.mark.parametrize("path", POOLS, ids=[path.stem for path in POOLS])
def test_an_example_is_accepted_with_all_its_children(kubectl: Kubectl, path: Path) -> None:
    body = yaml.safe_load(path.read_text())
    name, spec = body["metadata"]["name"], body["spec"]
    kubectl.apply(body)
    kubectl.await_condition(name, "ConfigRendered", reason="Rendered")
    for engine in spec["engines"]:
        kubectl.must_get("service", f"{name}-{engine.get('name', 'engine')}")
        assert _connector(kubectl, name, engine.get("name", "engine"))
    eventually(lambda: kubectl.condition(name, "EnginesReady").get("reason"), what="the engines were looked at")
    assert kubectl.condition(name, "EnginesReady")["reason"] != "ApplyRefused", kubectl.condition(name, "EnginesReady")


def test_the_status_says_what_a_type_cannot_do(kubectl: Kubectl) -> None:
    kubectl.apply(yaml.safe_load((EXAMPLES / "connectors/native.yaml").read_text()))
    message = kubectl.await_condition("with-native", "ConfigRendered", reason="Rendered")["message"]
    assert "has no shared store" in message


def test_another_type_replaces_the_children_of_the_first(kubectl: Kubectl) -> None:
    """LMCache's server and its Service go when the pool no longer needs them."""
    body = yaml.safe_load((EXAMPLES / "connectors/lmcache-mp.yaml").read_text())
    name = body["metadata"]["name"]
    kubectl.apply(body)
    eventually(lambda: f"DaemonSet {name}-lmcache" in kubectl.children(name), what="the server is there")
    kubectl.await_condition(name, "EnginesReady", reason="ConnectorServerStarting")
    body["spec"]["connector"] = {"type": "KVPool"}
    kubectl.apply(body)
    eventually(lambda: f"DaemonSet {name}-lmcache" not in kubectl.children(name), what="the server is gone")
    assert f"ConfigMap {name}-connector" in kubectl.children(name)
    assert _connector(kubectl, name) == "KVPoolConnector"


def test_the_router_is_accepted(kubectl: Kubectl) -> None:
    """In a namespace that enforces Pod Security "restricted"; its targets are the Services of the pool beside it."""
    text = (EXAMPLES / "prefill-decode/router.yaml").read_text()
    warnings = kubectl.run("apply", "-f", "-", text=text)
    assert warnings.returncode == 0, warnings.stderr
    assert "would violate" not in warnings.stderr
    kubectl.apply(yaml.safe_load((EXAMPLES / "prefill-decode/pool.yaml").read_text()))
    arguments = kubectl.must_get("deployment", "pd-router")["spec"]["template"]["spec"]["containers"][0]["args"]
    for url in (word for word in arguments if word.startswith("http://")):
        host, _, port = url.removeprefix("http://").partition(":")

        def served(host: str = host, port: str = port) -> bool:
            service = kubectl.get("service", host)
            return service is not None and service["spec"]["ports"][0]["port"] == int(port)

        eventually(served, what=f"{url} is a Service of the pool")
