"""An engine's processes end in every way that a cluster ends them. What is left are the disk tier's files, and no more."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testkit.engine import MODEL_NAME
from testkit.engine_facts import facts_of
from testkit.engine_process import EngineProcess
from testkit.http_client import ask
from testkit.servers import KeyValueServer, wait_until

pytestmark = [pytest.mark.timeout(400), pytest.mark.slow]  # five starts of an engine
ARGUMENTS = ["--max-model-len", "4096", "--block-size", "32", "--enforce-eager", "--enable-prompt-tokens-details"]
PROMPT = "The keeper of the lighthouse wrote down wind, tide and every ship that passed. " * 60


def _members(group: int) -> dict[int, str]:
    """Processes of a group: id and title."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found[int(entry.name)] = title
    return found


def _halves(group: int) -> list[int]:
    """The processes that the connector runs in: scheduler and worker. While one ends, its title is empty."""
    return [pid for pid, title in _members(group).items() if title.startswith("VLLM::") or not title]


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def _resident_pages(pid: int) -> int:
    """The worker holds weights and KV memory; its siblings are helpers of multiprocessing."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


@pytest.fixture(autouse=True)
def separate_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a server is started: scheduler and worker in processes of their own. This folder's other tests want one process."""
    monkeypatch.delenv("VLLM_ENABLE_V1_MULTIPROCESSING")


@contextlib.contextmanager
def _engine(name: str, folder: Path, store: KeyValueServer) -> Iterator[EngineProcess]:
    config = folder / "kvpool.json"
    config.write_text(
        json.dumps(
            {
                "tiers": {"cpu": {"size": "512Mi"}, "disk": {"path": str(folder / "disk"), "size": "512Mi"}},
                "remote": {"type": "redis", "host": store.host, "port": store.port},
            }
        )
    )
    engine = EngineProcess(name, folder, config=config, dtype="float32", arguments=ARGUMENTS)
    try:
        yield engine
    finally:
        engine.end()


def _group(engine: EngineProcess) -> int:
    assert engine._process is not None
    return engine._process.pid


def _in_background(engine: EngineProcess, number: int) -> threading.Thread:
    """A request that nobody waits for; it may fail, since its server ends."""

    def run() -> None:
        try:
            ask(engine.url, MODEL_NAME, f"Copy {number}. {PROMPT}", max_tokens=64)
        except (OSError, RuntimeError, ValueError):
            return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}  # noqa: S108 - what others leave there is the question


def test_sigterm_in_mid_store_and_a_killed_scheduler(tmp_path: Path) -> None:
    """SIGTERM while blocks are being stored: all processes end, the next one finds the disk tier and hits in it. Its scheduler's
    process is killed then: again nothing is left, and the disk's lock is free."""
    with KeyValueServer("redis") as store, _engine("ends", tmp_path, store) as engine:
        engine.start()
        engine.serving()
        first = ask(engine.url, MODEL_NAME, PROMPT, max_tokens=8)
        group = _group(engine)
        store.pause()  # writes to it hang: they are under way when the end comes
        running = _in_background(engine, 1)
        time.sleep(1.0)
        began = time.monotonic()
        os.kill(group, signal.SIGTERM)  # the leader alone, as a Pod's first process is told
        # The front end may go on waiting for its client: that is vLLM's, and the Pod's grace period ends it.
        wait_until("scheduler and worker ended", lambda: not _halves(group), 25)
        assert time.monotonic() - began < 25
        engine.end()
        running.join(30)
        store.resume()
        store.kill()  # so that a hit can only come from the disk

        engine.start()
        engine.serving()
        again = ask(engine.url, MODEL_NAME, PROMPT, max_tokens=8)
        assert again.text == first.text
        assert again.cached_tokens >= facts_of(engine.url).cacheable_tokens(first.prompt_tokens) * 0.9, (
            "the disk tier survived"
        )

        group = _group(engine)
        scheduler = next(pid for pid, title in _members(group).items() if "EngineCore" in title)
        _in_background(engine, 2)
        time.sleep(0.5)
        os.kill(scheduler, signal.SIGKILL)
        wait_until("scheduler and worker ended", lambda: not _halves(group), 25)
        engine.end()

        engine.start()  # the lock of the disk tier is free
        engine.serving()
        assert ask(engine.url, MODEL_NAME, PROMPT, max_tokens=8).text == first.text


def test_a_killed_worker_leaves_nothing(tmp_path: Path) -> None:
    """vLLM ends the engine then; a Pod would start again."""
    with KeyValueServer("redis") as store, _engine("killed", tmp_path, store) as engine:
        engine.start()
        engine.serving()
        group = _group(engine)
        scheduler = next(pid for pid, title in _members(group).items() if "EngineCore" in title)
        worker = next(pid for pid in _members(group) if _parent(pid) == scheduler and _resident_pages(pid) > 50_000)
        _in_background(engine, 1)
        time.sleep(0.5)
        os.kill(worker, signal.SIGKILL)
        wait_until("scheduler and worker ended", lambda: not _halves(group), 25)
        engine.end()
