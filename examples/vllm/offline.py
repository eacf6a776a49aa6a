"""Offline inference with a memory tier: the second run of a prompt computes its last tokens only.

    python offline.py                                   # kvpool's own configuration
    LMCACHE_CHUNK_SIZE=256 LMCACHE_LOCAL_CPU=True LMCACHE_MAX_LOCAL_CPU_SIZE=5.0 \
        python offline.py --settings environment        # LMCache's variables
"""

from __future__ import annotations

from engine import end, parser, start
from vllm import SamplingParams


def main() -> None:
    """The same prompt twice; in between, vLLM forgets its own prefix cache."""
    options = parser(__doc__, max_model_len=8000)
    options.add_argument("--settings", choices=("here", "environment"), default="here")
    args = vars(options.parse_args())
    kvpool = {"tiers": {"cpu": {"size": "5Gi"}}} if args.pop("settings") == "here" else {}
    llm = start(args, kvpool)

    shared_prompt = "Hello, how are you?" * 200
    prompts = [shared_prompt + "Hello, my name is"]
    sampling = SamplingParams(temperature=0, top_p=0.95, max_tokens=10)
    for run in ("first", "second"):
        (output,) = llm.generate(prompts, sampling, use_tqdm=False)
        print(f"Generated text: {output.outputs[0].text!r}")
        print(f"Tokens from a cache ({run} run): {output.num_cached_tokens} of {len(output.prompt_token_ids or [])}")
        llm.reset_prefix_cache()

    end(llm)


if __name__ == "__main__":
    main()
