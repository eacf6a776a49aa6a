"""vLLM's CPU build for tests, the demo and benchmarks: where it is, and settings under which times can be compared."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from testkit.servers import CACHE

ROOT = Path(__file__).resolve().parent.parent
ENGINE_PYTHON = ROOT / ".venvs/engine/bin/python"
CONNECTOR = ROOT / "connector/src"
MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL = CACHE / "models/SmolLM2-135M-Instruct"


def environment(kv_space_gib: int = 1) -> dict[str, str]:
    """Environment of an engine's process.

    The thread binding is explicit: with "auto", vLLM gives an engine with a connector another number of cores than one
    without, and no two times could be compared.
    """
    cores = sorted(os.sched_getaffinity(0))
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": str(kv_space_gib),
        "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}" if len(cores) > 1 else str(cores[0]),
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def ensure_model() -> Path:
    """The model's folder, made if it is missing."""
    if not (MODEL / "config.json").exists():
        subprocess.run([str(ENGINE_PYTHON), str(ROOT / "tools/make_model.py"), str(MODEL)], check=True)
    return MODEL


def plug_in(folder: Path) -> Path:
    """Return the folder after writing into it what an installer leaves behind for kvpool's entry
    point. On PYTHONPATH beside `CONNECTOR`, vLLM then finds the plug-in as where it is installed."""
    metadata = folder / "kvpool_connector-0.1.0.dist-info"
    metadata.mkdir(exist_ok=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: kvpool-connector\nVersion: 0.1.0\n")
    entry = "[vllm.general_plugins]\nKVPoolConnector = kvpool_connector.vllm.plugin:register\n"
    (metadata / "entry_points.txt").write_text(entry)
    return folder
