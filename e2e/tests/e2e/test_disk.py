"""The disk tier on a volume of the engine's own, on a real node with a real vLLM: blocks outlive the Pod that wrote them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from e2e.demo.steps import stopwatch
from e2e.stores.engines import answer, assert_right_texts, chunks, greet, urls
from e2e.stores.stage import Pool, Stage, is_ready
from testkit.engine_facts import facts_of
from testkit.servers import wait_until

pytestmark = [
    pytest.mark.slow,  # two starts of vLLM
    pytest.mark.timeout(1200),
    pytest.mark.skipif(os.geteuid() != 0, reason="a node needs root"),
]

CLAIM = "kvpool-disk-disk-engine-0"


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


def test_a_new_pod_answers_from_the_disk_of_the_one_before(pool: Pool) -> None:
    (pod,), (url,) = pool.pods("engine").values(), urls(pool)
    greet(url)
    facts = facts_of(url)
    computed = answer(url, 0)
    assert computed.cached_tokens <= facts.chunk_tokens  # what all chats begin with
    whole = facts.whole_chunks(computed.prompt_tokens)
    wait_until("the prompt is on the disk", lambda: chunks(url, "written", "disk") >= whole, 60, poll_s=0.5)
    claim = pool.kubectl("get", "pvc", CLAIM, "-o", "jsonpath={.metadata.uid}")

    pool.kubectl("delete", "pod", "disk-engine-0", "--wait=true")
    wait_until(
        "another Pod of this name is ready", lambda: another_is_ready(pool, pod["metadata"]["uid"]), 600, poll_s=0.5
    )
    pool.wait("Ready", "AllReady", 30)

    (url,) = urls(pool)
    assert chunks(url, "loaded", "disk") == 0
    greet(url)
    loaded = answer(url, 0)
    assert_right_texts([(0, computed), (0, loaded)])
    assert chunks(url, "loaded", "disk") >= whole * 0.75
    assert loaded.cached_tokens >= whole * facts.chunk_tokens * 0.75
    assert pool.kubectl("get", "pvc", CLAIM, "-o", "jsonpath={.metadata.uid}") == claim
    print(f"computed in {computed.ttft_s:.2f} s, loaded from disk in {loaded.ttft_s:.2f} s")


def another_is_ready(pool: Pool, old: str) -> bool:
    return any(pod["metadata"]["uid"] != old and is_ready(pod) for pod in pool.pods("engine").values())
