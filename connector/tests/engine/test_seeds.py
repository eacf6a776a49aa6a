"""The scripts of the documents that kvpool grew from, as written but for the connector's name (docs/seeds.md), on this CPU.

Before they run, a small model takes the place of theirs, the length is what that model can, nothing is asked of a GPU's memory,
and vLLM computes in float32 without compiling. `make test-examples` runs all, CI one.
"""

from __future__ import annotations

import re
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from connector.tests.engine.test_examples import ran
from testkit.engine import CONNECTOR, ROOT, plug_in
from testkit.lmcache import LMCacheServer

pytestmark = pytest.mark.timeout(1800)
SEEDS = ROOT / "examples/seeds"


def seed(
    name: str, model: Path, folder: Path, *arguments: str, after: str = "", extra: dict[str, str] | None = None
) -> str:
    """A script's output, with more lines at its end. The connector is found by its entry point, as where it is installed."""
    text = (SEEDS / name).read_text()
    text = re.sub(r'"(Qwen/Qwen3-8B|meta-llama/Llama-3\.1-8B-Instruct)"', repr(str(model)), text)
    text = text.replace("max_len=16384", "max_len=8000").replace(
        "gpu_memory_utilization=calculate_gpu_utilization()", ""
    )
    text = re.sub(r"\bLLM\(\s*model", "LLM(dtype='float32', enforce_eager=True, model", text)
    if "__main__" not in text:  # the document's own advice for processes that are spawned
        text = "if __name__ == '__main__':\n" + textwrap.indent(text + after, "    ")
    (folder / "seed.py").write_text(text)
    extra = {"PYTHONPATH": f"{CONNECTOR}:{plug_in(folder)}"} | (extra or {})
    return ran([sys.executable, str(folder / "seed.py"), *arguments], extra, folder)


@pytest.mark.slow
def test_offline_inference(model: Path, tmp_path: Path) -> None:
    """Every whole chunk of the prompt is stored, and said to be."""
    text = seed("offloading/as-written/offline.py", model, tmp_path)
    stored, tokens = map(int, re.search(r"stored (\d+) of (\d+) tokens", text).groups())  # type: ignore[union-attr]
    assert stored == tokens // 256 * 256 > 5000
    assert "Generated text: " in text


@pytest.mark.slow
def test_the_speed_up_of_the_second_run(model: Path, tmp_path: Path) -> None:
    """The document's figure is 7.43x."""
    arguments = ["--num-prompts", "4", "--num-tokens", "3000"]
    script = "offloading/as-written/cpu-offloading.py"
    for more, least, most in (([], 0.5, 2.0), (["--enable-lmcache"], 7.43, 1e9)):
        text = seed(script, model, tmp_path, *arguments, *more)
        (speedup,) = re.findall(r"Speedup \(first run / second run\): ([0-9.]+)x", text)
        assert least <= float(speedup) <= most, text[-2000:]


@pytest.mark.slow
def test_the_workflow_survives_the_process(model: Path, tmp_path: Path) -> None:
    """The second process hits at its first request what the first one left on disk."""
    cached = [
        [
            int(number)
            for number in re.findall(
                r"s, (\d+) tokens cached", seed("workflow/as-written/workflow.py", model, tmp_path)
            )
        ]
        for _ in range(2)
    ]
    (cold, warm), (restarted, again) = cached
    assert cold == 0
    assert warm == restarted == again > 3000


@pytest.mark.slow
def test_two_processes_share_lmcaches_server(model: Path, tmp_path: Path) -> None:
    """The nested form of the configuration file. The document's script ends where the engine stands; two requests are added."""
    file = tmp_path / "lmcache_config.yaml"
    with LMCacheServer() as server:
        content = yaml.safe_load((SEEDS / "sharing/as-written/lmcache_config.yaml").read_text())
        content["remote"]["url"] = f"{server.host}:{server.port}"
        content["local_cpu"]["buffer_size_gb"] = 0.5
        file.write_text(yaml.safe_dump(content))
        ask = "\nprint(llm.generate(['One ship sails to the north. ' * 300])[0].num_cached_tokens, 'tokens cached')\n"
        found = []
        for _ in range(2):
            text = seed(
                "sharing/as-written/offline.py", model, tmp_path, after=ask, extra={"LMCACHE_CONFIG_FILE": str(file)}
            )
            found += [int(number) for number in re.findall(r"(\d+) tokens cached", text)]
    assert found[0] == 0
    assert found[1] > 1500
