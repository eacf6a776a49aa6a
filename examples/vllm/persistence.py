"""A disk tier outlives the process: run this twice with the same folder.

    python persistence.py --folder /var/lib/kvpool
    python persistence.py --folder /var/lib/kvpool --clean-up

Two engines that run at the same time need two folders. PYTHONHASHSEED must be the same in all runs: vLLM's block hashes, and
with them the names of what is stored, depend on it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine import end, parser, start
from vllm import SamplingParams


def main() -> None:
    """One long prompt. What an earlier run stored is a hit."""
    options = parser(__doc__, max_model_len=8000, prefix_caching_hash_algo="sha256_cbor")
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--clean-up", action="store_true", help="Remove the folder at the end")
    args = vars(options.parse_args())
    folder, clean_up = args.pop("folder"), args.pop("clean_up")
    os.environ.setdefault("PYTHONHASHSEED", "0")  # of the engine's process, which is started below
    disk = {"path": str(folder), "size": "1Gi"}
    # Always: on a fast device the connector could measure that computing so short a prompt is faster than reading it.
    llm = start(args, {"tiers": {"cpu": {"size": "1Gi"}, "disk": disk}, "admission": "always"})

    prompt = "The keeper of the lighthouse wrote about wind, tides and ships. " * 150
    # A block is written to the disk right after it was computed; the tokens give it the time. An engine that ends drops what
    # still waits to be written.
    (output,) = llm.generate([prompt], SamplingParams(temperature=0, max_tokens=32), use_tqdm=False)
    tokens = len(output.prompt_token_ids or [])
    print(f"Tokens from a cache: {output.num_cached_tokens} of {tokens}")

    end(llm)
    if clean_up:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
