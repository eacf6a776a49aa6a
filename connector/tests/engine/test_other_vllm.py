"""vLLM versions that lack names which the implementation needs: the engine stops with one sentence, or runs without the cache.

Stand-in: a real vLLM 0.32 in which those names cannot be imported, since no other version can be
installed beside it. Its own modules, which need them, were imported before.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from connector.tests.engine import models

pytestmark = pytest.mark.timeout(300)

MISSING = {
    "0.29": ("KVConnectorTransferResults", "vllm.v1.metrics.cache_hit_source", "vllm.v1.kv_offload.cpu.host_register"),
    "0.31": ("", "vllm.v1.metrics.cache_hit_source", "vllm.v1.kv_offload.cpu.host_register"),
}
"""By version: a name of the base class's module, and modules."""
VERSIONS = ["0.29", pytest.param("0.31", marks=pytest.mark.slow)]
"""0.29 lacks all that 0.31 lacks."""
HIDE = """
    import sys
    import vllm
    import vllm.v1.core.sched.scheduler, vllm.v1.engine.core, vllm.v1.engine.llm_engine, vllm.v1.metrics.loggers
    from vllm import LLM, SamplingParams
    from vllm.config import KVTransferConfig, VllmConfig
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
    from vllm.distributed.kv_transfer.kv_connector.v1 import base, offloading_connector
    from vllm.v1.kv_cache_interface import KVCacheConfig

    version, name, *modules = sys.argv[1:]
    if name:
        delattr(base, name)
    for module in modules:
        sys.modules[module] = None
    vllm.__version__ = version
    transfer = KVTransferConfig(
        kv_connector="KVPoolConnector", kv_connector_module_path="kvpool_connector.vllm", kv_role="kv_both"
    )
"""
CONSTRUCT = """
    config = VllmConfig(kv_transfer_config=transfer)
    caches = KVCacheConfig(num_blocks=1, kv_cache_tensors=[], kv_cache_groups=[])
    for role in base.KVConnectorRole:
        half = KVConnectorFactory.create_connector(config, role, caches)
        print(type(half).__name__, KVConnectorFactory.supports_hma_config(transfer))
    assert half.get_num_new_matched_tokens(None, 0) == (0, False)
    assert half.build_connector_worker_meta() is None
    half.build_connector_meta(None)
"""
GENERATE = """
    llm = LLM(
        sys.argv[-1], kv_transfer_config=transfer, skip_tokenizer_init=True, max_model_len=512, enforce_eager=True,
        dtype="float32", disable_log_stats=False,
    )
    for _ in range(2):
        (output,) = llm.generate([{"prompt_token_ids": [7] * 300}], SamplingParams(max_tokens=4), use_tqdm=False)
        print("said", len(output.outputs[0].token_ids), output.num_cached_tokens)
        assert llm.reset_prefix_cache(reset_connector=True)
"""


def run(program: str, version: str, on_failure: str | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with names hidden."""
    environment = os.environ | ({} if on_failure is None else {"KVPOOL_ON_FAILURE": on_failure})
    code = f"import sys; sys.path[:] = {sys.path!r}\n" + textwrap.dedent(HIDE) + textwrap.dedent(program)
    words = [sys.executable, "-c", code, version, *MISSING[version], *arguments]
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("version", VERSIONS)
def test_another_version_stops_with_one_sentence(version: str) -> None:
    """The sentence names the version that was found and the one that is served."""
    done = run(CONSTRUCT, version, None)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "kvpool's connector cannot be imported" in last
    assert f"it serves vLLM 0.32, and this is vLLM {version}" in last
    assert "set on_failure: continue" in last


@pytest.mark.parametrize("version", VERSIONS)
def test_another_version_continues_without_the_cache(version: str) -> None:
    """Both halves exist and do nothing."""
    done = run(CONSTRUCT, version, "continue")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["KVPoolConnector True"] * 2
    assert (done.stdout + done.stderr).count("the engine runs without the cache") == 1


def test_an_engine_of_another_version_serves_without_the_cache(tmp_path: Path) -> None:
    """One line says so."""
    done = run(GENERATE, "0.31", "continue", models.save(models.llama, tmp_path))
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("said")] == ["said 4 0"] * 2
    assert (done.stdout + done.stderr).count("the engine runs without the cache") == 1
