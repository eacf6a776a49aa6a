"""What engines in Pods of others say of kvpool gets into the pool's status.

A small HTTP server stands in for the engines: it answers with the text of their gauge. Nothing runs
in the Pods of these tests, so their status is played, too.
"""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from .injection import create, pod, pod_spec
from .kubectl import Kubectl

GAUGE = 'vllm:num_requests_running{engine="0"} 0.0\n'


def says(state: str, reason: str) -> str:
    return f'{GAUGE}kvpool_engine_state{{reason="{reason}",state="{state}"}} 1.0\n'


@contextmanager
def engine(text: str) -> Iterator[int]:
    """Serve a text under /metrics on a port of loopback."""

    class Metrics(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def runs(kubectl: Kubectl, name: str, container_id: str) -> None:
    """Play that a Pod's container is ready."""
    main = {
        "name": "main",
        "image": "x",
        "imageID": "x",
        "restartCount": 0,
        "ready": True,
        "state": {"running": {}},
        "containerID": container_id,
    }
    address = {"podIP": "127.0.0.1", "podIPs": [{"ip": "127.0.0.1"}]}
    patch = json.dumps({"status": {"phase": "Running", "containerStatuses": [main], **address}})
    kubectl("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)


@pytest.mark.parametrize(
    ("text", "condition", "truth", "state", "reason"),
    [
        (says("active", "switched on"), "Active", "True", "Active", "switched on"),
        (says("skipped", "it has NIXL"), "PodsSkipped", "False", "Skipped", "it has NIXL"),
        (says("disabled", "a fault"), "PodsDisabled", "False", "Disabled", "a fault"),
        (GAUGE, "PodsDisabled", "False", "Disabled", "knows nothing of kvpool"),
    ],
)
def test_an_engines_word(pool: Kubectl, text: str, condition: str, truth: str, state: str, reason: str) -> None:
    with engine(text) as port:
        manifest = pod("one")
        manifest["spec"] = pod_spec(ports=[{"containerPort": port}])
        create(pool, manifest)
        pool.await_condition("demo", "InjectionReady", reason="Written")
        runs(pool, "one", "containerd://1")
        found = pool.await_condition("demo", "InjectionReady", reason=condition)
        (row,) = pool.must_get("kvcachepool", "demo")["status"]["consumers"]
        assert (found["status"], row["state"]) == (truth, state)
        assert reason in row["reason"]


def test_an_engine_that_starts_again_has_said_nothing_yet(pool: Kubectl) -> None:
    manifest = pod("one")
    with engine(says("active", "switched on")) as port:
        manifest["spec"] = pod_spec(ports=[{"containerPort": port}])
        create(pool, manifest)
        pool.await_condition("demo", "InjectionReady", reason="Written")
        runs(pool, "one", "containerd://1")
        pool.await_condition("demo", "InjectionReady", reason="Active")
    runs(pool, "one", "containerd://2")
    pool.await_condition("demo", "InjectionReady", reason="Injected")
