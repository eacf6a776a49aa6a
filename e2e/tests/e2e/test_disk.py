"""The disk tier on a volume of the engine's own, on a real node with a real vLLM: blocks outlive the Pod that wrote them."""

from __future__ import annotations

import os
import re
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.demo.stage import BLOCK_TOKENS
from e2e.demo.steps import DOCUMENT, stopwatch
from e2e.stores.stage import Pool, Stage, is_ready
from testkit.engine import MODEL_NAME
from testkit.http_client import ask
from testkit.servers import wait_until

pytestmark = [
    pytest.mark.slow,  # two starts of vLLM
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
]

CLAIM = "kvpool-disk-disk-engine-0"
PROMPT = f"Read this.\n\n{DOCUMENT.read_text()[:5000]}\n\nAnswer in one sentence: what is it about?"


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    stage = Stage(stopwatch(), real_engines=True)
    try:
        yield stage
    finally:
        stage.close()


@pytest.fixture(scope="module")
def pool(stage: Stage) -> Iterator[Pool]:
    """The example with one engine and a small disk."""

    def smaller(manifest: dict[str, Any]) -> None:
        manifest["spec"]["tiers"]["disk"]["size"] = "2Gi"
        manifest["spec"]["engines"][0]["replicas"] = 1

    with tempfile.TemporaryDirectory(prefix="kvpool-disk-") as folder:
        stage.volumes(Path(folder), "3Gi", CLAIM)
        pool = stage.pool("disk", smaller)
        pool.wait("Ready", "AllReady", 600)
        yield pool
        pool.delete()


def the_pod(pool: Pool) -> tuple[str, str]:
    """Identity and address of the engine's only Pod."""
    (pod,) = pool.pods("engine").values()
    return pod["metadata"]["uid"], f"http://{pod['status']['podIP']}:8000"


def chunks(url: str, what: str) -> float:
    """A counter of the disk tier."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310
        text = answer.read().decode()
    found = re.findall(rf'^kvpool:{what}_chunks_total{{[^}}]*tier="disk"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))


def test_a_new_pod_answers_from_the_disk_of_the_one_before(pool: Pool) -> None:
    pod, url = the_pod(pool)
    ask(url, MODEL_NAME, "Say hello.")
    computed = ask(url, MODEL_NAME, PROMPT)
    assert computed.cached_tokens < BLOCK_TOKENS * 2  # what all chats begin with
    whole = (computed.prompt_tokens - 1) // BLOCK_TOKENS
    wait_until("the prompt is on the disk", lambda: chunks(url, "written") >= whole, 60, poll_s=0.5)
    claim = pool.kubectl("get", "pvc", CLAIM, "-o", "jsonpath={.metadata.uid}")

    pool.kubectl("delete", "pod", "disk-engine-0", "--wait=true")
    wait_until("another Pod of this name is ready", lambda: another_is_ready(pool, pod), 600, poll_s=0.5)
    pool.wait("Ready", "AllReady", 30)

    _, url = the_pod(pool)
    assert chunks(url, "loaded") == 0
    ask(url, MODEL_NAME, "Say hello.")
    loaded = ask(url, MODEL_NAME, PROMPT)
    assert loaded.text == computed.text
    assert chunks(url, "loaded") >= whole * 0.75
    assert loaded.cached_tokens >= whole * BLOCK_TOKENS * 0.75
    assert pool.kubectl("get", "pvc", CLAIM, "-o", "jsonpath={.metadata.uid}") == claim
    print(f"computed in {computed.ttft_s:.2f} s, loaded from disk in {loaded.ttft_s:.2f} s")


def another_is_ready(pool: Pool, old: str) -> bool:
    return any(pod["metadata"]["uid"] != old and is_ready(pod) for pod in pool.pods("engine").values())
