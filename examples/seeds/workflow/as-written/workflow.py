"""The five steps of the workflow, with LMCache's variables: configure, start, fill, hit, clean up.

Run it twice in the same folder: the second run's first request hits what the first run left on disk.
"""

import os
import sys
import time

# Step 1: chunk size, memory and disk, and their limits.
os.environ["LMCACHE_CHUNK_SIZE"] = "256"
os.environ["LMCACHE_LOCAL_CPU"] = "True"
os.environ["LMCACHE_MAX_LOCAL_CPU_SIZE"] = "5.0"
os.environ["LMCACHE_LOCAL_DISK"] = f"file://{os.getcwd()}/kv-cache"
os.environ["LMCACHE_MAX_LOCAL_DISK_SIZE"] = "5.0"

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig


def main() -> None:
    # Step 2: the connector in both roles.
    llm = LLM(
        model="Qwen/Qwen3-8B",
        kv_transfer_config=KVTransferConfig(kv_connector="KVPoolConnector", kv_role="kv_both"),
        max_model_len=8000,
        gpu_memory_utilization=0.8,
    )
    prefix = "The ship's log says that the wind came from the north. " * 300
    sampling = SamplingParams(temperature=0, max_tokens=10)
    # Step 3 fills the cache, step 4 hits it: the same prefix, another question.
    for question in ("Where did the wind come from?", "What does the log say?"):
        started = time.time()
        (output,) = llm.generate([prefix + question], sampling)
        print(f"{time.time() - started:.2f} s, {output.num_cached_tokens} tokens cached: {output.outputs[0].text!r}")
    # Step 5: the engine ends; what is on disk stays.
    del llm


if __name__ == "__main__":
    sys.exit(main())
