"""The one place that knows this host: its processor, its memory, and which number types engines are run in.

Tests, demo and benchmarks ask here and nowhere else. What they need to know of a running engine (tokens of a chunk, parts
in the store, identity) they read from that engine, see :mod:`testkit.engine_facts`.
"""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path
from typing import Literal

Dtype = Literal["float32", "bfloat16"]
DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
"""What every host runs the tests of texts in: vLLM's CPU build has both on each processor, though not equally fast."""
DTYPE_VARIABLE = "KVPOOL_DTYPE"
"""Forces the type in which the demo, the benchmarks and the examples run their engines."""
_FAST_BFLOAT16 = frozenset({"amx_bf16", "avx512_bf16"})


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Return the processor's features as the kernel names them."""
    return frozenset(_cpu_line("flags", "Features").split())


def has_amx() -> bool:
    """Return whether vLLM takes its kernels for AMX tiles (``torch.cpu._is_amx_tile_supported``)."""
    return "amx_tile" in cpu_flags()


def chosen_dtype() -> Dtype:
    """Return the type that engines are run in where nothing asks for another one.

    That is ``KVPOOL_DTYPE`` where it is set, else bfloat16 on a processor with AMX, else float32. Measured with SmolLM2: on a
    processor with AVX2 only, a prefill of 3038 tokens took 48.9 s in bfloat16 and 15.8 s in float32; with AVX512-BF16,
    bfloat16 was faster by less than a third.

    Raises:
        ValueError: ``KVPOOL_DTYPE`` names another type.
    """
    forced = os.environ.get(DTYPE_VARIABLE)
    if forced:
        for dtype in DTYPES:
            if forced == dtype:
                return dtype
        raise ValueError(f"{DTYPE_VARIABLE} is {forced!r}: set it to {' or '.join(DTYPES)}, or unset it")
    return "bfloat16" if "amx_bf16" in cpu_flags() else "float32"


def is_fast(dtype: Dtype) -> bool:
    """Return whether a prompt of thousands of tokens is computed in seconds in this type."""
    return dtype == "float32" or bool(cpu_flags() & _FAST_BFLOAT16)


def one_arithmetic(dtype: Dtype) -> bool:
    """Return whether a prompt computed whole and one computed behind a hit give one greedy text.

    In bfloat16 the two round differently, in vLLM alone as well, and now and then another token wins.
    """
    return dtype == "float32"


def mla_dtype() -> Dtype:
    """Return the type in which vLLM runs models with MLA here: its kernels for AMX take bfloat16 alone."""
    return "bfloat16" if has_amx() else "float32"


def continues_mla_prefixes() -> bool:
    """Return whether vLLM computes the rest of a prompt of an MLA model behind a cached part.

    On a CPU without AMX it does not: there it switches prefix caching off (``vllm/platforms/cpu.py``), and kvpool refuses.
    """
    return has_amx()


def has_fp8_kv() -> bool:
    """Return whether vLLM has KV memory of eight bits here: its kernels need AVX-512 or AMX."""
    return has_amx() or "avx512f" in cpu_flags()


def describe() -> dict[str, str | int | float]:
    """Return what figures were measured on."""
    memory_kib = next(
        int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    widest = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in cpu_flags()]
    return {
        "cpu": _cpu_line("model name") or platform.machine(),
        "features": " ".join(widest),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / 2**20, 1),
        "dtype": chosen_dtype(),
        "kernel": platform.release(),
    }


def _cpu_line(*names: str) -> str:
    """Return the value of the first line of ``/proc/cpuinfo`` with one of these names, or nothing."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(names):
            return line.split(":", 1)[1].strip()
    return ""
