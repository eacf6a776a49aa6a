"""vLLM's CPU build for tests, the demo and benchmarks: where it is, and settings under which times can be compared."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

from testkit.servers import CACHE

ROOT = Path(__file__).resolve().parent.parent
ENGINE_PYTHON = ROOT / ".venvs/engine/bin/python"
CONNECTOR = ROOT / "connector/src"
MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
MODEL = CACHE / "models/SmolLM2-135M-Instruct"


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Features of this machine's CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.split(":", 1)[1].split())
    return frozenset()


def best_dtype() -> str:
    """bfloat16 where the CPU has tiles for it (AMX), else float32.

    Measured with SmolLM2: on a CPU with AVX2 only, a prefill of 3038 tokens took 48.9 s in bfloat16 and 15.8 s in float32; with
    AVX512-BF16, bfloat16 was faster by less than a third, and its coarse rounding lets two ways of computing one text part.
    """
    return "bfloat16" if "amx_bf16" in cpu_flags() else "float32"


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
